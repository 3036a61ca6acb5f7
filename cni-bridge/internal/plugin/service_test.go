package plugin

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"podvirt.dev/cni-bridge/internal/world"
	"podvirt.dev/internal/nl"
)

var guestMAC = net.HardwareAddr{2, 0xaa, 0, 0, 0, 1}

// frames of a guest, by name, and whether they are the launcher's to answer.
func guestFrames(t *testing.T) map[string]struct {
	frame []byte
	taken bool
} {
	t.Helper()
	broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	v4 := func(dst string, port layers.UDPPort, options ...layers.IPv4Option) []byte {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IPv4zero, DstIP: net.ParseIP(dst), Options: options}
		udp := &layers.UDP{SrcPort: 68, DstPort: port}
		must(t, udp.SetNetworkLayerForChecksum(ip))
		return serialize(t, &layers.Ethernet{SrcMAC: guestMAC, DstMAC: broadcast, EthernetType: layers.EthernetTypeIPv4}, ip, udp,
			gopacket.Payload(make([]byte, 300)))
	}
	v6 := func(protocol layers.IPProtocol, rest ...gopacket.SerializableLayer) []byte {
		ip := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: protocol, SrcIP: net.ParseIP("fe80::aa"), DstIP: net.ParseIP("ff02::2")}
		for _, layer := range rest {
			if l, ok := layer.(interface {
				SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
			}); ok {
				must(t, l.SetNetworkLayerForChecksum(ip))
			}
		}
		ethernet := &layers.Ethernet{SrcMAC: guestMAC, DstMAC: net.HardwareAddr{0x33, 0x33, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv6}
		return serialize(t, append([]gopacket.SerializableLayer{ethernet, ip}, rest...)...)
	}
	icmp6 := func(kind uint8) *layers.ICMPv6 { return &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)} }
	return map[string]struct {
		frame []byte
		taken bool
	}{
		"DHCP discover":           {v4("255.255.255.255", 67), true},
		"DHCP renewal, unicast":   {v4("10.0.2.1", 67), true},
		"DHCP with an IP option":  {v4("255.255.255.255", 67, layers.IPv4Option{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}), true},
		"DHCP server's message":   {v4("255.255.255.255", 68), false},
		"other datagram":          {v4("10.0.2.1", 53), false},
		"DHCPv6 solicit":          {v6(layers.IPProtocolUDP, &layers.UDP{SrcPort: 546, DstPort: 547}, gopacket.Payload("solicit")), true},
		"DHCPv6 server's message": {v6(layers.IPProtocolUDP, &layers.UDP{SrcPort: 547, DstPort: 546}, gopacket.Payload("advertise")), false},
		"router solicitation":     {v6(layers.IPProtocolICMPv6, icmp6(133), gopacket.Payload(make([]byte, 4))), true},
		"router advertisement":    {v6(layers.IPProtocolICMPv6, icmp6(134), gopacket.Payload(make([]byte, 12))), false},
		"neighbour solicitation":  {v6(layers.IPProtocolICMPv6, icmp6(135), gopacket.Payload(make([]byte, 20))), false},
		"short":                   {append(bytes.Repeat([]byte{0xff}, 12), 0x08, 0x00, 0x45), false},
	}
}

func serialize(t *testing.T, parts ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buffer := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, parts...))
	return buffer.Bytes()
}

// taps opens both ends as QEMU and the launcher do.
func (a *attachment) taps(t *testing.T) (guest, service *os.File) {
	t.Helper()
	world.Do(t, a.Pod, func(*nlHandle) {
		var err1, err2 error
		guest, err1 = nl.OpenTap("tap0", unix.IFF_MULTI_QUEUE)
		service, err2 = nl.OpenTap("svc0", 0)
		must(t, errors.Join(err1, err2))
	})
	t.Cleanup(func() { _ = guest.Close(); _ = service.Close() })
	// The kernel gives a tap its queue a moment after it was opened, and drops frames until then.
	first := guestFrames(t)["router solicitation"].frame
	for deadline := time.Now().Add(world.Timeout); time.Now().Before(deadline); {
		_, err := service.Write(first)
		must(t, err)
		if expect(t, guest, first, world.Silence) {
			break
		}
	}
	return guest, service
}

// expect reads until the wanted frame comes; what else the kernel says is passed over.
func expect(t *testing.T, from *os.File, want []byte, patience time.Duration) bool {
	t.Helper()
	must(t, from.SetReadDeadline(time.Now().Add(patience)))
	buffer := make([]byte, 1<<16)
	for {
		n, err := from.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false
		}
		must(t, err)
		if bytes.Equal(buffer[:n], want) {
			return true
		}
	}
}

func TestServiceTapGetsTheLaunchersFrames(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod(""))
	must(t, a.add(t))
	guest, service := a.taps(t)
	for name, row := range guestFrames(t) {
		t.Run(name, func(t *testing.T) {
			got := false
			for tries := 0; got != row.taken && tries < 60 || tries == 0; tries++ { // a machine that is busy may lose frames
				if _, err := guest.Write(row.frame); err != nil {
					t.Fatal(err)
				}
				got = expect(t, service, row.frame, world.Silence)
			}
			if got != row.taken {
				t.Errorf("frame on the service tap: %v; want %v", got, row.taken)
			}
		})
	}
	reply := serialize(t, &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 0}, DstMAC: guestMAC, EthernetType: layers.EthernetTypeIPv4},
		gopacket.Payload("whatever the launcher says"))
	if _, err := service.Write(reply); err != nil {
		t.Fatal(err)
	}
	if !expect(t, guest, reply, world.Timeout) {
		t.Error("the launcher's frame did not reach the guest")
	}
}

func TestDHCPOffLeavesTheFramesAlone(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod("dhcp=off,ra=off"))
	must(t, a.add(t))
	guest, service := a.taps(t)
	for name, row := range guestFrames(t) {
		if _, err := guest.Write(row.frame); err != nil {
			t.Fatal(err)
		}
		if row.taken && expect(t, service, row.frame, world.Silence) {
			t.Errorf("%s reached the service tap", name)
		}
	}
}

func TestPing(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod(""))
	must(t, a.add(t))
	a.Boot(t)
	for name, row := range map[string]struct {
		from    ns.NetNS
		network string
		to      string
		kind    byte
	}{
		"into the guest, IPv4":   {a.Outside, "ip4:icmp", world.Pod4, 8},
		"out of the guest, IPv4": {a.Guest, "ip4:icmp", world.Outside4, 8},
		"into the guest, IPv6":   {a.Outside, "ip6:ipv6-icmp", world.Pod6, 128},
		"out of the guest, IPv6": {a.Guest, "ip6:ipv6-icmp", world.Outside6, 128},
	} {
		t.Run(name, func(t *testing.T) {
			var conn net.PacketConn
			must(t, row.from.Do(func(ns.NetNS) error {
				var err error
				conn, err = net.ListenPacket(row.network, "")
				return err
			}))
			defer conn.Close()
			message := []byte{row.kind, 0, 0, 0, 0x12, 0x34, 0, 1, 'p', 'i', 'n', 'g'}
			if row.kind == 8 {
				sum := checksum(message)
				message[2], message[3] = byte(sum>>8), byte(sum)
			}
			_, err := conn.WriteTo(message, &net.IPAddr{IP: net.ParseIP(row.to)})
			must(t, err)
			must(t, conn.SetReadDeadline(time.Now().Add(world.Timeout)))
			buffer := make([]byte, 1500)
			for {
				n, from, err := conn.ReadFrom(buffer)
				must(t, err)
				if n == len(message) && bytes.HasSuffix(buffer[:n], []byte("ping")) && buffer[0] != row.kind && from.String() == row.to {
					return
				}
			}
		})
	}
}

func checksum(data []byte) uint16 {
	var sum uint32
	for i := 0; i < len(data); i += 2 {
		sum += uint32(data[i])<<8 | uint32(data[i+1])
	}
	return ^uint16(sum + sum>>16)
}

// TestLoopbackReachesTheGuest runs the launcher's proxy in the Pod, as the launcher's user (NW-019).
func TestLoopbackReachesTheGuest(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod("ports=80"))
	must(t, a.add(t))
	a.Boot(t)
	for _, port := range []string{"80", "5432"} {
		world.Listen(t, a.Guest, net.JoinHostPort("", port))
	}
	startProxy(t, a.Pod)
	for _, row := range []struct{ lo, gateway string }{{"127.0.0.1", "10.0.2.1"}, {"::1", "fd10:0:2::1"}} {
		t.Run(row.lo, func(t *testing.T) {
			world.Listen(t, a.Pod, join(row.lo, 15000))
			for _, port := range []int{80, 5432} {
				if got, err := world.Ask(a.Pod, join(row.lo, port)); got != row.gateway || err != nil {
					t.Errorf("port %d: the guest saw %q, %v; want %s", port, got, err, row.gateway)
				}
			}
			if got, err := world.Ask(a.Pod, join(row.lo, 15000)); got != row.lo || err != nil {
				t.Errorf("the Pod's own listener saw %q, %v; want %s", got, err, row.lo)
			}
			began := time.Now()
			if got, err := world.Ask(a.Pod, join(row.lo, 81)); err == nil || time.Since(began) > world.Timeout/4 {
				t.Errorf("a closed port answered %q, %v after %s; want a reset at once", got, err, time.Since(began))
			}
			if got, err := world.Ask(a.Pod, join(row.lo, 49154)); err == nil {
				t.Errorf("the proxy's own port answered %q; want a reset", got)
			}
			bulk(t, a, join(row.lo, 80))
		})
	}
}

// bulk sends 32 MiB there and back.
func bulk(t *testing.T, a *attachment, address string) {
	t.Helper()
	conn, err := world.Dial(a.Pod, "tcp", address)
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
	const size = 32 << 20
	sent := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	go func() {
		_, _ = conn.Write(sent)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.HasSuffix(got, sent) {
		t.Errorf("%d bytes came back, %v; want all and the end", len(got), err)
	}
}

// startProxy runs the proxy in a process of its own, since goroutines of this one are not bound to the namespace.
func startProxy(t *testing.T, netns ns.NetNS) {
	t.Helper()
	cmd := child(t, envProxy+"=49152")
	cmd.Stderr = os.Stderr
	must(t, netns.Do(func(ns.NetNS) error { return cmd.Start() }))
	t.Cleanup(func() { _ = cmd.Wait() })
	patience := time.After(10 * world.Timeout)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := world.Dial(netns, "tcp", "127.0.0.1:49154")
		if err == nil {
			_ = conn.Close()
			return
		}
		select {
		case <-patience:
			t.Fatal("the proxy did not start")
		case <-tick.C:
		}
	}
}
