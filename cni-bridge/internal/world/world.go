// Package world builds, for tests, what a Pod has around it: a namespace outside with a router, the Pod's namespace
// behind a veth pair, and a guest, which is a third namespace whose frames are carried to and from a tap as QEMU does.
package world

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"golang.org/x/sys/unix"

	"podvirt.dev/internal/nicalias"
	"podvirt.dev/internal/nl"
	"podvirt.dev/internal/require"
)

// Addresses of the world; the documentation prefixes.
const (
	Outside4 = "192.0.2.1"
	Outside6 = "2001:db8::1"
	Pod4     = "192.0.2.2"
	Pod6     = "2001:db8::2"
)

// World is one Pod with what surrounds it.
type World struct {
	Outside, Pod, Guest ns.NetNS

	// Offloads boots guests that leave checksums and segmentation to others, as virtio guests do.
	Offloads bool
	// FromGuest and ToGuest are the largest frames that were carried, in bytes.
	FromGuest, ToGuest atomic.Int64
}

// Options of a world.
type Options struct {
	MTU   int      // of eth0; 0: 1500
	Only  string   // "4" or "6": one family
	Route string   // a further IPv4 route of the Pod
	Extra []string // further interfaces of the Pod
}

// New makes a world that ends with the test.
func New(t testing.TB, o Options) *World {
	t.Helper()
	require.Root(t)
	w := &World{Outside: namespace(t), Pod: namespace(t), Guest: namespace(t)}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	Do(t, w.Outside, func(h *nl.Handle) {
		must(t, h.AddVeth("out0", "eth0", int(w.Pod.Fd())))
		for _, extra := range o.Extra {
			must(t, h.AddVeth("o-"+extra, extra, int(w.Pod.Fd())))
		}
		up(t, h, "lo", 0)
		address(t, h, up(t, h, "out0", o.MTU), o.Only, Outside4+"/24", Outside6+"/64")
	})
	Do(t, w.Pod, func(h *nl.Handle) {
		up(t, h, "lo", 0)
		for _, extra := range o.Extra {
			up(t, h, extra, 0)
		}
		eth0 := up(t, h, "eth0", o.MTU)
		address(t, h, eth0, o.Only, Pod4+"/24", Pod6+"/64")
		defaults(t, h, eth0, o.Only, Outside4, Outside6)
		if o.Route != "" {
			must(t, h.AddRoute(nl.Route{
				Link: eth0.Index, Destination: netip.MustParsePrefix(o.Route), Gateway: netip.MustParseAddr(Outside4),
			}))
		}
	})
	Do(t, w.Guest, func(h *nl.Handle) { up(t, h, "lo", 0) })
	return w
}

// Namespace makes a network namespace that ends with the test.
func Namespace(t testing.TB) ns.NetNS {
	t.Helper()
	require.Root(t)
	return namespace(t)
}

func namespace(t testing.TB) ns.NetNS {
	t.Helper()
	netns, err := testutils.NewNS()
	must(t, err)
	t.Cleanup(func() {
		if err := errors.Join(netns.Close(), testutils.UnmountNS(netns)); err != nil {
			t.Errorf("removing namespace %s: %v", netns.Path(), err)
		}
	})
	return netns
}

// Do runs act in the namespace with a netlink handle of it.
func Do(t testing.TB, netns ns.NetNS, act func(h *nl.Handle)) {
	t.Helper()
	must(t, netns.Do(func(ns.NetNS) error {
		h, err := nl.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		act(h)
		return nil
	}))
}

func up(t testing.TB, h *nl.Handle, name string, mtu int) nl.Link {
	link, err := h.Link(name)
	must(t, err)
	must(t, h.Set(link.Index, nl.Changes{MTU: mtu, Up: true}))
	return link
}

func address(t testing.TB, h *nl.Handle, link nl.Link, only, v4, v6 string) {
	if only != "6" {
		must(t, h.AddAddress(link.Index, netip.MustParsePrefix(v4)))
	}
	if only != "4" {
		must(t, h.AddAddress(link.Index, netip.MustParsePrefix(v6)))
	}
}

func defaults(t testing.TB, h *nl.Handle, link nl.Link, only, v4, v6 string) {
	if only != "6" {
		must(t, h.AddRoute(nl.Route{Link: link.Index, Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr(v4)}))
	}
	if only != "4" {
		must(t, h.AddRoute(nl.Route{Link: link.Index, Destination: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr(v6)}))
	}
}

// Boot connects the guest namespace to tap0 of the Pod as the alias says: its eth0 has the MAC, the addresses and the
// default routes that DHCP and router advertisement would give it. It ends with the test.
func (w *World) Boot(t testing.TB) nicalias.NIC {
	t.Helper()
	return w.BootNIC(t, 0, "eth0")
}

// BootNIC is Boot for the NIC with this index, which the guest calls name. What the alias has no address for gets the given ones.
func (w *World) BootNIC(t testing.TB, index int, name string, static ...netip.Prefix) nicalias.NIC {
	t.Helper()
	var (
		nic      nicalias.NIC
		mtu      int
		gateways []nl.Address
		tap      *os.File
	)
	Do(t, w.Pod, func(h *nl.Handle) {
		link, err := h.Link(nicalias.TapName(index))
		must(t, err)
		nic, err = nicalias.Decode(link.Alias)
		must(t, err)
		gateways, err = h.Addresses(link.Index)
		must(t, err)
		mtu = link.MTU
		var flags uint16
		if nic.MultiQueue {
			flags = unix.IFF_MULTI_QUEUE
		}
		tap = w.open(t, link.Name, flags)
	})
	var guest *os.File
	Do(t, w.Guest, func(h *nl.Handle) {
		guest = w.open(t, name, 0)
		link, err := h.Link(name)
		must(t, err)
		must(t, h.Set(link.Index, nl.Changes{MAC: nic.MAC, MTU: mtu, Up: true}))
		for _, prefix := range append([]netip.Prefix{nic.Guest4, nic.Guest6}, static...) {
			if prefix.IsValid() {
				must(t, h.AddAddress(link.Index, prefix))
			}
		}
		for _, gateway := range gateways {
			everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if gateway.Prefix.Addr().Is6() {
				everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			if gateway.LinkLocal == gateway.Prefix.Addr().Is6() { // IPv6 by the link-local router, as RA says
				must(t, h.AddRoute(nl.Route{Link: link.Index, Destination: everything, Gateway: gateway.Prefix.Addr()}))
			}
		}
	})
	done := make(chan struct{}, 2)
	go carry(tap, guest, &w.ToGuest, done)
	go carry(guest, tap, &w.FromGuest, done)
	t.Cleanup(func() {
		_ = tap.Close()
		_ = guest.Close()
		<-done
		<-done
	})
	return nic
}

// open opens a queue of a tap. With offloads each frame stands behind a struct virtio_net_hdr, which is carried with it.
func (w *World) open(t testing.TB, name string, flags uint16) *os.File {
	t.Helper()
	if w.Offloads {
		flags |= unix.IFF_VNET_HDR
	}
	f, err := nl.OpenTap(name, flags)
	must(t, err)
	if !w.Offloads {
		return f
	}
	const all = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_USO4 | unix.TUN_F_USO6
	raw, err := f.SyscallConn()
	must(t, err)
	var setErr error
	must(t, raw.Control(func(fd uintptr) { setErr = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, all) }))
	must(t, setErr)
	return f
}

// carry copies frames until one side is closed.
func carry(from, to *os.File, largest *atomic.Int64, done chan<- struct{}) {
	defer func() { done <- struct{}{} }()
	frame := make([]byte, 1<<17)
	for {
		n, err := from.Read(frame)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			continue // the interface is down at this moment
		}
		largest.Store(max(largest.Load(), int64(n)))
		if _, err := to.Write(frame[:n]); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// Listen opens a TCP listener in the namespace that answers each connection with the address of its client as the
// server sees it, and then echoes.
func Listen(t testing.TB, netns ns.NetNS, address string) {
	t.Helper()
	var listener net.Listener
	must(t, netns.Do(func(ns.NetNS) error {
		var err error
		listener, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
		return err
	}))
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
}

func serve(conn net.Conn) {
	defer conn.Close()
	host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
	if _, err := conn.Write([]byte(host + "\n")); err != nil {
		return
	}
	buffer := make([]byte, 1<<16)
	for {
		n, err := conn.Read(buffer)
		if err != nil {
			return
		}
		if _, err := conn.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// Timeout is how long anything in a world may take, and Silence how long nothing must come of what is not to come.
const (
	Timeout = 20 * time.Second
	Silence = 300 * time.Millisecond
)

// Dial connects from the namespace.
func Dial(netns ns.NetNS, network, address string, options ...func(*net.Dialer)) (net.Conn, error) {
	var conn net.Conn
	err := netns.Do(func(ns.NetNS) error {
		dialer := &net.Dialer{Timeout: Timeout}
		for _, option := range options {
			option(dialer)
		}
		var err error
		conn, err = dialer.Dial(network, address)
		return err
	})
	return conn, err
}

// Ask connects from the namespace to one of [Listen] and returns the client address that the server saw.
func Ask(netns ns.NetNS, address string, options ...func(*net.Dialer)) (string, error) {
	conn, err := Dial(netns, "tcp", address, options...)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(Timeout)); err != nil {
		return "", err
	}
	buffer := make([]byte, 128)
	n, err := conn.Read(buffer)
	if n == 0 {
		return "", err
	}
	return string(buffer[:n-1]), nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
