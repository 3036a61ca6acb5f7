package disks

import (
	"golang.org/x/sys/unix"

	"podvirt.dev/launcher/internal/domain"
)

// room is how many bytes must be free where a disk is a file, for a guest that has run out of them to go on.
const room = 1 << 20

// Works reads the beginning of a disk past the page cache where that is possible, and looks for free space where writes need it.
func Works(d domain.Disk) bool {
	flags := unix.O_RDONLY | unix.O_CLOEXEC
	if d.DirectIO {
		flags |= unix.O_DIRECT
	}
	fd, err := unix.Open(d.Source, flags, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned, as O_DIRECT wants it
	if err != nil {
		return false
	}
	defer func() { _ = unix.Munmap(page) }()
	if _, err := unix.Pread(fd, page, 0); err != nil {
		return false
	}
	if d.Block || readOnly(d.Options) {
		return true
	}
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Bavail*uint64(st.Bsize) >= room
}
