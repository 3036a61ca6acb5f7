// Package shrink makes a process that mostly waits small: a VM Pod lives for months, and every page counts once per VM.
// It is used by the reaper as well, so that it imports next to nothing.
package shrink

import (
	"bytes"
	"strconv"
	"syscall"
)

// Code gives back the pages of code of the program and its libraries; the kernel maps those that are
// needed again, from its page cache. They are clean pages of files that cannot be written through these mappings, so
// nothing is lost (madvise(2), MADV_DONTNEED).
func Code() {
	fd, err := syscall.Open("/proc/self/maps", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer func() { _ = syscall.Close(fd) }()
	var buf [8192]byte
	kept := 0
	for {
		n, err := syscall.Read(fd, buf[kept:])
		if err != nil || n <= 0 {
			return
		}
		data := buf[:kept+n]
		end := bytes.LastIndexByte(data, '\n') + 1
		for line := range bytes.Lines(data[:end]) {
			if from, to, ok := readOnlyFile(line); ok {
				_, _, _ = syscall.RawSyscall(syscall.SYS_MADVISE, from, to-from, syscall.MADV_DONTNEED)
			}
		}
		kept = copy(buf[:], data[end:])
	}
}

// readOnlyFile parses a line of /proc/PID/maps, "from-to perms offset dev inode path" (proc_pid_maps(5)), and picks the
// mappings of code. Those of constants are left: the dynamic linker wrote relocations into some of them before it
// protected them, and such pages are lost when they are dropped.
func readOnlyFile(line []byte) (from, to uintptr, ok bool) {
	f := bytes.Fields(line)
	if len(f) != 6 || len(f[1]) != 4 || f[5][0] != '/' || f[1][1] != '-' || f[1][3] != 'p' || f[1][2] != 'x' {
		return 0, 0, false
	}
	a, b, found := bytes.Cut(f[0], []byte("-"))
	lo, err1 := strconv.ParseUint(string(a), 16, 64)
	hi, err2 := strconv.ParseUint(string(b), 16, 64)
	return uintptr(lo), uintptr(hi), found && err1 == nil && err2 == nil && hi > lo
}
