package program

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"podvirt.dev/csi-hostpath/internal/pooltest"
)

// envAllCalls makes TestKilledAfterSystemCalls kill after each call, which takes long; else it takes a share of them.
const envAllCalls = "PODVIRT_TEST_ALL_KILLS"

// share of the system calls after which the driver is killed in an ordinary run.
const share = 12

// TestKilledAfterSystemCalls kills the driver after the n-th system call of a volume's life that changes something on
// disk or in the mount table. Calls that only read leave nothing different behind (ST-023).
func TestKilledAfterSystemCalls(t *testing.T) {
	pool := pooltest.FileSystem(t, "xfs", 4<<30)
	step := share
	if os.Getenv(envAllCalls) != "" {
		step = 1
	}
	for i, shape := range shapes() {
		steps := (*life).copied
		if shape.name == "files" {
			steps = (*life).whole
		}
		t.Run(shape.name, func(t *testing.T) {
			kills := 0
			for n := 1 + i; ; n += step { // another share for each shape
				died := lifeWithDeath(t, pool, shape, steps, func(p *process) { p.startTraced(n) })
				pooltest.ExpectNothingLeft(t, pool)
				if t.Failed() {
					t.Fatalf("the driver had been killed after system call %d", n)
				}
				if !died {
					t.Logf("killed %d times within %d system calls", kills, n)
					return
				}
				kills++
			}
		})
	}
}

// startTraced starts a driver that is killed after its n-th system call that changes something.
func (p *process) startTraced(n int) {
	p.t.Helper()
	p.prepare(0)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // only the thread that started it is its tracer
		err := p.cmd.Start()
		started <- err
		if err == nil {
			(&tracer{pid: p.cmd.Process.Pid, left: n, entered: map[int]bool{}}).run()
		}
	}()
	if err := <-started; err != nil {
		p.t.Fatal(err)
	}
}

// tracer follows all threads of a process (ptrace(2)).
type tracer struct {
	pid     int
	left    int // calls until the end
	entered map[int]bool
}

// notThread lets wait4 see only what this thread waits for (__WNOTHREAD, include/uapi/linux/wait.h).
const notThread = 0x20000000

// systemCallStop is how a stop for a system call looks with PTRACE_O_TRACESYSGOOD.
const systemCallStop = syscall.SIGTRAP | 0x80

func (tr *tracer) run() {
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(tr.pid, &status, syscall.WALL|notThread, nil); err != nil {
		return
	}
	_ = syscall.PtraceSetOptions(tr.pid, syscall.PTRACE_O_TRACESYSGOOD|syscall.PTRACE_O_TRACECLONE)
	_ = syscall.PtraceSyscall(tr.pid, 0)
	for {
		tid, err := syscall.Wait4(-1, &status, syscall.WALL|notThread, nil)
		if err != nil {
			return // the process and all its threads are gone
		}
		if !status.Stopped() {
			continue
		}
		deliver := 0
		switch signal := status.StopSignal(); {
		case signal == systemCallStop:
			tr.stop(tid)
		case signal != syscall.SIGTRAP && signal != syscall.SIGSTOP:
			deliver = int(signal)
		}
		_ = syscall.PtraceSyscall(tid, deliver)
	}
}

// stop is the beginning or the end of a system call.
func (tr *tracer) stop(tid int) {
	if tr.entered[tid] = !tr.entered[tid]; tr.entered[tid] {
		return
	}
	var regs syscall.PtraceRegs
	if syscall.PtraceGetRegs(tid, &regs) != nil || int64(regs.Rax) < 0 || !changes(tr.pid, &regs) {
		return
	}
	if tr.left--; tr.left == 0 {
		_ = syscall.Kill(tr.pid, syscall.SIGKILL)
	}
}

// changes says whether a successful system call changed a file, a directory, a device or the mount table.
func changes(pid int, regs *syscall.PtraceRegs) bool {
	switch regs.Orig_rax {
	case unix.SYS_OPENAT:
		return regs.Rdx&unix.O_CREAT != 0
	case unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_PWRITEV, unix.SYS_WRITEV:
		name, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, regs.Rdi))
		return err == nil && strings.HasPrefix(name, "/") && !strings.HasSuffix(name, ".log")
	case unix.SYS_IOCTL:
		switch regs.Rsi {
		case unix.LOOP_CONFIGURE, unix.LOOP_CLR_FD, unix.LOOP_SET_CAPACITY, unix.FICLONE, 0xc0045877, 0xc0045878: // FIFREEZE, FITHAW
			return true
		}
		return false
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNCFS, unix.SYS_FTRUNCATE, unix.SYS_TRUNCATE, unix.SYS_FALLOCATE,
		unix.SYS_RENAME, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_MKDIR, unix.SYS_MKDIRAT, unix.SYS_RMDIR,
		unix.SYS_UNLINK, unix.SYS_UNLINKAT, unix.SYS_MKNOD, unix.SYS_MKNODAT, unix.SYS_CHMOD, unix.SYS_FCHMOD, unix.SYS_FCHMODAT,
		unix.SYS_CHOWN, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_MOUNT_SETATTR,
		unix.SYS_COPY_FILE_RANGE, unix.SYS_SENDFILE:
		return true
	}
	return false
}
