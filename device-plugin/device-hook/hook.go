package main

import (
	"syscall"
	"unsafe"
)

// Resource numbers of prlimit(2) that the syscall package does not name.
const (
	rlimitMemlock = 8
	rlimitRTPrio  = 14
)

const unlimited = ^uint64(0)

// maxState bounds the container state that the runtime writes to standard input.
const maxState = 1 << 20

func start() string {
	args, err := arguments()
	if err != nil {
		return "reading the arguments: " + err.Error()
	}
	return run(syscall.Stdin, args)
}

// arguments returns the arguments without the program's name. It reads them from procfs, since package os would be
// most of such a binary.
func arguments() ([]string, error) {
	fd, err := syscall.Open("/proc/self/cmdline", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	line, err := readAll(fd)
	if err != nil {
		return nil, err
	}
	return splitArguments(line), nil
}

// run reads the state of the container (OCI runtime specification, "State") and applies one limit per argument.
// It returns what went wrong, or nothing.
func run(stdin int, args []string) string {
	if len(args) == 0 {
		return "no limit given; want memlock=unlimited, rtprio=N"
	}
	state, err := readAll(stdin)
	if err != nil {
		return "reading the container state: " + err.Error()
	}
	pid, ok := findPID(state)
	if !ok {
		return "the container state has no pid"
	}
	for _, arg := range args {
		resource, value, ok := parseLimit(arg)
		if !ok {
			return arg + ": want memlock=unlimited or rtprio=N, N from 0 to 99"
		}
		if err := raise(pid, resource, value); err != nil {
			return arg + ": raising the limit: " + err.Error()
		}
	}
	return ""
}

// raise lifts the soft and the hard limit to at least value; a limit that is higher already stays.
func raise(pid, resource int, value uint64) error {
	var limit syscall.Rlimit
	if err := prlimit(pid, resource, nil, &limit); err != nil {
		return err
	}
	if limit.Cur >= value && limit.Max >= value {
		return nil
	}
	limit.Cur, limit.Max = max(limit.Cur, value), max(limit.Max, value)
	return prlimit(pid, resource, &limit, nil)
}

func prlimit(pid, resource int, set, get *syscall.Rlimit) error {
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(pid), uintptr(resource),
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(get)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func readAll(fd int) ([]byte, error) {
	var data []byte
	chunk := make([]byte, 4096)
	for {
		n, err := syscall.Read(fd, chunk)
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil:
			return nil, err
		case n == 0:
			return data, nil
		}
		if data = append(data, chunk[:n]...); len(data) > maxState {
			return nil, syscall.EFBIG
		}
	}
}
