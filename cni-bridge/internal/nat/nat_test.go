package nat

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"podvirt.dev/api"
	"podvirt.dev/cni-bridge/internal/world"
	"podvirt.dev/internal/nl"
)

func TestMerge(t *testing.T) {
	tcp := func(first, last int) api.PortRange { return api.PortRange{First: first, Last: last, Protocol: "tcp"} }
	udp := func(first, last int) api.PortRange { return api.PortRange{First: first, Last: last, Protocol: "udp"} }
	for name, row := range map[string]struct{ in, want []api.PortRange }{
		"apart":              {[]api.PortRange{tcp(80, 80), tcp(22, 22)}, []api.PortRange{tcp(22, 22), tcp(80, 80)}},
		"twice":              {[]api.PortRange{tcp(80, 80), tcp(80, 80)}, []api.PortRange{tcp(80, 80)}},
		"overlapping":        {[]api.PortRange{tcp(10, 20), tcp(15, 30), tcp(12, 13)}, []api.PortRange{tcp(10, 30)}},
		"touching":           {[]api.PortRange{tcp(10, 20), tcp(21, 30)}, []api.PortRange{tcp(10, 30)}},
		"protocols separate": {[]api.PortRange{udp(1, 9), tcp(1, 9)}, []api.PortRange{tcp(1, 9), udp(1, 9)}},
	} {
		if got := fmt.Sprint(Merge(row.in)); got != fmt.Sprint(row.want) {
			t.Errorf("%s: %s; want %v", name, got, row.want)
		}
	}
}

func spec(ports []api.PortRange) Spec {
	return Spec{
		Tap: "tap0", Pod: "eth0", Ports: ports,
		V4:       Family{Guest: netip.MustParseAddr("10.0.2.2"), Pod: []netip.Addr{netip.MustParseAddr("192.0.2.2")}},
		V6:       Family{Guest: netip.MustParseAddr("fd10:0:2::2"), Pod: []netip.Addr{netip.MustParseAddr("2001:db8::2")}},
		Reserved: []api.PortRange{{First: 49152, Last: 49155, Protocol: "tcp"}}, Loopback: Loopback{Port: 49154, Priority: 5},
	}
}

// TestTheKernelTakesWhatIsLaidOut makes tables with up to 128 random port entries, and removes them.
func TestTheKernelTakesWhatIsLaidOut(t *testing.T) {
	w := world.New(t, world.Options{})
	random := rand.New(rand.NewPCG(1, 2))
	protocols := []string{"tcp", "udp", "sctp"}
	world.Do(t, w.Pod, func(*nl.Handle) {
		for _, count := range []int{-1, 0, 1, 2, 127, 128} {
			var ports []api.PortRange
			for range count {
				first := 1 + random.IntN(65535)
				ports = append(ports, api.PortRange{First: first, Last: min(65535, first+random.IntN(300)), Protocol: protocols[random.IntN(3)]})
			}
			if count == 0 {
				ports = []api.PortRange{}
			}
			want, err := CountRules(spec(ports))
			if err != nil {
				t.Fatal(err)
			}
			if err := Apply(spec(ports)); err != nil {
				t.Fatalf("%d ports: %v", count, err)
			}
			if got, err := Rules(); got != want || err != nil {
				t.Errorf("%d ports: %d rules, %v; want %d", count, got, err, want)
			}
		}
		for range 2 {
			if err := Delete(); err != nil {
				t.Errorf("Delete: %v", err)
			}
		}
		if got, err := Rules(); got != 0 || err != nil {
			t.Errorf("after Delete: %d rules, %v", got, err)
		}
	})
}

func TestUnknownProtocol(t *testing.T) {
	if _, err := CountRules(spec([]api.PortRange{{First: 1, Last: 1, Protocol: "icmp"}})); err == nil {
		t.Error("a port of ICMP was taken")
	}
}
