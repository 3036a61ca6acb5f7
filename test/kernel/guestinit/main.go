// Command guestinit is the first process of a guest that runs tests. It mounts the kernel's file systems, loads the drivers
// of the devices it finds, runs one program, says how it ended, and powers off. Called as modprobe by the kernel it loads a
// module, so that a test has network types, file systems and packet filters as on a full Debian.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"podvirt.dev/test/kernel/internal/job"
)

func main() {
	if filepath.Base(os.Args[0]) == filepath.Base(job.Modprobe) {
		if err := modprobe(os.Args[1:]); err != nil {
			_ = os.WriteFile("/dev/kmsg", fmt.Appendf(nil, "guestinit: modprobe %q: %v\n", os.Args[1:], err), 0)
			os.Exit(1)
		}
		return
	}
	report(run())
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintln(os.Stderr, "guestinit: powering off:", err) // and the kernel panics, for its first process ends
	}
}

// report hands the result to the runner.
func report(result job.Result) {
	port, err := openPort(job.ResultPort)
	if err == nil {
		err = errors.Join(json.NewEncoder(port).Encode(result), drain(port), port.Close())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "guestinit: reporting the result:", err)
	}
}

func run() job.Result {
	if err := prepare(); err != nil {
		return job.Result{Failure: err.Error()}
	}
	data, err := os.ReadFile("/" + job.File)
	if err != nil {
		return job.Result{Failure: err.Error()}
	}
	var j job.Job
	if err := json.Unmarshal(data, &j); err != nil {
		return job.Result{Failure: err.Error()}
	}
	output, err := openPort(job.OutputPort)
	if err != nil {
		return job.Result{Failure: err.Error()}
	}
	cmd := exec.Command("/"+job.Program, j.Args...) // no context: the machine ends with its program
	cmd.Dir = filepath.Dir("/" + job.Program)
	cmd.Env = append(j.Env, "PATH=/sbin:/bin", "HOME=/root", "TMPDIR=/tmp")
	cmd.Stdout, cmd.Stderr = output, output
	err = cmd.Run()
	err = errors.Join(ignoreExit(err), drain(output), output.Close())
	if err != nil {
		return job.Result{Failure: err.Error()}
	}
	return job.Result{ExitCode: cmd.ProcessState.ExitCode()}
}

// ignoreExit drops the error of a program that ran and failed: its exit code says it.
func ignoreExit(err error) error {
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		return nil
	}
	return err
}

// openPort opens a serial port as a plain stream of bytes.
func openPort(name string) (*os.File, error) {
	f, err := os.OpenFile("/dev/"+name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	settings, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("setting up %s: %w", name, err), f.Close())
	}
	settings.Oflag &^= unix.OPOST
	settings.Lflag = 0
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, settings); err != nil {
		return nil, errors.Join(fmt.Errorf("setting up %s: %w", name, err), f.Close())
	}
	return f, nil
}

// drain waits until all that was written has left the port.
func drain(port *os.File) error {
	return unix.IoctlSetInt(int(port.Fd()), unix.TCSBRK, 1)
}
