package plugin

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"

	"podvirt.dev/cni-bridge/internal/world"
	"podvirt.dev/internal/nicalias"
	"podvirt.dev/internal/nl"
)

// TestDatagrams sends datagrams into the guest and out of it, of either family (NW-011).
func TestDatagrams(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod(""))
	must(t, a.add(t))
	a.Boot(t)
	for name, row := range map[string]struct {
		server, client   ns.NetNS
		listen, to, seen string // addresses
	}{
		"in, IPv4":  {a.Guest, a.Outside, "10.0.2.2", world.Pod4, world.Outside4},
		"out, IPv4": {a.Outside, a.Guest, world.Outside4, world.Outside4, world.Pod4},
		"in, IPv6":  {a.Guest, a.Outside, "fd10:0:2::2", world.Pod6, world.Outside6},
		"out, IPv6": {a.Outside, a.Guest, world.Outside6, world.Outside6, world.Pod6},
	} {
		t.Run(name, func(t *testing.T) {
			var server net.PacketConn
			must(t, row.server.Do(func(ns.NetNS) error {
				var err error
				server, err = (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", join(row.listen, 53))
				return err
			}))
			defer server.Close()
			client, err := world.Dial(row.client, "udp", join(row.to, 53))
			must(t, err)
			defer client.Close()
			_, err = client.Write([]byte("ask"))
			must(t, err)
			must(t, server.SetReadDeadline(time.Now().Add(world.Timeout)))
			buffer := make([]byte, 16)
			_, from, err := server.ReadFrom(buffer)
			must(t, err)
			if host, _, _ := net.SplitHostPort(from.String()); host != row.seen {
				t.Errorf("the server sees %s; want %s", host, row.seen)
			}
			_, err = server.WriteTo([]byte("answer"), from)
			must(t, err)
			must(t, client.SetReadDeadline(time.Now().Add(world.Timeout)))
			if n, err := client.Read(buffer); err != nil || string(buffer[:n]) != "answer" {
				t.Errorf("the client got %q, %v", buffer[:max(n, 0)], err)
			}
		})
	}
}

// TestDHCPOfNetworks: on a network without addresses the guest's requests and answers pass, so that DHCP of that network
// works, and a guest may serve it; where the Pod interface has addresses, requests go to the launcher alone (NW-045).
func TestDHCPOfNetworks(t *testing.T) {
	n := newNode(t)
	n.fakeIPAM(t)
	other := n.attach(t, "other", map[string]any{"bridge": "br1", "create": true}, vmWith("other", nil)).nic(t)
	plain := n.attach(t, "plain", map[string]any{"bridge": "br1"}, vmWith("plain", nil)).nic(t)
	given := n.attach(t, "given", map[string]any{"bridge": "br1", "ipam": map[string]any{"type": "one-address"}}, vmWith("given", nil))
	asked, service := given.nic(t), given.service(t)
	first, request := guestFrames(t)["DHCP server's message"].frame, guestFrames(t)["DHCP discover"].frame
	for _, warm := range []struct {
		from, to *os.File
		frame    []byte
	}{{plain.tap, other.tap, first}, {asked.tap, other.tap, first}, {asked.tap, service, request}} { // what is sent before both are up is lost
		for deadline := time.Now().Add(arrival); time.Now().Before(deadline); {
			_, err := warm.from.Write(warm.frame)
			must(t, err)
			if expect(t, warm.to, warm.frame, quiet/5) {
				break
			}
		}
	}
	for name, row := range guestFrames(t) {
		if name == "short" {
			continue // a bridge drops what has no whole header
		}
		t.Run(name, func(t *testing.T) {
			_, err := plain.tap.Write(row.frame)
			must(t, err)
			if !expect(t, other.tap, row.frame, arrival) {
				t.Error("it does not pass where the network has no addresses")
			}
			for range 10 {
				_, err = asked.tap.Write(row.frame)
				must(t, err)
			}
			if row.taken != expect(t, service, row.frame, quiet) {
				t.Errorf("at the launcher: %v; want %v", !row.taken, row.taken)
			}
			if passed := expect(t, other.tap, row.frame, quiet/5); passed == row.taken {
				t.Errorf("where the network has addresses it passes: %v; want %v", passed, !row.taken)
			}
			for expect(t, other.tap, row.frame, quiet/10) {
				continue // the other ones
			}
		})
	}
}

// service opens the launcher's end of net1.
func (a *attachment) service(t *testing.T) *os.File {
	t.Helper()
	var f *os.File
	world.Do(t, a.Pod, func(*nlHandle) {
		var err error
		f, err = nl.OpenTap(nicalias.ServiceName(1), 0)
		must(t, err)
	})
	t.Cleanup(func() { _ = f.Close() })
	return f
}
