package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/pierrec/lz4/v4"

	"podvirt.dev/images/internal/disk"
	"podvirt.dev/images/internal/gobuild"
	"podvirt.dev/images/internal/rootfs"
	"podvirt.dev/internal/initramfs"
)

// tinyRoot has the parts of the tiny guest: Debian's kernel for clouds and a static busybox.
func tinyRoot() rootfs.Recipe {
	return rootfs.Recipe{
		Name: "guest-tiny", Suite: "trixie", Variant: "extract", Packages: []string{"linux-image-cloud-amd64", "busybox-static"},
	}
}

// tiny makes a guest that is a kernel and an initramfs, both on the EFI system partition.
func (b *Builder) tiny(ctx context.Context, target string) error {
	root, err := b.Roots.Unpack(ctx, tinyRoot())
	if err != nil {
		return err
	}
	release, err := kernel(root)
	if err != nil {
		return err
	}
	archive := target + ".initramfs"
	if err := b.tinyInitramfs(ctx, root, release, archive); err != nil {
		return err
	}
	defer func() { _ = os.Remove(archive) }()
	return disk.Disk{
		Size:    64 << 20,
		ESPSize: 48 << 20,
		ESP:     map[string]string{"vmlinuz": filepath.Join(root, "boot", "vmlinuz-"+release), "initrd": archive},
		Label:   "TINY",
		Kernel:  "/vmlinuz",
		Initrd:  "/initrd",
		Options: "console=tty0 console=ttyS0,115200 panic=-1",
	}.Write(ctx, target)
}

func (b *Builder) tinyInitramfs(ctx context.Context, root, release, target string) error {
	var archive bytes.Buffer
	// The kernel knows LZ4 in its oldest form only. GRUB reads from a BIOS so slowly that any compression pays.
	packer := lz4.NewWriter(&archive)
	if err := packer.Apply(lz4.LegacyOption(true), lz4.CompressionLevelOption(lz4.Level9)); err != nil {
		return err
	}
	w := initramfs.NewWriter(packer)
	steps := []func() error{
		func() error { return w.CharDevice("dev/console", 0o600, 5, 1) },
		func() error { return addBusybox(ctx, w, filepath.Join(root, "usr", "bin", "busybox")) },
		func() error { return addTree(w, b.source("tiny", "root")) },
		func() error { return b.addModules(w, root, release) },
		func() error { return b.addGuestd(ctx, w) },
		func() error { return addEmptyDirs(w, "proc", "sys", "root", "tmp", "run", "data", "seed") },
		w.Close,
		packer.Close,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("initramfs: %w", err)
		}
	}
	return os.WriteFile(target, archive.Bytes(), 0o600)
}

// addBusybox adds busybox with a link for each of its commands.
func addBusybox(ctx context.Context, w *initramfs.Writer, busybox string) error {
	data, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	if err := w.File("bin/busybox", 0o755, data); err != nil {
		return err
	}
	names, err := exec.CommandContext(ctx, busybox, "--list-full").Output()
	if err != nil {
		return fmt.Errorf("asking busybox for its commands: %w", err)
	}
	for _, name := range strings.Fields(string(names)) {
		if name == "bin/busybox" {
			continue
		}
		if err := w.Symlink(strings.TrimPrefix(name, "usr/"), "/bin/busybox"); err != nil {
			return err
		}
	}
	return nil
}

func addTree(w *initramfs.Writer, dir string) error {
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		return w.File(rel, info.Mode(), data)
	})
}

// addModules adds kernel modules, and the lists /modules/first and /modules/later of those to insert, in order.
func (b *Builder) addModules(w *initramfs.Writer, root, release string) error {
	modules, err := initramfs.OpenModules(os.DirFS(filepath.Join(root, "usr", "lib", "modules", release)))
	if err != nil {
		return err
	}
	first, err := words(b.source("tiny", "modules"))
	if err != nil {
		return err
	}
	later, err := words(b.source("tiny", "modules.later"))
	if err != nil {
		return err
	}
	early, err := modules.Resolve(first...)
	if err != nil {
		return err
	}
	all, err := modules.Resolve(append(first, later...)...)
	if err != nil {
		return err
	}
	return errors.Join(writeModules(w, "first", early), writeModules(w, "later", all[len(early):]))
}

func writeModules(w *initramfs.Writer, list string, modules []initramfs.Module) error {
	var index strings.Builder
	for _, module := range modules {
		fmt.Fprintln(&index, module.Name)
		if err := w.File(path.Join("modules", module.Name+".ko"), 0o644, module.Data); err != nil {
			return err
		}
	}
	return w.File("modules/"+list, 0o644, []byte(index.String()))
}

func (b *Builder) addGuestd(ctx context.Context, w *initramfs.Writer) error {
	program := b.Roots.Store.Path("programs/guestd")
	if err := gobuild.Build(ctx, gobuild.Program{Dir: b.Repository, Package: "./test/guests/tiny/guestd"}, program); err != nil {
		return err
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	return w.File("bin/guestd", 0o755, data)
}

func addEmptyDirs(w *initramfs.Writer, names ...string) error {
	for _, name := range names {
		if err := w.Dir(name, 0o755); err != nil {
			return err
		}
	}
	return nil
}
