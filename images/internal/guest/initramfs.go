package guest

import (
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

	"podvirt.dev/internal/initramfs"
)

// writeInitramfs writes what the steps add, and the directories and the device that every guest needs. The archive is
// compressed: GRUB reads from a BIOS so slowly that it pays, and the kernel knows LZ4 in its oldest form only.
func writeInitramfs(target string, steps func(w *initramfs.Writer) []func() error) (err error) {
	f, err := os.Create(target)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	packer := lz4.NewWriter(f)
	if err := packer.Apply(lz4.LegacyOption(true), lz4.CompressionLevelOption(lz4.Level9)); err != nil {
		return err
	}
	w := initramfs.NewWriter(packer)
	all := append(steps(w),
		func() error { return w.CharDevice("dev/console", 0o600, 5, 1) },
		func() error { return addEmptyDirs(w, "proc", "sys", "root", "tmp", "run", "data", "seed") },
		w.Close,
		packer.Close,
	)
	for _, step := range all {
		if err := step(); err != nil {
			return fmt.Errorf("initramfs: %w", err)
		}
	}
	return nil
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
	for name := range strings.FieldsSeq(string(names)) {
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

// moduleDir is where a root file system has the modules of its kernel.
func moduleDir(root, release string) string {
	return filepath.Join(root, "usr", "lib", "modules", release)
}

// addModules adds the kernel modules that the files first and later name, and the lists /modules/first and /modules/later
// of what to insert, in order. Without a file later there is no such list.
func addModules(w *initramfs.Writer, dir, first, later string) error {
	modules, err := initramfs.OpenModules(os.DirFS(dir))
	if err != nil {
		return err
	}
	firstNames, err := words(first)
	if err != nil {
		return err
	}
	early, err := modules.Resolve(firstNames...)
	if err != nil {
		return err
	}
	if err := writeModules(w, "first", early); err != nil || later == "" {
		return err
	}
	laterNames, err := words(later)
	if err != nil {
		return err
	}
	all, err := modules.Resolve(append(firstNames, laterNames...)...)
	if err != nil {
		return err
	}
	return writeModules(w, "later", all[len(early):])
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

func addEmptyDirs(w *initramfs.Writer, names ...string) error {
	for _, name := range names {
		if err := w.Dir(name, 0o755); err != nil {
			return err
		}
	}
	return nil
}
