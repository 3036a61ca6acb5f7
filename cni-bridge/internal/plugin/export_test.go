package plugin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"podvirt.dev/internal/nl"
)

// nlHandle keeps the tests' signatures short.
type nlHandle = nl.Handle

// openAs opens the tap of envOpen as the user of envUser and returns an exit code.
func openAs() int {
	if err := errors.Join(becomeUser(os.Getenv(envUser)), openQueues(os.Getenv(envOpen))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// becomeUser makes /dev/net/tun what the device plugin makes of it in a container, open to everybody, in this process's own
// mount namespace, and drops root; the kernel takes all capabilities with it.
func becomeUser(user string) error {
	id, err := strconv.Atoi(user)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "tun")
	if err != nil {
		return err
	}
	node := filepath.Join(dir, "tun")
	return errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))),
		os.Chmod(node, 0o666),
		unix.Mount(node, "/dev/net/tun", "", unix.MS_BIND, ""),
		os.Remove(node), os.Remove(dir),
		syscall.Setgroups(nil), syscall.Setgid(id), syscall.Setuid(id),
	)
}

// openQueues opens four queues with a vnet header, one plain one of the service tap.
func openQueues(tap string) error {
	flags, count := uint16(unix.IFF_VNET_HDR|unix.IFF_MULTI_QUEUE), 4
	if tap == "svc0" {
		flags, count = 0, 1
	}
	for range count {
		if _, err := nl.OpenTap(tap, flags); err != nil {
			return err
		}
	}
	return nil
}
