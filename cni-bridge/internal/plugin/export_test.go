package plugin

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"podvirt.dev/internal/loopback"
	"podvirt.dev/internal/nl"
)

// nlHandle keeps the tests' signatures short.
type nlHandle = nl.Handle

// envProxy makes the test binary the launcher's loopback proxy, as the launcher's user.
const envProxy = "PODVIRT_TEST_PROXY"

func runProxy(t *testing.T) {
	proxy := loopback.Proxy{PortBase: 49152, Guest: []netip.Addr{netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd10:0:2::2")}}
	must(t, errors.Join(syscall.Setgroups(nil), syscall.Setgid(107), syscall.Setuid(107)))
	must(t, proxy.Run(t.Context()))
}

// envWait makes the test binary wait for the end of its stdin.
const envWait = "PODVIRT_TEST_WAIT"

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
