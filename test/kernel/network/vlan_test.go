package network

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"podvirt.dev/internal/nl"
	"podvirt.dev/test/kernel/internal/inguest"
)

// quiet is how long a port that must not see a frame is watched.
const quiet = time.Second

// arrival is how long a frame may take under emulation.
const arrival = 10 * time.Second

// TestBridgeKeepsVLANsApart sends a broadcast frame into an access port of VLAN 10 and looks where it comes out.
func TestBridgeKeepsVLANsApart(t *testing.T) {
	inguest.Must(t)
	h := newNamespace(t)
	if err := h.AddFilteringBridge("br0"); err != nil {
		t.Fatal(err)
	}
	up(t, h, "br0", 0)
	bridge := index(t, h, "br0")
	sender := port(t, h, "a10", bridge, 10, true)
	tests := map[string]struct {
		port    *os.File
		arrives bool
		tag     uint16
	}{
		"access port of the same VLAN":   {port(t, h, "b10", bridge, 10, true), true, 0},
		"access port of another VLAN":    {port(t, h, "c20", bridge, 20, true), false, 0},
		"trunk port with the VLAN":       {port(t, h, "d10", bridge, 10, false), true, 10},
		"trunk port without the VLAN":    {port(t, h, "e20", bridge, 20, false), false, 0},
		"port that no VLAN was given to": {member(t, h, "f", bridge), false, 0},
	}
	if _, err := sender.Write(probe(t, "10.9.9.9", "10.9.9.10", 0)); err != nil {
		t.Fatal(err)
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			wait := quiet
			if tt.arrives {
				wait = arrival
			}
			frame, ok := receive(t, tt.port, wait, func(p gopacket.Packet) bool { return isARP(p, layers.ARPRequest, "10.9.9.9") })
			if ok != tt.arrives {
				t.Fatalf("arrived = %v; want %v", ok, tt.arrives)
			}
			if ok && tagOf(frame) != tt.tag {
				t.Errorf("tag = %d; want %d", tagOf(frame), tt.tag)
			}
		})
	}
}

// TestVLANInterfaceAnswersWithItsTag asks an interface of VLAN 10 for its address, with that tag and with another one.
func TestVLANInterfaceAnswersWithItsTag(t *testing.T) {
	inguest.Must(t)
	h := newNamespace(t)
	wire := member(t, h, "wire", 0)
	if err := h.AddVLAN("wire.10", index(t, h, "wire"), 10); err != nil {
		t.Fatal(err)
	}
	up(t, h, "wire.10", 0)
	if err := h.AddAddress(index(t, h, "wire.10"), netip.MustParsePrefix("10.9.9.10/24")); err != nil {
		t.Fatal(err)
	}
	for tag, answers := range map[uint16]bool{10: true, 20: false} {
		if _, err := wire.Write(probe(t, "10.9.9.9", "10.9.9.10", tag)); err != nil {
			t.Fatal(err)
		}
		wait := quiet
		if answers {
			wait = arrival
		}
		answer, ok := receive(t, wire, wait, func(p gopacket.Packet) bool { return isARP(p, layers.ARPReply, "10.9.9.10") })
		if ok != answers || ok && tagOf(answer) != tag {
			t.Errorf("asked with tag %d: answer = %v, %v; want an answer with that tag: %v", tag, ok, answer, answers)
		}
	}
}

// newNamespace moves the test to a network namespace of its own. Its thread ends with the test.
func newNamespace(t *testing.T) *nl.Handle {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	h, err := nl.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// member makes a tap, a port of the bridge unless that is 0, and returns its other end.
func member(t *testing.T, h *nl.Handle, name string, bridge int) *os.File {
	t.Helper()
	if err := nl.AddTap(name, nl.Tap{}); err != nil {
		t.Fatal(err)
	}
	f, err := nl.OpenTap(name, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	up(t, h, name, bridge)
	return f
}

func port(t *testing.T, h *nl.Handle, name string, bridge int, id uint16, access bool) *os.File {
	t.Helper()
	f := member(t, h, name, bridge)
	if err := h.AddPortVLAN(index(t, h, name), id, access); err != nil {
		t.Fatal(err)
	}
	return f
}

func up(t *testing.T, h *nl.Handle, name string, bridge int) {
	t.Helper()
	if err := h.Set(index(t, h, name), nl.Changes{Master: bridge, Up: true}); err != nil {
		t.Fatal(err)
	}
}

func index(t *testing.T, h *nl.Handle, name string) int {
	t.Helper()
	link, err := h.Link(name)
	if err != nil {
		t.Fatal(err)
	}
	return link.Index
}

// probe is a broadcast ARP request, tagged unless the tag is 0.
func probe(t *testing.T, from, to string, tag uint16) []byte {
	t.Helper()
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	parts := []gopacket.SerializableLayer{&layers.Ethernet{SrcMAC: mac, DstMAC: broadcast, EthernetType: layers.EthernetTypeARP}}
	if tag != 0 {
		parts = []gopacket.SerializableLayer{
			&layers.Ethernet{SrcMAC: mac, DstMAC: broadcast, EthernetType: layers.EthernetTypeDot1Q},
			&layers.Dot1Q{VLANIdentifier: tag, Type: layers.EthernetTypeARP},
		}
	}
	parts = append(parts, &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
		Operation: layers.ARPRequest, SourceHwAddress: mac, SourceProtAddress: net.ParseIP(from).To4(),
		DstHwAddress: make([]byte, 6), DstProtAddress: net.ParseIP(to).To4(),
	})
	buffer := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true}, parts...); err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}

// receive reads frames until one is wanted or the time is over.
func receive(t *testing.T, port *os.File, wait time.Duration, wanted func(gopacket.Packet) bool) (gopacket.Packet, bool) {
	t.Helper()
	if err := port.SetReadDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 2048)
	for {
		n, err := port.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, false
		}
		if err != nil {
			t.Fatal(err)
		}
		frame := append([]byte(nil), buffer[:n]...)
		if p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default); wanted(p) {
			return p, true
		}
	}
}

func isARP(p gopacket.Packet, operation uint16, from string) bool {
	arp, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP)
	return ok && arp.Operation == operation && net.IP(arp.SourceProtAddress).String() == from
}

func tagOf(p gopacket.Packet) uint16 {
	if tag, ok := p.Layer(layers.LayerTypeDot1Q).(*layers.Dot1Q); ok {
		return tag.VLANIdentifier
	}
	return 0
}
