package machine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// The words by which this program calls itself.
const (
	VerbPrepare = "machine-prepare"
	VerbRun     = "machine-run"
)

// Process is the first process of a machine, seen from the host.
type Process struct {
	cmd     *exec.Cmd
	release io.WriteCloser
}

// Start starts a machine's first process in new namespaces, where it waits for Release.
// The calling goroutine must be locked to its thread and stay alive: the machine is killed when the thread ends.
func Start(spec string, log io.Writer) (*Process, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close() // the child has its own copy, and nothing is written on this side
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{"podvirt-machine", VerbPrepare, spec}, Stdin: read, Stdout: log, Stderr: log}
	cmd.SysProcAttr = &unix.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
		Setsid:     true,
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, write.Close())
	}
	return &Process{cmd: cmd, release: write}, nil
}

// PID is the process's number on the host.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Release lets the machine boot. Its network and cgroups must be complete.
func (p *Process) Release() error {
	_, err := p.release.Write([]byte("go"))
	return errors.Join(err, p.release.Close())
}

// Kill ends the machine and everything in it.
func (p *Process) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Wait waits for the machine's end. The kernel reports it when every process of the PID namespace is gone.
func (p *Process) Wait() error { return p.cmd.Wait() }

// Prepare is what a machine's first process does first: it waits for its release, takes its cgroups as the root of what
// it sees, and becomes VerbRun in the same process.
func Prepare(spec string, stdin io.Reader) error {
	word, err := io.ReadAll(stdin)
	if err != nil {
		return err
	}
	if string(word) != "go" {
		return errors.New("the supervisor ended before the machine was complete")
	}
	// Both the namespace and the signal belong to a thread, and the one that calls exec is the one that lives on.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("cgroup namespace: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("parent death signal: %w", err)
	}
	return unix.Exec("/proc/self/exe", []string{"podvirt-machine", VerbRun, spec}, os.Environ())
}
