package spoof

import (
	"net"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"

	"podvirt.dev/internal/nl"
	"podvirt.dev/internal/require"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestOneSourcePerPort sends frames by the ports of a bridge, from the MAC that may and from others.
func TestOneSourcePerPort(t *testing.T) {
	require.Root(t)
	netns, err := testutils.NewNS()
	must(t, err)
	defer func() { must(t, netns.Close()); must(t, testutils.UnmountNS(netns)) }()
	must(t, netns.Do(func(ns.NetNS) error { oneSourcePerPort(t); return nil }))
}

func oneSourcePerPort(t *testing.T) {
	h, err := nl.Open()
	must(t, err)
	defer h.Close()
	must(t, h.AddBridge("br0"))
	bridge, err := h.Link("br0")
	must(t, err)
	must(t, h.Set(bridge.Index, nl.Changes{Up: true}))
	ports := map[string]interface {
		Read([]byte) (int, error)
		Write([]byte) (int, error)
		SetReadDeadline(time.Time) error
	}{}
	for _, name := range []string{"a", "b", "sink"} {
		tap, err := nl.OpenTap(name, 0)
		must(t, err)
		defer tap.Close()
		link, err := h.Link(name)
		must(t, err)
		must(t, h.Set(link.Index, nl.Changes{Master: bridge.Index, Up: true}))
		ports[name] = tap
	}
	mac := func(last byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, last} }
	must(t, Guard("a", mac(1)))
	must(t, Guard("b", mac(9)))
	must(t, Guard("b", mac(2))) // replaces
	number := byte(0)
	arrives := func(port string, source net.HardwareAddr) bool {
		number++
		frame := append([]byte{255, 255, 255, 255, 255, 255}, source...)
		frame = append(frame, 0x88, 0xb5, number) // an EtherType for experiments
		frame = append(frame, make([]byte, 60)...)
		_, err := ports[port].Write(frame)
		must(t, err)
		buffer := make([]byte, 2000)
		must(t, ports["sink"].SetReadDeadline(time.Now().Add(300*time.Millisecond)))
		for {
			n, err := ports["sink"].Read(buffer)
			if err != nil {
				return false
			}
			if n > 14 && buffer[12] == 0x88 && buffer[13] == 0xb5 && buffer[14] == number {
				return true
			}
		}
	}
	expect := func(when, port string, last byte, want bool) {
		if got := arrives(port, mac(last)); got != want {
			t.Errorf("%s: a frame of %s by port %s arrives: %v; want %v", when, mac(last), port, got, want)
		}
	}
	expect("guarded", "a", 1, true)
	expect("guarded", "a", 2, false)
	expect("guarded", "b", 2, true)
	expect("guarded", "b", 9, false)
	if macs, err := Allowed("b"); err != nil || len(macs) != 1 || macs[0].String() != mac(2).String() {
		t.Errorf("Allowed(b) = %v, %v", macs, err)
	}
	must(t, Release("a"))
	expect("a released", "a", 2, true)
	expect("a released", "b", 9, false)
	must(t, Release("a"))
	must(t, Release("b"))
	if macs, err := Allowed("b"); err != nil || len(macs) != 0 {
		t.Errorf("after the last: Allowed(b) = %v, %v", macs, err)
	}
	expect("all released", "b", 9, true)
}

// TestOnce: what the kernel lists twice counts once; make soak-cni met it with 200 ports.
func TestOnce(t *testing.T) {
	a, b := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	if got := once([]net.HardwareAddr{b, a, b}); len(got) != 2 || got[0].String() != a.String() || got[1].String() != b.String() {
		t.Errorf("%v", got)
	}
}
