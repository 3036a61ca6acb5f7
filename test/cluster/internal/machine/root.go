package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"podvirt.dev/test/cluster/internal/cgroup"
)

// step is one named action on the way to a machine's root file system.
type step struct {
	name string
	do   func() error
}

// enterRoot puts the machine's root file system together and makes it the root.
func (s Spec) enterRoot(ctx context.Context) error {
	hierarchies, err := cgroup.Hierarchies()
	if err != nil {
		return err
	}
	steps := []step{
		{"host name", func() error { return unix.Sethostname([]byte(s.Name)) }},
		{"private mounts", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		{"root", func() error { return unix.Mount("root", s.Root, "tmpfs", 0, "mode=755,size=64m") }},
		{"system directories", s.bindSystem},
		{"/etc", s.overlayEtc},
		{"own directories", s.bindOwn},
		{"kernel file systems", func() error { return s.mountKernel(hierarchies) }},
		{"pools", func() error { return s.mountLoops(ctx) }},
		{"pivot", s.pivot},
		{"shared mounts", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "") }},
	}
	for _, st := range steps {
		if err := st.do(); err != nil {
			return fmt.Errorf("%s: %w", st.name, err)
		}
	}
	return nil
}

func (s Spec) in(path string) string { return filepath.Join(s.Root, path) }

// bindSystem shows the host's programs and libraries, read-only, and its devices.
func (s Spec) bindSystem() error {
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		system := name == "usr" || name == "bin" || name == "sbin" || strings.HasPrefix(name, "lib")
		switch {
		case system && e.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink("/" + name)
			if err != nil {
				return err
			}
			err = os.Symlink(target, s.in(name))
			if err != nil {
				return err
			}
		case system && e.IsDir():
			if err := bindReadOnly("/"+name, s.in(name)); err != nil {
				return err
			}
		}
	}
	if err := os.Mkdir(s.in("dev"), 0o755); err != nil {
		return err
	}
	return unix.Mount("/dev", s.in("dev"), "", unix.MS_BIND|unix.MS_REC, "")
}

func (s Spec) overlayEtc() error {
	upper, work := filepath.Join(s.Etc, "upper"), filepath.Join(s.Etc, "work")
	if err := makeDirs(upper, work, s.in("etc")); err != nil {
		return err
	}
	return unix.Mount("overlay", s.in("etc"), "overlay", 0, fmt.Sprintf("lowerdir=/etc,upperdir=%s,workdir=%s", upper, work))
}

func (s Spec) bindOwn() error {
	for _, dir := range []string{"root", "home", "mnt", "media", "srv", "proc", "sys", "run", "tmp", "var", "opt"} {
		if err := os.Mkdir(s.in(dir), 0o755); err != nil {
			return err
		}
	}
	for from, to := range map[string]string{s.Var: "var", s.Opt: "opt"} {
		if err := unix.Mount(from, s.in(to), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("%s: %w", from, err)
		}
	}
	if err := makeDirs(s.in("var/lib"), s.in("var/log/podvirt"), s.in("var/cache"), s.in("var/tmp")); err != nil {
		return err
	}
	if err := os.Symlink("/run", s.in("var/run")); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, b := range s.Binds {
		if err := bindReadOnly(b.From, s.in(b.To)); err != nil {
			return err
		}
	}
	return nil
}

func (s Spec) mountKernel(hierarchies []cgroup.Hierarchy) error {
	mounts := []struct{ kind, to, data string }{
		{"proc", "proc", ""}, {"sysfs", "sys", ""}, {"tmpfs", "run", "mode=755"}, {"tmpfs", "tmp", "mode=1777"},
	}
	for _, m := range mounts {
		if err := unix.Mount(m.kind, s.in(m.to), m.kind, 0, m.data); err != nil {
			return fmt.Errorf("%s: %w", m.to, err)
		}
	}
	group := s.in("sys/fs/cgroup")
	if hierarchies[0].V2() {
		return unix.Mount("cgroup2", group, "cgroup2", 0, "")
	}
	if err := unix.Mount("cgroup", group, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, h := range hierarchies {
		to := filepath.Join(group, filepath.Base(h.Dir))
		options := h.Options
		if strings.HasPrefix(options, "name=") {
			options = "none," + options
		}
		if err := errors.Join(os.Mkdir(to, 0o755), unix.Mount("cgroup", to, "cgroup", 0, options)); err != nil {
			return fmt.Errorf("%s: %w", h.Options, err)
		}
		if err := linkControllers(to); err != nil {
			return err
		}
	}
	return nil
}

// linkControllers makes "cpu" and "cpuacct" lead to "cpu,cpuacct", as every reader of cgroup v1 expects.
func linkControllers(dir string) error {
	names := strings.Split(filepath.Base(dir), ",")
	if len(names) == 1 {
		return nil
	}
	for _, name := range names {
		if err := os.Symlink(filepath.Base(dir), filepath.Join(filepath.Dir(dir), name)); err != nil {
			return err
		}
	}
	return nil
}

// mountLoops mounts with mount(8), which makes loop devices that the kernel frees with their last user. Project quotas, which
// give directories a hard size, are taken where the kernel has them.
func (s Spec) mountLoops(ctx context.Context) error {
	for _, l := range s.Loops {
		if err := os.MkdirAll(s.in(l.To), 0o755); err != nil {
			return err
		}
		if err := mountLoop(ctx, "loop,pquota", l.Image, s.in(l.To)); err == nil {
			continue
		}
		if err := mountLoop(ctx, "loop", l.Image, s.in(l.To)); err != nil {
			return err
		}
	}
	return nil
}

func mountLoop(ctx context.Context, options, image, to string) error {
	out, err := exec.CommandContext(ctx, "mount", "-t", "xfs", "-o", options, image, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mounting %s: %w: %s", image, err, out)
	}
	return nil
}

func (s Spec) pivot() error {
	old := s.in(".host")
	if err := os.Mkdir(old, 0o700); err != nil {
		return err
	}
	if err := unix.PivotRoot(s.Root, old); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount("/.host", unix.MNT_DETACH); err != nil {
		return err
	}
	return os.Remove("/.host")
}

func bindReadOnly(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

func makeDirs(dirs ...string) error {
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// applySysctls writes kernel parameters of the machine's namespaces, in the order of their names.
func (s Spec) applySysctls() error {
	names := make([]string, 0, len(s.Sysctls))
	for name := range s.Sysctls {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
		if err := os.WriteFile(path, []byte(s.Sysctls[name]), 0); err != nil {
			return err
		}
	}
	return nil
}

func (s Spec) applyNFTables(ctx context.Context) error {
	if s.NFTables == "" {
		return nil
	}
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(s.NFTables)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// leaveGroupRoot moves this process out of the root of its cgroup v2 view, which must be empty before its children can
// have controllers.
func leaveGroupRoot() error {
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.controllers"); err != nil {
		return nil //nolint:nilerr // cgroup v1 knows no such rule
	}
	if err := os.MkdirAll(root+"/init", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(root+"/init/cgroup.procs", []byte("1"), 0); err != nil {
		return err
	}
	return cgroup.EnableAll(root)
}
