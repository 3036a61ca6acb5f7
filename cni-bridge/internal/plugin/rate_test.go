package plugin

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"

	"podvirt.dev/cni-bridge/internal/world"
)

// rateLimit is slow enough for a busy machine to keep up with.
const rateLimit = 20_000_000

// TestRates limits a NIC in one direction at a time, and looks at both (NW-040).
func TestRates(t *testing.T) {
	onHostAlone(t)
	for _, binding := range []string{"masquerade", "wire"} {
		for option, limited := range map[string]map[string]bool{"rate-in": {"in": true}, "rate-out": {"out": true}} {
			t.Run(binding+" "+option, func(t *testing.T) {
				a := newAttachment(t, world.Options{Only: "4"}, vmPod("binding="+binding+","+option+"=20M"))
				before := world.Snapshot(t, a.Pod)
				must(t, a.add(t))
				must(t, a.check(t))
				nic := a.Boot(t)
				guest := join(nic.Guest4.Addr().String(), 5001)
				for direction, way := range map[string]struct {
					from, server ns.NetNS
					listen, to   string
				}{
					"in":  {a.Outside, a.Guest, guest, join(world.Pod4, 5001)},
					"out": {a.Guest, a.Outside, join(world.Outside4, 5001), join(world.Outside4, 5001)},
				} {
					for _, network := range []string{"tcp", "udp"} {
						t.Run(direction+" "+network, func(t *testing.T) {
							m := meter{t: t, network: network, from: way.from, server: way.server, listen: way.listen, to: way.to}
							if !limited[direction] {
								m.above(1.4 * rateLimit)
								return
							}
							m.about(rateLimit)
						})
					}
				}
				must(t, a.del(t))
				if diff := cmp.Diff(before, world.Snapshot(t, a.Pod)); diff != "" {
					t.Errorf("namespace (-before,+after)\n%s", diff)
				}
			})
		}
	}
}

// TestRateDrift: CHECK names a limit that somebody has taken away, and DEL without a journal removes ours.
func TestRateDrift(t *testing.T) {
	onHostAlone(t)
	a := newAttachment(t, world.Options{Extra: []string{"net1"}}, vmPod("rate-in=1M,rate-out=2M"))
	a.annotations["podvirt.dev/nic.net1"] = "rate-in=100k"
	must(t, a.add(t))
	must(t, a.check(t))
	for name, want := range map[string]string{
		"tap0": "tap0: rate-in is 0 bit/s, want 1000000", "eth0": "eth0: rate-out is 0 bit/s, want 2000000",
		"tap1": "tap1: rate-in is 0 bit/s, want 100000",
	} {
		var bits uint64
		world.Do(t, a.Pod, func(h *nlHandle) {
			link, err := h.Link(name)
			must(t, err)
			bits, err = h.Shaped(link.Index)
			must(t, err)
			must(t, h.Unshape(link.Index))
		})
		if err := a.check(t); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("CHECK = %v; want it to say %q", err, want)
		}
		world.Do(t, a.Pod, func(h *nlHandle) { must(t, h.Shape(index(t, h, name), bits)) })
	}
	must(t, a.check(t))
	a.stateDir = t.TempDir() // a DEL that knows nothing
	must(t, a.del(t))
	world.Do(t, a.Pod, func(h *nlHandle) {
		if bits, err := h.Shaped(index(t, h, "eth0")); bits != 0 || err != nil {
			t.Errorf("eth0 is limited to %d still, %v", bits, err)
		}
	})
}

// meter measures what arrives.
type meter struct {
	t            *testing.T
	network      string
	from, server ns.NetNS
	listen, to   string
}

// about wants the limit within a tenth, with the headers. A busy machine may carry less in one second, and never more for long.
func (m meter) about(limit float64) {
	m.t.Helper()
	var last float64
	for range 20 {
		if last = m.measure(600 * time.Millisecond); last > 0.85*limit && last < 1.05*limit {
			return
		}
	}
	m.t.Errorf("%.1f Mbit/s arrive; the limit is %.1f", last/1e6, limit/1e6)
}

// above wants more than so many bits per second.
func (m meter) above(least float64) {
	m.t.Helper()
	var last float64
	for range 20 {
		if last = m.measure(time.Second / 4); last > least {
			return
		}
	}
	m.t.Errorf("%.1f Mbit/s arrive without a limit; want more than %.1f", last/1e6, least/1e6)
}

// measure returns how many bits of payload arrive in a second, when the first burst is over.
func (m meter) measure(during time.Duration) float64 {
	m.t.Helper()
	var received interface {
		Read([]byte) (int, error)
		SetReadDeadline(time.Time) error
		Close() error
	}
	send := func() net.Conn {
		conn, err := world.Dial(m.from, m.network, m.to)
		must(m.t, err)
		return conn
	}
	var conn net.Conn
	must(m.t, m.server.Do(func(ns.NetNS) error {
		if m.network == "udp" {
			address, err := net.ResolveUDPAddr("udp", m.listen)
			must(m.t, err)
			received, err = net.ListenUDP("udp", address)
			return err
		}
		listener, err := (&net.ListenConfig{}).Listen(m.t.Context(), "tcp", m.listen)
		must(m.t, err)
		defer listener.Close()
		conn = send()
		received, err = listener.Accept()
		return err
	}))
	defer received.Close()
	if conn == nil {
		conn = send()
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		block := make([]byte, 1400)
		pace := time.NewTicker(time.Millisecond) // of datagrams: five times the limit
		defer pace.Stop()
		for n := 0; ; n++ {
			if m.network == "udp" && n%10 == 0 {
				<-pace.C
			}
			if _, err := conn.Write(block); errors.Is(err, net.ErrClosed) || err != nil && m.network == "tcp" {
				return
			}
		}
	}()
	defer func() { _ = conn.Close(); <-stopped }()
	total := func(until time.Time) (sum int) {
		must(m.t, received.SetReadDeadline(until))
		buffer := make([]byte, 1<<16)
		for {
			n, err := received.Read(buffer)
			sum += n
			if err != nil {
				return sum
			}
		}
	}
	total(time.Now().Add(during / 2))
	began := time.Now()
	sum := total(began.Add(during))
	return float64(sum) * 8 / time.Since(began).Seconds()
}
