// Package initramfs makes the archives that a Linux kernel unpacks as its first root file system, and finds the kernel
// modules that belong into them.
package initramfs

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// Writer writes a cpio archive in the "newc" format (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
// Names are relative to the root, without a leading slash; missing parent directories are added. After an error all
// further calls return it.
type Writer struct {
	w     io.Writer
	n     int64
	inode int
	dirs  map[string]bool
	err   error
}

// NewWriter returns a Writer on w.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: w, dirs: map[string]bool{".": true}}
}

// File types of st_mode.
const (
	typeDir     = 0o040000
	typeFile    = 0o100000
	typeSymlink = 0o120000
	typeChar    = 0o020000
)

// File adds a regular file.
func (a *Writer) File(name string, mode fs.FileMode, data []byte) error {
	return a.node(name, typeFile|uint32(mode.Perm()), data, device{})
}

// Symlink adds a symbolic link.
func (a *Writer) Symlink(name, target string) error {
	return a.node(name, typeSymlink|0o777, []byte(target), device{})
}

// Dir adds a directory unless it is there already.
func (a *Writer) Dir(name string, mode fs.FileMode) error {
	name = path.Clean(name)
	if a.dirs[name] {
		return a.err
	}
	a.dirs[name] = true
	return a.node(name, typeDir|uint32(mode.Perm()), nil, device{})
}

// CharDevice adds a character device node. The kernel opens /dev/console before any program could mount devtmpfs.
func (a *Writer) CharDevice(name string, mode fs.FileMode, major, minor uint32) error {
	return a.node(name, typeChar|uint32(mode.Perm()), nil, device{major, minor})
}

// Close ends the archive. It does not close the writer below.
func (a *Writer) Close() error {
	a.record("TRAILER!!!", 0, nil, device{})
	return a.err
}

type device struct{ major, minor uint32 }

func (a *Writer) node(name string, mode uint32, data []byte, dev device) error {
	name = path.Clean(name)
	if strings.HasPrefix(name, "/") || strings.HasPrefix(name, "..") {
		return fmt.Errorf("adding %q to an initramfs: want a name relative to the root", name)
	}
	if err := a.Dir(path.Dir(name), 0o755); err != nil {
		return err
	}
	a.record(name, mode, data, dev)
	return a.err
}

// record writes one header with name and data, each padded to 4 bytes. All numbers are 8 hexadecimal digits: inode, mode,
// uid, gid, links, mtime, size, the device that holds the file (2), the device that the file is (2), name length, check.
func (a *Writer) record(name string, mode uint32, data []byte, dev device) {
	a.inode++
	a.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, dev.major, dev.minor, len(name)+1, 0))
	a.write(append([]byte(name), 0))
	a.pad()
	a.write(data)
	a.pad()
}

func (a *Writer) write(p []byte) {
	if a.err != nil {
		return
	}
	n, err := a.w.Write(p)
	a.n += int64(n)
	a.err = err
}

func (a *Writer) pad() {
	if rest := a.n % 4; rest != 0 {
		a.write(make([]byte, 4-rest))
	}
}
