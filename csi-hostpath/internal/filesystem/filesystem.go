// Package filesystem makes the file systems inside fs.img. A file-system image is what holds the size of a volume
// against every user of it: a project ID of a quota can be changed by the owner of a file, the end of a device cannot.
package filesystem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"podvirt.dev/csi-hostpath/internal/loop"
	"podvirt.dev/csi-hostpath/internal/mounts"
)

// Types of file systems, in the words of csi.storage.k8s.io/fstype (storage.md 2.3).
const (
	XFS   = "xfs"
	Ext4  = "ext4"
	Btrfs = "btrfs"
)

const mib = 1 << 20

// minXFS is the smallest file system mkfs.xfs makes; below it ext4 is the default (storage.md 2.3, ST-020).
const minXFS = 300 * mib

// minBtrfs is what mkfs.btrfs needs with separate data and metadata.
const minBtrfs = 114 * mib

// Types returns the known types.
func Types() []string { return []string{XFS, Ext4, Btrfs} }

// Default returns the type for an image of the given size in bytes.
func Default(size int64) string {
	if size < minXFS {
		return Ext4
	}
	return XFS
}

// Check says why an image of this size cannot hold the type.
func Check(fsType string, size int64) error {
	switch {
	case !slices.Contains(Types(), fsType):
		return fmt.Errorf("fstype %q: not one of %s", fsType, strings.Join(Types(), ", "))
	case fsType == XFS && size < minXFS:
		return errors.New("fstype xfs needs 300Mi; use ext4")
	case fsType == Btrfs && size < minBtrfs:
		return errors.New("fstype btrfs needs 114Mi; use ext4")
	}
	return nil
}

// CheckDisk says why an image of the type cannot hold one disk of this size: btrfs writes every change to a new place,
// for which a file system that is as large as its one file has no room.
func CheckDisk(fsType string, size int64) error {
	if fsType == Btrfs {
		return errors.New("fstype btrfs: not for content disk; use xfs or ext4")
	}
	return Check(fsType, size)
}

// SizeFor returns the size in bytes of an image whose file system has room for one disk of the given size. The
// allowance is for the log and the tables (measured with xfsprogs 6.13 and e2fsprogs 1.47: 0.2 percent and 100 MiB,
// 0.2 percent and 18 MiB) and for the list of extents of a disk that was written in blocks of 4 KiB in random order
// (0.4 percent).
func SizeFor(fsType string, disk int64) int64 {
	size := disk + disk/100 + 112*mib
	if fsType == Ext4 {
		size = disk + disk/64 + 24*mib
	}
	return (size + mib - 1) / mib * mib
}

// CommandError is a program that failed.
type CommandError struct {
	Argv     []string
	ExitCode int
	Stderr   string
	Err      error
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("%s: exit code %d: %s", strings.Join(e.Argv, " "), e.ExitCode, strings.TrimSpace(e.Stderr))
}

func (e *CommandError) Unwrap() error { return e.Err }

// Make makes a file system of the type in a sparse file. oneFile means that it will hold nothing but disk.img.
func Make(ctx context.Context, fsType, image string, oneFile bool) error {
	var argv []string
	switch fsType {
	case Ext4:
		// Unused tables stay holes: the file is new and reads as zero. -m 0: nothing is kept back for root.
		argv = []string{"mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"}
		if oneFile {
			argv = append(argv, "-N", "16", "-O", "^resize_inode", "-J", "size=8")
		}
	case XFS:
		argv = []string{"mkfs.xfs", "-q", "-f", "-K"}
		if oneFile {
			argv = append(argv, "-m", "rmapbt=0,reflink=0") // they set blocks aside that one disk never needs
		}
	case Btrfs:
		argv = []string{"mkfs.btrfs", "-q", "-f", "-K"}
	default:
		return Check(fsType, 0)
	}
	return run(ctx, append(argv, image)...)
}

// MountData returns the options of mount(2) that the type needs beside the user's.
func MountData(fsType string) string {
	switch fsType {
	case XFS:
		return "nouuid" // snapshots and clones of one image may be mounted beside each other
	case Ext4:
		return "errors=remount-ro"
	}
	return ""
}

// Room returns the bytes an ordinary user can still write to the file system at a path.
func Room(path string) (int64, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return int64(stat.Bavail) * stat.Bsize, nil
}

func run(ctx context.Context, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	if err == nil {
		return nil
	}
	code := -1
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	}
	if stderr.Len() == 0 {
		stderr.WriteString(err.Error())
	}
	return &CommandError{Argv: argv, ExitCode: code, Stderr: stderr.String(), Err: err}
}

// MountOptions say how an image is mounted.
type MountOptions struct {
	Type     string
	DirectIO bool
	ReadOnly bool
	Discard  bool    // what is freed inside is given back to the pool, unless Data says otherwise
	Flags    uintptr // MS_… of mount(2)
	Data     string  // further options of the type
}

// MountImage mounts the file system in an image file. The loop device under it clears itself with the mount.
func MountImage(image, target string, opts MountOptions) error {
	device, held, err := loop.Attach(image, loop.Options{DirectIO: opts.DirectIO, ReadOnly: opts.ReadOnly, AutoClear: true})
	if err != nil {
		return err
	}
	flags := opts.Flags | unix.MS_NODEV
	if opts.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	options := []string{MountData(opts.Type), opts.Data}
	if opts.Discard && !strings.Contains(opts.Data, "discard") {
		options = append(options, "discard")
	}
	data := strings.Join(slices.DeleteFunc(options, func(o string) bool { return o == "" }), ",")
	return errors.Join(mounts.Device(device.Path, target, opts.Type, flags, data), held.Close())
}

// Grow lets a mounted file system take all of its image, which was made larger.
func Grow(ctx context.Context, fsType, image, at string) error {
	if err := loop.Resize(image); err != nil {
		return err
	}
	switch fsType {
	case Ext4:
		table, err := mounts.Read()
		if err != nil {
			return err
		}
		mount, mounted := table.At(at)
		if !mounted {
			return fmt.Errorf("nothing is mounted at %s", at)
		}
		return run(ctx, "resize2fs", mount.Source)
	case XFS:
		return run(ctx, "xfs_growfs", at)
	case Btrfs:
		return run(ctx, "btrfs", "filesystem", "resize", "max", at)
	}
	return Check(fsType, 0)
}

// GrowAtRest is Grow for an image that is not mounted, where the type can do that: done says whether it could. What is
// mounted needs CAP_SYS_RESOURCE to grow (fs/ext4/ioctl.c), which not everybody has.
func GrowAtRest(ctx context.Context, fsType, image string) (done bool, err error) {
	if fsType != Ext4 {
		return false, nil
	}
	err = run(ctx, "e2fsck", "-f", "-p", image) // resize2fs wants it, and the journal of a clone is to be replayed
	const corrected = 1
	if failed, ok := errors.AsType[*CommandError](err); ok && failed.ExitCode == corrected {
		err = nil
	}
	if err != nil {
		return false, err
	}
	return true, run(ctx, "resize2fs", image)
}

// NewIdentity makes a copied file system one that the kernel can mount beside its origin: btrfs takes two of one
// identity for one.
func NewIdentity(ctx context.Context, fsType, image string) error {
	if fsType != Btrfs {
		return nil
	}
	return run(ctx, "btrfstune", "-f", "-m", image)
}

// Freeze holds all writes to a mounted file system back and brings it to a state that needs no recovery; Thaw lets them
// go on. A file system that is frozen, or thawed, already is no error (FIFREEZE, ioctl_fsfreeze(2)).
func Freeze(at string) error { return freezing(at, fiFreeze, unix.EBUSY) }

// Thaw is the end of Freeze.
func Thaw(at string) error { return freezing(at, fiThaw, unix.EINVAL) }

// FIFREEZE and FITHAW (include/uapi/linux/fs.h).
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

func freezing(at string, request uint, already error) error {
	dir, err := os.Open(at)
	if err != nil {
		return err
	}
	err = unix.IoctlSetInt(int(dir.Fd()), request, 0)
	if errors.Is(err, already) {
		err = nil
	}
	if err != nil {
		err = &os.PathError{Op: "freezing or thawing", Path: at, Err: err}
	}
	return errors.Join(err, dir.Close())
}

// CopyTree copies a directory with all that it is.
func CopyTree(ctx context.Context, from, to string, share bool) error {
	reflink := "--reflink=never"
	if share {
		reflink = "--reflink=always"
	}
	return errors.Join(run(ctx, "cp", "--archive", "--sparse=auto", reflink, "--no-target-directory", from, to), run(ctx, "sync", "--file-system", to))
}
