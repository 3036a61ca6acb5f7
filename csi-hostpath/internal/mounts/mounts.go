// Package mounts is what the driver needs of the kernel's mount table: small tmpfs directories that carry the state of
// a staged volume, bind mounts of single files, and a table that can be asked what is mounted where and from what.
package mounts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	mountutils "k8s.io/mount-utils"
)

// Mount is one line of the mount table (proc_pid_mountinfo(5)).
type Mount struct {
	Point  string // where
	Root   string // which directory or file of the file system
	Type   string // file system
	Source string // device, or the name that a tmpfs was given
	Major  uint32
	Minor  uint32
}

// Table is the mount table at one moment, in the order of the mounts.
type Table []Mount

// Read returns the mount table of this process.
func Read() (Table, error) {
	infos, err := mountutils.ParseMountInfo("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	table := make(Table, 0, len(infos))
	for _, info := range infos {
		table = append(table, Mount{
			Point: unescape(info.MountPoint), Root: unescape(info.Root), Type: info.FsType, Source: unescape(info.Source),
			Major: uint32(info.Major), Minor: uint32(info.Minor),
		})
	}
	return table, nil
}

// At returns the topmost mount at a path.
func (t Table) At(path string) (Mount, bool) {
	path = filepath.Clean(path)
	for _, mount := range slices.Backward(t) {
		if mount.Point == path {
			return mount, true
		}
	}
	return Mount{}, false
}

// Below returns the mount points strictly below a directory, the deepest and latest first: the order to unmount them.
func (t Table) Below(dir string) []string {
	prefix := filepath.Clean(dir) + "/"
	var points []string
	for _, mount := range slices.Backward(t) {
		if strings.HasPrefix(mount.Point, prefix) {
			points = append(points, mount.Point)
		}
	}
	return points
}

// WithSource returns the mounts whose source is the given name.
func (t Table) WithSource(source string) []Mount {
	var found []Mount
	for _, mount := range t {
		if mount.Source == source {
			found = append(found, mount)
		}
	}
	return found
}

// Tmpfs mounts a small private directory for root at a path; source is the name that the mount table shows for it.
func Tmpfs(source, path string) error {
	if err := unix.Mount(source, path, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID, "mode=0755,size=1m,nr_inodes=1k"); err != nil {
		return fmt.Errorf("mounting tmpfs at %s: %w", path, err)
	}
	return nil
}

// ReadOnly makes the mount at a path read-only for everybody, without touching its file system.
func ReadOnly(path string) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, path, 0, &attr); err != nil {
		return fmt.Errorf("making %s read-only: %w", path, err)
	}
	return nil
}

// Seal makes the tmpfs at a path read-only itself, not only this mount of it: a container runtime that binds the directory
// elsewhere makes its own mount writable (mount option rw).
func Seal(path string) error {
	if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOEXEC|unix.MS_NOSUID, ""); err != nil {
		return fmt.Errorf("sealing the tmpfs at %s: %w", path, err)
	}
	return nil
}

// Bind mounts a file or directory also at target, which must exist.
func Bind(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding %s to %s: %w", source, target, err)
	}
	return nil
}

// Device mounts the file system of a block device.
func Device(device, target, fsType string, flags uintptr, data string) error {
	if err := unix.Mount(device, target, fsType, flags, data); err != nil {
		return fmt.Errorf("mounting %s (%s) at %s: %w", device, fsType, target, err)
	}
	return nil
}

// Unmount removes every mount at a path; a path without any, or that is not there, is no error.
func Unmount(path string) error {
	for {
		switch err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW); {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return fmt.Errorf("unmounting %s: %w", path, err)
		}
	}
}

// UnmountBelow removes every mount below a path; one at the path itself stays.
func UnmountBelow(path string) error {
	table, err := Read()
	if err != nil {
		return err
	}
	for _, point := range table.Below(path) {
		if err := Unmount(point); err != nil {
			return err
		}
	}
	return nil
}

// UnmountTree removes every mount below a path and at it.
func UnmountTree(path string) error {
	if err := UnmountBelow(path); err != nil {
		return err
	}
	return Unmount(path)
}

// RemovePoint unmounts a path with everything below it and removes the empty file or directory that was the mount
// point. It never removes content.
func RemovePoint(path string) error {
	if err := UnmountTree(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the mount point: %w", err)
	}
	return nil
}

// unescape undoes the octal escapes of mountinfo for blank, tab, newline and backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
