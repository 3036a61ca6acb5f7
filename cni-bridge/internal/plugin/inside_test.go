package plugin

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"

	"podvirt.dev/cni-bridge/internal/world"
	"podvirt.dev/internal/nl"
)

// TestInsideNetwork: a network between Pod and guest that hides something the Pod has is refused and leaves nothing, and
// another one works (NW-017).
func TestInsideNetwork(t *testing.T) {
	onHostAlone(t)
	for name, row := range map[string]struct {
		address, server string // what the Pod has besides
		want            string
	}{
		"pod address":    {"10.0.2.17/32", "", "guest network 10.0.2.0/24 overlaps the pod address 10.0.2.17"},
		"pod address, 6": {"fd10:0:2::17/128", "", "guest network fd10:0:2::/120 overlaps the pod address fd10:0:2::17"},
		"name server":    {"", "10.0.2.10", "guest network 10.0.2.0/24 contains the DNS server 10.0.2.10"},
		"name server, 6": {"", "fd10:0:2::a", "guest network fd10:0:2::/120 contains the DNS server fd10:0:2::a"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttachment(t, world.Options{}, vmPod(""))
			world.Do(t, a.Pod, func(h *nlHandle) {
				if row.address != "" {
					must(t, h.AddAddress(index(t, h, "eth0"), netip.MustParsePrefix(row.address)))
				}
			})
			previous := bytes.Replace(previousResult(a.Pod.Path()), []byte(`"dns":{}`), []byte(`"dns":{"nameservers":["`+row.server+`"]}`), 1)
			before := world.Snapshot(t, a.Pod)
			err := a.plugin.Funcs(t.Context()).Add(a.args(t, previous))
			if code(err) != 107 || !strings.Contains(err.Error(), row.want) {
				t.Fatalf("ADD = %v; want %q with code 107", err, row.want)
			}
			if diff := cmp.Diff(before, world.Snapshot(t, a.Pod)); diff != "" {
				t.Errorf("namespace (-before,+after)\n%s", diff)
			}
			a.annotations = vmPod("v4-cidr=192.168.200.8/30,v6-cidr=fd99::/126")
			must(t, a.plugin.Funcs(t.Context()).Add(a.args(t, previous)))
			if nic := a.Boot(t); nic.Guest4.String() != "192.168.200.10/30" || nic.Guest6.String() != "fd99::2/126" {
				t.Errorf("the guest has %s and %s", nic.Guest4, nic.Guest6)
			}
			world.Listen(t, a.Guest, ":80")
			for pod, outside := range map[string]string{world.Pod4: world.Outside4, world.Pod6: world.Outside6} {
				if got, err := world.Ask(a.Outside, join(pod, 80)); got != outside || err != nil {
					t.Errorf("the guest behind %s sees %q, %v", pod, got, err)
				}
			}
		})
	}
}

// TestGuestReachesItself calls the guest from the guest: by its pod IP, and by a Service whose only endpoint it is, which
// the node turns around as kube-proxy does (NW-020).
func TestGuestReachesItself(t *testing.T) {
	onHostAlone(t)
	a := newAttachment(t, world.Options{}, vmPod("ports=80"))
	must(t, a.add(t))
	a.Boot(t)
	world.Listen(t, a.Guest, ":80")
	world.Listen(t, a.Guest, ":81")
	a.serviceOnTheNode(t)
	for name, row := range map[string]struct{ to, seen, refused string }{
		"pod IP":                      {join(world.Pod4, 80), "10.0.2.1", ""},
		"pod IP, 6":                   {join(world.Pod6, 80), "fd10:0:2::1", ""},
		"pod IP, a port not in ports": {join(world.Pod4, 81), "", "refused"},
		"the same, 6":                 {join(world.Pod6, 81), "", "refused"},
		"Service":                     {join(service4, 8080), world.Outside4, ""},
		"Service, 6":                  {join(service6, 8080), world.Outside6, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := world.Ask(a.Guest, row.to)
			if got != row.seen || row.refused == "" && err != nil || row.refused != "" && (err == nil || !strings.Contains(err.Error(), row.refused)) {
				t.Errorf("the server saw %q, %v; want %q %s", got, err, row.seen, row.refused)
			}
		})
	}
}

// TestSmallerPath: behind the node is a link with a smaller MTU, which both sides learn by ICMP alone; large datagrams go in
// fragments (NW-021).
func TestSmallerPath(t *testing.T) {
	onHostAlone(t)
	a := newAttachment(t, world.Options{}, vmPod(""))
	must(t, a.add(t))
	a.Boot(t)
	far := a.far(t, 1400)
	for family, row := range map[string]struct{ far, pod, guest string }{
		"IPv4": {far4, world.Pod4, "10.0.2.2"}, "IPv6": {far6, world.Pod6, "fd10:0:2::2"},
	} {
		t.Run(family, func(t *testing.T) {
			world.Listen(t, far, join(row.far, 80))
			world.Listen(t, a.Guest, join(row.guest, 80))
			echoMany(t, a.Guest, join(row.far, 80))
			echoMany(t, far, join(row.pod, 80))
			const large = 65_000
			udpEcho(t, far, join(row.far, 53))
			udpEcho(t, a.Guest, join(row.guest, 53))
			askLarge(t, a.Guest, join(row.far, 53), large)
			askLarge(t, far, join(row.pod, 53), large)
		})
	}
}

// TestIdleConnection: a connection outlives a silence of hours (the kernel forgets it after five days), and even that it is
// forgotten; helpers that look into packets are off (NW-021).
func TestIdleConnection(t *testing.T) {
	onHostAlone(t)
	a := newAttachment(t, world.Options{}, vmPod(""))
	must(t, a.add(t))
	a.Boot(t)
	const dir = "/proc/sys/net/netfilter/"
	world.Do(t, a.Pod, func(*nlHandle) {
		if days := number(t, dir+"nf_conntrack_tcp_timeout_established") / (24 * 3600); days != 5 {
			t.Errorf("established connections are forgotten after %d days; want 5", days)
		}
		if _, err := os.Stat(dir + "nf_conntrack_helper"); err == nil && number(t, dir+"nf_conntrack_helper") != 0 {
			t.Error("conntrack helpers look into packets")
		}
	})
	world.Listen(t, a.Outside, join(world.Outside4, 80))
	world.Listen(t, a.Guest, join("10.0.2.2", 80))
	var conns []net.Conn
	for from, to := range map[ns.NetNS]string{a.Guest: join(world.Outside4, 80), a.Outside: join(world.Pod4, 80)} {
		conn, err := world.Dial(from, "tcp", to)
		must(t, err)
		defer conn.Close()
		must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
		_, err = conn.Read(make([]byte, 64)) // whom the server saw
		must(t, err)
		conns = append(conns, conn)
	}
	world.Do(t, a.Pod, func(*nlHandle) {
		must(t, os.WriteFile(dir+"nf_conntrack_tcp_timeout_established", []byte("1"), 0o644))
	})
	for _, conn := range conns {
		pingPong(t, conn, "before")
	}
	<-time.After(3 * time.Second) // the silence itself: an entry that is older than its time counts no more, whenever it is swept
	for _, conn := range conns {
		pingPong(t, conn, "after")
	}
}

func number(t *testing.T, file string) int {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	must(t, err)
	return n
}

func pingPong(t *testing.T, conn net.Conn, word string) {
	t.Helper()
	_, err := io.WriteString(conn, word)
	must(t, err)
	got := make([]byte, len(word))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != word {
		t.Fatalf("%s came back as %q, %v", word, got, err)
	}
}

// Addresses of a host behind the node.
const (
	far4 = "198.51.100.9"
	far6 = "2001:db8:f::9"
)

// far makes a host behind the node, which forwards.
func (a *attachment) far(t *testing.T, mtu int) ns.NetNS {
	t.Helper()
	far := world.Namespace(t)
	world.Do(t, a.Outside, func(h *nlHandle) {
		must(t, h.AddVeth("out1", "eth0", int(far.Fd())))
		link := index(t, h, "out1")
		must(t, h.Set(link, nl.Changes{MTU: mtu, Up: true}))
		for _, address := range []string{"198.51.100.1/24", "2001:db8:f::1/64"} {
			must(t, h.AddAddress(link, netip.MustParsePrefix(address)))
		}
		for _, file := range []string{"ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"} {
			must(t, os.WriteFile("/proc/sys/net/"+file, []byte("1"), 0o644))
		}
	})
	world.Do(t, far, func(h *nlHandle) {
		link := index(t, h, "eth0")
		must(t, h.Set(link, nl.Changes{MTU: mtu, Up: true}))
		for address, via := range map[string]string{far4 + "/24": "198.51.100.1", far6 + "/64": "2001:db8:f::1"} {
			prefix := netip.MustParsePrefix(address)
			must(t, h.AddAddress(link, prefix))
			everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if prefix.Addr().Is6() {
				everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			must(t, h.AddRoute(nl.Route{Link: link, Destination: everything, Gateway: netip.MustParseAddr(via)}))
		}
	})
	return far
}

// echoMany sends 2 MiB to an echo server and reads them back.
func echoMany(t *testing.T, from ns.NetNS, to string) {
	t.Helper()
	conn, err := world.Dial(from, "tcp", to)
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	sent := bytes.Repeat([]byte("0123456789abcdef"), 2<<20/16)
	go func() { _, _ = conn.Write(sent) }()
	first := make([]byte, 64)
	n, err := conn.Read(first)
	must(t, err)
	_, echo, _ := bytes.Cut(first[:n], []byte("\n"))
	got := make([]byte, len(sent)-len(echo))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(append(echo, got...), sent) {
		t.Errorf("2 MiB to %s and back: %v", to, err)
	}
}

func udpEcho(t *testing.T, netns ns.NetNS, address string) {
	t.Helper()
	var server net.PacketConn
	must(t, netns.Do(func(ns.NetNS) (err error) {
		server, err = (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", address)
		return err
	}))
	t.Cleanup(func() { _ = server.Close() })
	go func() {
		buffer := make([]byte, 1<<16)
		for {
			n, from, err := server.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(buffer[:n], from) // the path may be unknown yet
		}
	}()
}

// askLarge sends one datagram again and again until it comes back: what is sent before the path is known is lost.
func askLarge(t *testing.T, from ns.NetNS, to string, size int) {
	t.Helper()
	conn, err := world.Dial(from, "udp", to)
	must(t, err)
	defer conn.Close()
	sent, got := bytes.Repeat([]byte("x"), size), make([]byte, 1<<16)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if _, err := conn.Write(sent); err != nil {
			continue // message too long: the path has just become smaller
		}
		must(t, conn.SetReadDeadline(time.Now().Add(time.Second)))
		if n, err := conn.Read(got); err == nil {
			if !bytes.Equal(sent, got[:n]) {
				t.Errorf("%d bytes came back from %s; want %d", n, to, size)
			}
			return
		}
	}
	t.Errorf("no datagram of %d bytes came back from %s", size, to)
}
