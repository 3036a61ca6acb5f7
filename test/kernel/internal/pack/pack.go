// Package pack puts a test binary into a first root file system together with what it needs to run in a guest: an init,
// kernel modules and busybox.
package pack

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"podvirt.dev/internal/initramfs"
	"podvirt.dev/test/kernel/internal/job"
)

// Contents are what goes into the archive.
type Contents struct {
	Root    string            // root file system with a kernel and its modules, and busybox
	Release string            // of the kernel
	Init    string            // static program that becomes process 1
	Modules []string          // names; those they depend on are added
	Program string            // static test binary
	Extra   map[string]string // further static programs of the guest's /bin: name, file
	Data    string            // directory that becomes "testdata" in the program's working directory, where it exists
	Job     job.Job
}

// Kernel finds the one kernel of a root file system.
func Kernel(root string) (image, release string, err error) {
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil {
		return "", "", err
	}
	if len(images) != 1 {
		return "", "", fmt.Errorf("%d kernels in %s: want one; go run ./images rootfs kernel makes it", len(images), root)
	}
	return images[0], strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-"), nil
}

// Write writes the archive.
func (c Contents) Write(target string) (err error) {
	f, err := os.Create(target)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buffer := bufio.NewWriterSize(f, 1<<20)
	w := initramfs.NewWriter(buffer)
	steps := []func(*initramfs.Writer) error{c.devices, c.programs, c.modules, c.data, c.job}
	for _, step := range steps {
		if err := step(w); err != nil {
			return fmt.Errorf("packing the guest's root file system: %w", err)
		}
	}
	return errors.Join(w.Close(), buffer.Flush())
}

func (c Contents) devices(w *initramfs.Writer) error {
	for _, dir := range []string{"proc", "sys", "dev", "tmp", "run", "root", "var/lib", "etc"} {
		if err := w.Dir(dir, 0o755); err != nil {
			return err
		}
	}
	return w.CharDevice("dev/console", 0o600, 5, 1)
}

func (c Contents) programs(w *initramfs.Writer) error {
	files := []struct{ name, source string }{
		{"init", c.Init}, {"bin/busybox", filepath.Join(c.Root, "usr", "bin", "busybox")}, {job.Program, c.Program},
	}
	for name, source := range c.Extra {
		files = append(files, struct{ name, source string }{path.Join("bin", name), source})
	}
	for _, file := range files {
		data, err := os.ReadFile(file.source)
		if err != nil {
			return err
		}
		if err := w.File(file.name, 0o755, data); err != nil {
			return err
		}
	}
	if err := w.Symlink(job.Modprobe, "/init"); err != nil {
		return err
	}
	for _, name := range []string{"sh", "cat", "ls", "mount", "dmesg", "chroot", "timeout", "tail", "ip", "sleep", "true"} {
		if err := w.Symlink("bin/"+name, "busybox"); err != nil {
			return err
		}
	}
	return nil
}

// modules adds modules and, in the order of dependence, their names with the aliases by which the kernel asks for them.
func (c Contents) modules(w *initramfs.Writer) error {
	all, err := initramfs.OpenModules(os.DirFS(filepath.Join(c.Root, "usr", "lib", "modules", c.Release)))
	if err != nil {
		return err
	}
	resolved, err := all.Resolve(c.Modules...)
	if err != nil {
		return err
	}
	var index []job.Module
	for _, module := range resolved {
		info, err := module.Info()
		if err != nil {
			return err
		}
		index = append(index, job.Module{Name: module.Name, Needs: info.Depends, Aliases: info.Aliases})
		if err := w.File(path.Join(job.ModuleDir, module.Name+".ko"), 0o644, module.Data); err != nil {
			return err
		}
	}
	return writeJSON(w, job.ModuleIndex, index)
}

func (c Contents) data(w *initramfs.Writer) error {
	if _, err := os.Stat(c.Data); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return filepath.WalkDir(c.Data, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(c.Data, name)
		if err != nil {
			return err
		}
		return w.File(path.Join(path.Dir(job.Program), "testdata", filepath.ToSlash(rel)), info.Mode(), data)
	})
}

func (c Contents) job(w *initramfs.Writer) error {
	return writeJSON(w, job.File, c.Job)
}

func writeJSON(w *initramfs.Writer, name string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return w.File(name, 0o644, data)
}

// Words reads a list of words; # begins a comment. A file that does not exist is an empty list.
func Words(file string) ([]string, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var words []string
	for line := range strings.Lines(string(data)) {
		line, _, _ := strings.Cut(line, "#")
		words = append(words, strings.Fields(line)...)
	}
	return slices.Clip(words), nil
}
