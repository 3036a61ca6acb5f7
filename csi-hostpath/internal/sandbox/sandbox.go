// Package sandbox confines the process that reads what strangers send (ST-061): an ordinary user without privileges, that
// can open no file (Landlock), make no socket and start no program (seccomp), within bounds of memory and of the file it
// writes. What it needs it has as descriptors; connections come from its parent over a [Broker].
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// User is the user and group of the confined process.
const User = 65534

// Descriptors of the confined process beside its standard streams.
const (
	BrokerFD = 3
	OutputFD = 4
)

// Names of the sub-command that is started, and of what it becomes.
const (
	Command  = "import"
	confined = "import-confined"
)

// Limits of the process.
type Limits struct {
	Memory   int64 // bytes of private memory
	FileSize int64 // offset in bytes beyond which nothing can be written
	// NoLandlock lets it start on kernels without Landlock.
	NoLandlock bool
}

// ErrNoLandlock means that the kernel has no Landlock and that it is required.
var ErrNoLandlock = errors.New("the kernel has no Landlock; imports by the driver need it (storage.import.require-landlock)")

// reserved is address space that Go maps without using it, in bytes.
const reserved = 4 << 30

// Args are the arguments that start a process within limits.
func (l Limits) Args() []string {
	return []string{Command, strconv.FormatInt(l.Memory, 10), strconv.FormatInt(l.FileSize, 10), strconv.FormatBool(l.NoLandlock)}
}

// Enter is called by the sub-command [Command] with what follows it. It comes back in a confined process only: the first
// time it replaces the process by one that calls it again.
func Enter(args []string) error {
	if len(args) == 1 && args[0] == confined {
		return filterCalls()
	}
	if len(args) != 3 {
		return errors.New("this command is for the driver itself")
	}
	memory, err := strconv.ParseInt(args[0], 10, 64)
	size, err2 := strconv.ParseInt(args[1], 10, 64)
	noLandlock, err3 := strconv.ParseBool(args[2])
	if err := errors.Join(err, err2, err3); err != nil {
		return err
	}
	// A Landlock domain is of a thread, and whoever executes has only one: the program starts anew inside.
	runtime.LockOSThread()
	if err := restrict(Limits{Memory: memory, FileSize: size, NoLandlock: noLandlock}); err != nil {
		return err
	}
	return fmt.Errorf("starting inside the sandbox: %w", unix.Exec("/proc/self/exe", []string{os.Args[0], Command, confined}, nil))
}

func restrict(limits Limits) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	for resource, limit := range map[int]int64{
		unix.RLIMIT_AS: reserved + limits.Memory, unix.RLIMIT_DATA: limits.Memory, unix.RLIMIT_FSIZE: limits.FileSize,
		unix.RLIMIT_NOFILE: 64, unix.RLIMIT_CORE: 0, unix.RLIMIT_MEMLOCK: 0,
	} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: uint64(limit), Max: uint64(limit)}); err != nil {
			return fmt.Errorf("limit %d: %w", resource, err)
		}
	}
	err := landlock()
	if errors.Is(err, ErrNoLandlock) && limits.NoLandlock {
		return nil
	}
	return err
}

// Landlock reports whether the kernel has Landlock.
func Landlock() bool { return landlockVersion() >= 1 }

func landlockVersion() int {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(version)
}

// landlock forbids all access to files but reading and executing those that this program consists of, and all TCP where
// the kernel can (landlock(7)).
func landlock() error {
	version := landlockVersion()
	if version < 1 {
		return ErrNoLandlock
	}
	var attr unix.LandlockRulesetAttr
	attr.Access_fs = unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1 // version 1: all from EXECUTE to MAKE_SYM
	if version >= 2 {
		attr.Access_fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if version >= 3 {
		attr.Access_fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if version >= 4 {
		attr.Access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	if version >= 5 {
		attr.Access_fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	size := unsafe.Sizeof(attr.Access_fs)
	if version >= 4 {
		size += unsafe.Sizeof(attr.Access_net)
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return fmt.Errorf("landlock_create_ruleset: %w", errno)
	}
	defer unix.Close(int(fd))
	files, err := programFiles()
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := allowProgram(int(fd), file); err != nil {
			return err
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return fmt.Errorf("landlock_restrict_self: %w", errno)
	}
	return nil
}

func allowProgram(ruleset int, file string) error {
	fd, err := unix.Open(file, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: file, Err: err}
	}
	defer unix.Close(fd)
	rule := unix.LandlockPathBeneathAttr{
		Allowed_access: unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE, Parent_fd: int32(fd),
	}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("landlock_add_rule %s: %w", file, errno)
	}
	return nil
}

// programFiles are this program and, where it is not static, its loader and libraries.
func programFiles() ([]string, error) {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	files, seen := []string{"/proc/self/exe"}, map[string]bool{}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(maps)) {
		fields := strings.Fields(line)
		if len(fields) < 6 || !strings.HasPrefix(fields[5], "/") || seen[fields[5]] || fields[5] == self {
			continue
		}
		seen[fields[5]] = true
		files = append(files, fields[5])
	}
	return files, nil
}
