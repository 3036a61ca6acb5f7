package launcher

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// innermostEnv marks the process that runs a guest in a guest of the guest in which the tests run.
const innermostEnv = "PODVIRT_TEST_INNERMOST"

// innermostSays is what it prints.
const innermostSays = "a guest of the guest says %d"

// Requests of KVM (linux: include/uapi/linux/kvm.h).
const (
	kvmCreateVM      = 0xae01
	kvmVCPUMmapSize  = 0xae04
	kvmCreateVCPU    = 0xae41
	kvmRun           = 0xae80
	kvmSetMemory     = 0x4020ae46
	kvmGetSregs      = 0x8138ae83
	kvmSetSregs      = 0x4138ae84
	kvmSetRegs       = 0x4090ae82
	kvmExitIO        = 2
	kvmExitHLT       = 5
	kvmReasonAt      = 8  // of struct kvm_run
	kvmDataOffsetAt  = 40 // of its member io
	kvmRIP, kvmFlags = 16, 17
)

// add7 adds in real mode and says the sum: mov al,6; add al,1; out 0xe9,al; hlt.
var add7 = [8]byte{0xb0, 6, 0x04, 1, 0xe6, 0xe9, 0xf4}

// TestInnermost is the program of a VM of TestKVM.
func TestInnermost(t *testing.T) {
	if os.Getenv(innermostEnv) == "" {
		t.Skip("only in a VM of make test-kvm")
	}
	if err := runInnermost(); err != nil {
		t.Fatal(err)
	}
}

// runInnermost runs a few instructions under KVM and prints what they say.
func runInnermost() error {
	device, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	machine, err := ioctl(device, kvmCreateVM, 0)
	if err != nil {
		return fmt.Errorf("a machine: %w", err)
	}
	memory, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	copy(memory, add7[:])
	region := struct {
		slot, flags       uint32
		at, size, address uint64
	}{size: uint64(len(memory)), address: uint64(uintptr(unsafe.Pointer(&memory[0])))}
	if _, err := ioctl(machine, kvmSetMemory, uintptr(unsafe.Pointer(&region))); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	cpu, err := ioctl(machine, kvmCreateVCPU, 0)
	if err != nil {
		return fmt.Errorf("a CPU: %w", err)
	}
	size, err := ioctl(device, kvmVCPUMmapSize, 0)
	if err != nil {
		return err
	}
	run, err := unix.Mmap(cpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if err := realMode(cpu); err != nil {
		return err
	}
	if err := exit(cpu, run, kvmExitIO); err != nil {
		return err
	}
	fmt.Fprintf(os.Stdout, innermostSays+"\n", run[binary.NativeEndian.Uint64(run[kvmDataOffsetAt:])])
	return exit(cpu, run, kvmExitHLT)
}

// realMode has the CPU begin at address 0.
func realMode(cpu int) error {
	var special [312]byte // struct kvm_sregs begins with the code segment: base, limit, selector
	if _, err := ioctl(cpu, kvmGetSregs, uintptr(unsafe.Pointer(&special))); err != nil {
		return err
	}
	clear(special[:8])
	clear(special[12:14])
	registers := [18]uint64{kvmRIP: 0, kvmFlags: 2}
	_, err := ioctl(cpu, kvmSetSregs, uintptr(unsafe.Pointer(&special)))
	if err == nil {
		_, err = ioctl(cpu, kvmSetRegs, uintptr(unsafe.Pointer(&registers)))
	}
	return err
}

var errReason = errors.New("another reason of the exit")

// exit runs the guest until it needs something, which must be what is wanted.
func exit(cpu int, run []byte, want uint32) error {
	for {
		_, err := ioctl(cpu, kvmRun, 0)
		if errors.Is(err, unix.EINTR) { // a signal of Go's scheduler
			continue
		}
		if reason := binary.NativeEndian.Uint32(run[kvmReasonAt:]); err == nil && reason != want {
			err = fmt.Errorf("%w: %d, want %d", errReason, reason, want)
		}
		return err
	}
}

func ioctl(fd int, request, argument uintptr) (int, error) {
	result, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, argument)
	if errno != 0 {
		return 0, errno
	}
	return int(result), nil
}
