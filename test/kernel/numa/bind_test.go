package numa

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mpolBind is MPOL_BIND (Linux, include/uapi/linux/mempolicy.h).
const mpolBind = 2

// bind lets the pages of a mapping come from one node only (mbind(2), which x/sys/unix does not wrap).
func bind(t *testing.T, memory []byte, node int) {
	t.Helper()
	mask := uint64(1) << node
	_, _, errno := unix.Syscall6(unix.SYS_MBIND, uintptr(unsafe.Pointer(&memory[0])), uintptr(len(memory)), mpolBind,
		uintptr(unsafe.Pointer(&mask)), 64, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
}
