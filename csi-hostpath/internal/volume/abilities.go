package volume

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Abilities are what a pool's file system was seen to do, with real files (ST-001).
type Abilities struct {
	FileSystem string // xfs, ext4, btrfs, or the magic number in hex
	Reflink    bool   // FICLONE shares blocks
	DirectIO   bool   // O_DIRECT in blocks of 4 KiB
}

// Measure tries the abilities out in a directory of the file system.
func Measure(dir string) (Abilities, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return Abilities{}, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	result := Abilities{FileSystem: fsName(stat.Type)}
	source, err := os.CreateTemp(dir, "probe.")
	if err != nil {
		return Abilities{}, err
	}
	defer os.Remove(source.Name())
	defer source.Close()
	if _, err := source.Write(make([]byte, 4096)); err != nil {
		return Abilities{}, err
	}
	result.DirectIO = tryDirectIO(source.Name())
	result.Reflink, err = tryReflink(dir, source)
	return result, err
}

func tryDirectIO(name string) bool {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return false
	}
	return f.Close() == nil
}

func tryReflink(dir string, source *os.File) (bool, error) {
	clone, err := os.CreateTemp(dir, "probe.")
	if err != nil {
		return false, err
	}
	defer os.Remove(clone.Name())
	defer clone.Close()
	switch err := unix.IoctlFileClone(int(clone.Fd()), int(source.Fd())); {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.ENOSYS):
		return false, nil
	default:
		return false, fmt.Errorf("trying to share blocks: %w", err)
	}
}

func fsName(magic int64) string {
	switch magic {
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	}
	return fmt.Sprintf("%#x", uint32(magic))
}

// btrfsInfo is BTRFS_IOC_FS_INFO and the part of its answer that matters (include/uapi/linux/btrfs.h).
const btrfsInfo = 0x8400941f

type btrfsInfoAnswer struct {
	maxID   uint64
	devices uint64
	id      [16]byte
	rest    [992]byte
}

// FileSystemID tells one file system from every other one of the machine. The device number does, but for btrfs,
// where each subvolume has a number of its own.
func FileSystemID(path string) (string, error) {
	dir, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &stat); err != nil {
		return "", &os.PathError{Op: "stat", Path: path, Err: err}
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &fs); err != nil {
		return "", &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	if fs.Type != unix.BTRFS_SUPER_MAGIC {
		return fmt.Sprintf("%d:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev)), nil
	}
	var info btrfsInfoAnswer
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), btrfsInfo, uintptr(unsafe.Pointer(&info))); errno != 0 {
		return "", &os.PathError{Op: "BTRFS_IOC_FS_INFO", Path: path, Err: errno}
	}
	return fmt.Sprintf("btrfs:%x", info.id), nil
}
