// Package loopback carries TCP connections that somebody in a VM Pod opens to 127.0.0.1 or ::1 on to the guest, so that
// kubectl port-forward and sidecars find the VM where they would find a container (NW-019). The CNI plugin redirects
// them to a port of the launcher, which asks the kernel for the port they were meant for. Rewriting the destination
// alone would not do: the kernel drops packets from ::1 that leave by another interface than lo.
package loopback

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// Priority is the SO_PRIORITY of connections that nobody redirects: the proxy's own ones to listeners of the Pod and to the
// guest. It is one of the values that need no privilege and that the kernel never derives from a type of service
// (net/ipv4/route.c, ip_tos2prio).
const Priority = 5

// Port is where the proxy listens on both loopback addresses: the spare one of the launcher's four ports, whose use on the
// pod IP is not concerned.
func Port(base uint16) uint16 { return base + 2 }

// Timing of a connection.
const (
	// dialTimeout is how long the guest may take to answer; a closed port answers at once.
	dialTimeout = 5 * time.Second
	// maxConnections bounds what a Pod's containers can make the launcher hold.
	maxConnections = 4096
)

// Proxy is the launcher's side.
type Proxy struct {
	// PortBase is the first of the launcher's ports, as the alias of the tap says.
	PortBase uint16
	// Guest are the guest's addresses; the one of the connection's own family is tried first.
	Guest []netip.Addr
}

// Run serves until the context ends. A family that the Pod does not have is left out.
func (p Proxy) Run(ctx context.Context) error {
	var listeners []net.Listener
	for _, address := range []string{"127.0.0.1", "::1"} {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(int(Port(p.PortBase)))))
		if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			for _, open := range listeners {
				err = errors.Join(err, open.Close())
			}
			return fmt.Errorf("serving the Pod's loopback: %w", err)
		}
		listeners = append(listeners, listener)
	}
	var wait sync.WaitGroup
	slots := make(chan struct{}, maxConnections)
	for _, listener := range listeners {
		stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
		defer stop()
		wait.Go(func() { p.serve(ctx, listener, slots) })
	}
	wait.Wait()
	return nil
}

func (p Proxy) serve(ctx context.Context, listener net.Listener, slots chan struct{}) {
	var wait sync.WaitGroup
	defer wait.Wait()
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, or the client is gone already
			klog.FromContext(ctx).V(2).Info("Connection to the Pod's loopback lost", "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(dialTimeout / 50):
			}
			continue
		}
		client, ok := conn.(*net.TCPConn)
		if !ok {
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			reset(client)
			continue
		}
		wait.Go(func() {
			defer func() { <-slots }()
			p.handle(ctx, client)
		})
	}
}

// handle connects one client. One that meant the proxy itself is refused, or it would be connected to itself for ever.
func (p Proxy) handle(ctx context.Context, client *net.TCPConn) {
	wanted, err := originalDestination(client)
	if err != nil || wanted.Port() == Port(p.PortBase) {
		reset(client)
		return
	}
	server, err := p.dial(ctx, wanted)
	if err != nil {
		klog.FromContext(ctx).V(3).Info("No answer for a connection to the Pod's loopback", "port", wanted.Port(), "err", err)
		reset(client)
		return
	}
	relay(ctx, client, server)
}

// dial prefers a listener of the Pod's own on that loopback address, which a sidecar may have, to the guest. What was meant
// for the pod IP is the guest's alone.
func (p Proxy) dial(ctx context.Context, wanted netip.AddrPort) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	exempt := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error { return setPriority(raw) }}
	var errs []error
	if wanted.Addr().IsLoopback() {
		conn, err := exempt.DialContext(ctx, "tcp", wanted.String())
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		errs = append(errs, err)
	}
	for _, sameFamily := range []bool{true, false} {
		for _, guest := range p.Guest {
			if guest.Is4() == wanted.Addr().Is4() != sameFamily {
				continue
			}
			conn, err := exempt.DialContext(ctx, "tcp", netip.AddrPortFrom(guest, wanted.Port()).String())
			if err == nil {
				return conn.(*net.TCPConn), nil
			}
			errs = append(errs, err)
		}
	}
	return nil, errors.Join(errs...)
}

// relay copies both ways, which the kernel does by itself between two TCP sockets (splice), and passes on each side's
// end; it returns when both have ended.
func relay(ctx context.Context, a, b *net.TCPConn) {
	stop := context.AfterFunc(ctx, func() { reset(a); reset(b) })
	defer stop()
	var wait sync.WaitGroup
	for _, way := range [][2]*net.TCPConn{{a, b}, {b, a}} {
		wait.Go(func() {
			if _, err := io.Copy(way[1], way[0]); err != nil {
				reset(a)
				reset(b)
				return
			}
			_ = way[1].CloseWrite()
		})
	}
	wait.Wait()
	_, _ = a.Close(), b.Close()
}

// reset closes with RST, as a closed port would have answered.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}

func setPriority(raw syscall.RawConn) error {
	var err error
	if controlErr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY, Priority)
	}); controlErr != nil {
		return controlErr
	}
	return err
}

// originalDestination asks conntrack where the client wanted to go, which needs no privilege.
func originalDestination(conn *net.TCPConn) (netip.AddrPort, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var (
		wanted netip.AddrPort
		getErr error
	)
	local := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	err = raw.Control(func(fd uintptr) {
		if local.Addr().Unmap().Is4() {
			wanted, getErr = destination4(int(fd))
		} else {
			wanted, getErr = destination6(int(fd))
		}
	})
	return wanted, errors.Join(err, getErr)
}

// destination4 reads struct sockaddr_in, which fits into the 16 bytes of struct ipv6_mreq's address.
func destination4(fd int) (netip.AddrPort, error) {
	raw, err := unix.GetsockoptIPv6Mreq(fd, unix.IPPROTO_IP, unix.SO_ORIGINAL_DST)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	b := raw.Multiaddr // family (2), port (2), address (4)
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3])), nil
}

// destination6 reads struct sockaddr_in6, which struct ip6_mtuinfo begins with.
func destination6(fd int) (netip.AddrPort, error) {
	raw, err := unix.GetsockoptIPv6MTUInfo(fd, unix.IPPROTO_IPV6, unix.SO_ORIGINAL_DST)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(raw.Addr.Addr), raw.Addr.Port<<8|raw.Addr.Port>>8), nil
}
