package plugin

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"podvirt.dev/cni-bridge/internal/world"
)

// TestSCTP carries an association into the guest and one out of it (NW-011). The kernel of test/kernel has SCTP; others
// may lack it.
func TestSCTP(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
	if err != nil && os.Getenv("PODVIRT_KERNEL_TEST") != "1" {
		t.Skipf("SCTP sockets: %v; make test-kernel shows it", err)
	}
	must(t, errors.Join(err, unix.Close(fd)))
	a := newAttachment(t, world.Options{}, vmPod("ports=22+132/sctp"))
	must(t, a.add(t))
	a.Boot(t)
	for name, row := range map[string]struct {
		server, client      ns.NetNS
		listen, dial, sends string // addresses
	}{
		"in: the guest sees the real client":   {a.Guest, a.Outside, "10.0.2.2", world.Pod4, world.Outside4},
		"out: outside sees only the pod IP":    {a.Outside, a.Guest, world.Outside4, world.Outside4, world.Pod4},
		"in by IPv6":                           {a.Guest, a.Outside, "fd10:0:2::2", world.Pod6, world.Outside6},
		"out by IPv6: only the pod IP is seen": {a.Outside, a.Guest, world.Outside6, world.Outside6, world.Pod6},
	} {
		t.Run(name, func(t *testing.T) {
			listener := sctp(t, row.server, row.listen)
			must(t, errors.Join(unix.Bind(listener, sctpAddress(row.listen)), unix.Listen(listener, 1)))
			client := sctp(t, row.client, row.dial)
			must(t, unix.Connect(client, sctpAddress(row.dial)))
			conn, peer, err := unix.Accept(listener)
			must(t, err)
			defer unix.Close(conn)
			if got := addressOf(peer); got != netip.MustParseAddr(row.sends) {
				t.Errorf("the server sees %s; want %s", got, row.sends)
			}
			_, err = unix.Write(client, []byte("hello"))
			must(t, err)
			buffer := make([]byte, 16)
			if n, err := unix.Read(conn, buffer); err != nil || string(buffer[:n]) != "hello" {
				t.Errorf("received %q, %v", buffer[:max(n, 0)], err)
			}
		})
	}
}

// sctp opens a socket of the address's family in the namespace, whose calls end after a while.
func sctp(t *testing.T, netns ns.NetNS, address string) int {
	t.Helper()
	family := unix.AF_INET6
	if netip.MustParseAddr(address).Is4() {
		family = unix.AF_INET
	}
	fd := -1
	must(t, netns.Do(func(ns.NetNS) error {
		var err error
		fd, err = unix.Socket(family, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
		return err
	}))
	t.Cleanup(func() { _ = unix.Close(fd) })
	patience := unix.NsecToTimeval(int64(3 * world.Timeout / time.Nanosecond))
	must(t, errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience)))
	return fd
}

func sctpAddress(text string) unix.Sockaddr {
	const port = 132
	address := netip.MustParseAddr(text)
	if address.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: address.As4()}
	}
	return &unix.SockaddrInet6{Port: port, Addr: address.As16()}
}

func addressOf(sa unix.Sockaddr) netip.Addr {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(a.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(a.Addr)
	}
	return netip.Addr{}
}
