package disks

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/domain"
)

// Kernel finds the files of a direct kernel boot below dir (VM-058). A path that leaves dir, by a symbolic link too, is
// refused.
func Kernel(dir string, wanted api.Kernel) (domain.Kernel, error) {
	if wanted.Path == "" {
		return domain.Kernel{}, nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return domain.Kernel{}, &Error{Path: dir, Err: errors.New("no such volume; kernel needs one")}
	}
	defer func() { _ = root.Close() }()
	found := domain.Kernel{Image: filepath.Join(dir, wanted.Path)}
	problem := regular(root, wanted.Path)
	if wanted.Initrd != "" {
		found.Initrd = filepath.Join(dir, wanted.Initrd)
		problem = errors.Join(problem, regular(root, wanted.Initrd))
	}
	if wanted.Shim != "" {
		found.Shim = filepath.Join(dir, wanted.Shim)
		problem = errors.Join(problem, regular(root, wanted.Shim))
	}
	return found, problem
}

// regular says what keeps QEMU from reading the file.
func regular(root *os.Root, name string) error {
	wrong := func(text string) error {
		return &Error{Path: filepath.Join(root.Name(), name), Err: errors.New(text)}
	}
	f, err := root.Open(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return wrong("no such file; found: " + content(root.FS()))
	case errors.Is(err, fs.ErrPermission):
		return wrong(fmt.Sprintf("user %d cannot open it", os.Getuid()))
	case err != nil:
		return wrong(oneCause(err) + "; found: " + content(root.FS()))
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return wrong("not a regular file; found: " + content(root.FS()))
	}
	return nil
}

// oneCause is the error without the path, which the message begins with.
func oneCause(err error) string {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		return path.Err.Error()
	}
	return err.Error()
}

// maxShown is how many files a message names.
const maxShown = 8

// content names the first files of a volume.
func content(volume fs.FS) string {
	var names []string
	_ = fs.WalkDir(volume, ".", func(name string, entry fs.DirEntry, err error) error { // what cannot be read is not shown
		if err == nil && entry.Type().IsRegular() {
			names = append(names, name)
		}
		if len(names) > maxShown {
			names[maxShown] = "…"
			return fs.SkipAll
		}
		return nil
	})
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}
