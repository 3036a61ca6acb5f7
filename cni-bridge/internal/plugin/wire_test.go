package plugin

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"podvirt.dev/cni-bridge/internal/world"
)

// TestWireOnThePodNetwork: the guest has the Pod's own address and MAC, and the Pod's stack still has the launcher's ports
// and what it begins itself (NW-023, NW-024).
func TestWireOnThePodNetwork(t *testing.T) {
	for _, family := range []struct{ name, outside, pod string }{
		{"IPv4", world.Outside4, world.Pod4}, {"IPv6", world.Outside6, world.Pod6},
	} {
		t.Run(family.name, func(t *testing.T) {
			a := newAttachment(t, world.Options{}, vmPod("binding=wire"))
			before := world.Snapshot(t, a.Pod)
			must(t, a.add(t))
			world.Listen(t, a.Pod, net.JoinHostPort("", "49155"))
			world.Listen(t, a.Pod, net.JoinHostPort("", "80"))
			world.Listen(t, a.Outside, join(family.outside, 80))
			world.Listen(t, a.Outside, join(family.outside, 81))
			if got, err := world.Ask(a.Outside, join(family.pod, 49155)); got != family.outside || err != nil {
				t.Errorf("the launcher before the guest is there: %q, %v", got, err)
			}
			nic := a.Boot(t)
			if nic.Guest4.String() != world.Pod4+"/24" || nic.Guest6.String() != world.Pod6+"/64" || nic.MAC.String() != macOf(t, a.Pod, "eth0").String() {
				t.Errorf("alias %+v; want address and MAC of eth0", nic)
			}
			world.Listen(t, a.Guest, join(family.pod, 80))
			world.Listen(t, a.Guest, join(family.pod, 49155))
			held, err := world.Dial(a.Guest, "tcp", join(family.outside, 80))
			must(t, err)
			defer held.Close()
			for name, row := range map[string]struct {
				from     ns.NetNS
				to, seen string
				port     int // of the client; 0: any
			}{
				"in: the guest, not the Pod's port 80":    {a.Outside, join(family.pod, 80), family.outside, 0},
				"out of the guest":                        {a.Guest, join(family.outside, 80), family.pod, 0},
				"the launcher's port":                     {a.Outside, join(family.pod, 49155), family.outside, 0},
				"out of the Pod's stack":                  {a.Pod, join(family.outside, 81), family.pod, 0},
				"out of the Pod's stack, to the same one": {a.Pod, join(family.outside, 80), family.pod, 0},
				"guest's own outgoing port 49153":         {a.Guest, join(family.outside, 80), family.pod, 49153},
			} {
				t.Run(name, func(t *testing.T) {
					got, err := world.Ask(row.from, row.to, func(d *net.Dialer) {
						if row.port != 0 {
							d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(family.pod), Port: row.port}
						}
					})
					if got != row.seen || err != nil {
						t.Errorf("the server saw %q, %v; want %q", got, err, row.seen)
					}
				})
			}
			must(t, a.check(t))
			must(t, a.del(t))
			if diff := cmp.Diff(before, world.Snapshot(t, a.Pod)); diff != "" {
				t.Errorf("namespace (-before,+after)\n%s", diff)
			}
		})
	}
}

func macOf(t *testing.T, netns ns.NetNS, name string) (mac net.HardwareAddr) {
	t.Helper()
	world.Do(t, netns, func(h *nlHandle) {
		link, err := h.Link(name)
		must(t, err)
		mac = link.MAC
	})
	return mac
}

// TestGuestIsWhoItIs sends frames by which a guest of the pod network pretends to be somebody else, and looks for them
// outside (NW-026).
func TestGuestIsWhoItIs(t *testing.T) {
	for _, binding := range []string{"wire", "bridge"} {
		t.Run(binding, func(t *testing.T) { guestIsWhoItIs(t, binding) })
	}
}

func guestIsWhoItIs(t *testing.T, binding string) {
	a := newAttachment(t, world.Options{}, vmPod("binding="+binding))
	own := macOf(t, a.Pod, "eth0")
	must(t, a.add(t))
	guest, _ := a.taps(t)
	var seen *packets
	must(t, a.Outside.Do(func(ns.NetNS) error {
		var err error
		seen, err = sniff("out0")
		return err
	}))
	defer seen.Close()
	other := net.HardwareAddr{2, 9, 9, 9, 9, 9}
	frames := strangeFrames(t, own, other)
	for deadline := time.Now().Add(arrival); time.Now().Before(deadline); { // the first frames are lost
		_, err := guest.Write(frames["its own datagram"].frame)
		must(t, err)
		if seen.has(frames["its own datagram"].frame, quiet/5) {
			break
		}
	}
	before, strangers := dropped(t, a.Pod, "tap0"), uint64(0)
	for name, row := range frames {
		if !row.passes {
			strangers++
		}
		t.Run(name, func(t *testing.T) {
			_, err := guest.Write(row.frame)
			must(t, err)
			patience := arrival
			if !row.passes {
				patience = quiet / 2
			}
			look := row.frame
			if row.seen != nil { // it has tags beside the frame
				look = row.seen
			}
			if got := seen.has(look, patience); got != row.passes {
				t.Errorf("outside: %v; want %v", got, row.passes)
			}
		})
	}
	if got := dropped(t, a.Pod, "tap0") - before; got != strangers {
		t.Errorf("%d frames are counted as dropped; want %d", got, strangers)
	}
}

func dropped(t *testing.T, netns ns.NetNS, name string) (frames uint64) {
	t.Helper()
	world.Do(t, netns, func(h *nlHandle) {
		var err error
		frames, err = h.Dropped(index(t, h, name))
		must(t, err)
	})
	return frames
}

type strange struct {
	frame  []byte
	seen   []byte // as a packet socket shows it; nil: the same
	passes bool
}

func strangeFrames(t *testing.T, own, other net.HardwareAddr) map[string]strange {
	t.Helper()
	broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	arp := func(mac net.HardwareAddr, ip string) []byte {
		return serialize(t, &layers.Ethernet{SrcMAC: own, DstMAC: broadcast, EthernetType: layers.EthernetTypeARP}, &layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: layers.ARPReply,
			SourceHwAddress: mac, SourceProtAddress: net.ParseIP(ip).To4(), DstHwAddress: broadcast, DstProtAddress: net.ParseIP("192.0.2.9").To4(),
		}, gopacket.Payload(make([]byte, 18)))
	}
	udp4 := func(mac net.HardwareAddr, from string, source layers.UDPPort) []byte {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.ParseIP(from), DstIP: net.ParseIP("192.0.2.9")}
		udp := &layers.UDP{SrcPort: source, DstPort: 4711}
		must(t, udp.SetNetworkLayerForChecksum(ip))
		return serialize(t, &layers.Ethernet{SrcMAC: mac, DstMAC: broadcast, EthernetType: layers.EthernetTypeIPv4}, ip, udp, gopacket.Payload(make([]byte, 30)))
	}
	v6 := func(from string, protocol layers.IPProtocol, rest ...gopacket.SerializableLayer) []byte {
		ip := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: protocol, SrcIP: net.ParseIP(from), DstIP: net.ParseIP("ff02::1")}
		for _, layer := range rest {
			if l, ok := layer.(interface {
				SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
			}); ok {
				must(t, l.SetNetworkLayerForChecksum(ip))
			}
		}
		ethernet := &layers.Ethernet{SrcMAC: own, DstMAC: net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, EthernetType: layers.EthernetTypeIPv6}
		return serialize(t, append([]gopacket.SerializableLayer{ethernet, ip}, rest...)...)
	}
	icmp := func(kind uint8) *layers.ICMPv6 { return &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)} }
	advertise := func(target string) gopacket.Payload {
		return append(make([]byte, 4), netip.MustParseAddr(target).AsSlice()...)
	}
	inside := udp4(own, world.Pod4, 8)
	tagged := append(append(append([]byte{}, inside[:12]...), 0x81, 0, 0, 10), inside[12:]...)
	datagram := func(source layers.UDPPort) []gopacket.SerializableLayer {
		return []gopacket.SerializableLayer{&layers.UDP{SrcPort: source, DstPort: 4711}, gopacket.Payload(make([]byte, 20))}
	}
	return map[string]strange{
		"its own datagram":                  {udp4(own, world.Pod4, 1), nil, true},
		"datagram without an address":       {udp4(own, "0.0.0.0", 2), nil, true},
		"another MAC":                       {udp4(other, world.Pod4, 3), nil, false},
		"another IPv4 address":              {udp4(own, "192.0.2.77", 4), nil, false},
		"a DHCP server":                     {udp4(own, world.Pod4, 67), nil, false},
		"its own ARP":                       {arp(own, world.Pod4), nil, true},
		"ARP for another address":           {arp(own, "192.0.2.1"), nil, false},
		"ARP for another MAC":               {arp(other, world.Pod4), nil, false},
		"a tag":                             {tagged, inside, false},
		"its own IPv6":                      {v6(world.Pod6, layers.IPProtocolUDP, datagram(5)...), nil, true},
		"link-local":                        {v6("fe80::1234", layers.IPProtocolUDP, datagram(6)...), nil, true},
		"another IPv6 address":              {v6("2001:db8::77", layers.IPProtocolUDP, datagram(7)...), nil, false},
		"a DHCPv6 server":                   {v6("fe80::1234", layers.IPProtocolUDP, datagram(547)...), nil, false},
		"a router":                          {v6("fe80::1234", layers.IPProtocolICMPv6, icmp(134), gopacket.Payload(make([]byte, 12))), nil, false},
		"neighbour advertisement":           {v6(world.Pod6, layers.IPProtocolICMPv6, icmp(136), advertise(world.Pod6)), nil, true},
		"neighbour advertisement of others": {v6(world.Pod6, layers.IPProtocolICMPv6, icmp(136), advertise(world.Outside6)), nil, false},
	}
}

// packets reads every frame that an interface receives.
type packets struct{ fd int }

// sniff must be called in the interface's namespace.
func sniff(name string) (*packets, error) {
	every := uint16(unix.ETH_P_ALL)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(every<<8|every>>8))
	if err != nil {
		return nil, err
	}
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &packets{fd}, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: every<<8 | every>>8, Ifindex: link.Index})
}

// Close ends it.
func (p *packets) Close() { _ = unix.Close(p.fd) }

func (p *packets) has(want []byte, patience time.Duration) bool {
	buffer := make([]byte, 1<<16)
	for deadline := time.Now().Add(patience); ; {
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		timeout := unix.NsecToTimeval(left.Nanoseconds())
		if unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout) != nil {
			return false
		}
		n, _, err := unix.Recvfrom(p.fd, buffer, 0)
		if err == nil && bytes.Equal(buffer[:n], want) {
			return true
		}
	}
}

// TestAskedMAC: a plugin without the capability mac leaves it to the pod stage to give interface and guest the MAC that the
// networks annotation asks for (NW-063).
func TestAskedMAC(t *testing.T) {
	const asked = "02:aa:00:00:00:77"
	file := filepath.Join(t.TempDir(), "log")
	a := newAttachment(t, world.Options{Extra: []string{"net1"}}, map[string]string{
		"podvirt.dev/vm": "web", "k8s.v1.cni.cncf.io/networks": `[{"name":"lan","interface":"net1","mac":"` + asked + `"}]`,
	})
	a.extra = map[string]any{"logFile": file}
	given := macOf(t, a.Pod, "net1").String()
	must(t, a.add(t))
	nic := a.BootNIC(t, 1, "net1")
	if got := macOf(t, a.Pod, "net1").String(); got != asked || nic.MAC.String() != asked {
		t.Errorf("interface %s, guest %s; want %s", got, nic.MAC, asked)
	}
	text, err := os.ReadFile(file)
	if want := "net1: its plugin gave it " + given + ", not the " + asked; err != nil || !strings.Contains(string(text), want) {
		t.Errorf("log %q, %v; want %q", text, err, want)
	}
	must(t, a.check(t))
	must(t, a.del(t))
	if got := macOf(t, a.Pod, "net1").String(); got != given {
		t.Errorf("after DEL the interface has %s; want %s", got, given)
	}
}
