package nicalias

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func longest() NIC {
	return NIC{
		Name: "abcdefghijklmno", Interface: "fifteen-letters", Binding: "masquerade",
		MAC:    net.HardwareAddr{0x02, 1, 2, 3, 4, 5},
		Guest4: netip.MustParsePrefix("192.168.255.254/24"), Guest6: netip.MustParsePrefix("fd10:1111:2222:3333:4444:5555:6666:7777/120"),
		MultiQueue: true, PortBase: 65532,
	}
}

func TestRoundTripAndLength(t *testing.T) {
	for name, want := range map[string]NIC{
		"longest legal options": longest(),
		"longest of a bridge": {
			Name: "abcdefghijklmno", Interface: "fifteen-letters", Binding: "bridge", MAC: net.HardwareAddr{0x02, 1, 2, 3, 4, 5},
			Guest4: netip.MustParsePrefix("192.168.255.254/24"), Guest6: netip.MustParsePrefix("fd10:1111:2222:3333:4444:5555:6666:7777/120"),
			PodGateway4: netip.MustParseAddr("192.168.255.253"), PodGateway6: netip.MustParseAddr("fd10:1111:2222:3333:4444:5555:6666:7778"),
			PodOnLink: true, MultiQueue: true, PortBase: 65532,
		},
		"v4 only, one queue": {
			Name: "default", Interface: "eth0", Binding: "masquerade", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1},
			Guest4: netip.MustParsePrefix("10.0.2.2/24"), PortBase: 49152,
		},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := want.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if len(text) > MaxLength {
				t.Errorf("%q has %d bytes; want at most %d", text, len(text), MaxLength)
			}
			got, err := Decode(text)
			if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); err != nil || diff != "" {
				t.Errorf("Decode(%q): %v (-want,+got)\n%s", text, err, diff)
			}
		})
	}
}

func TestGolden(t *testing.T) {
	nic := NIC{
		Name: "default", Interface: "eth0", Binding: "masquerade", MAC: net.HardwareAddr{2, 0xaa, 0, 0, 0, 1},
		Guest4: netip.MustParsePrefix("10.0.2.2/24"), Guest6: netip.MustParsePrefix("fd10:0:2::2/120"), MultiQueue: true, PortBase: 49152,
	}
	want := "podvirt/1 nic=default if=eth0 b=masquerade mac=02:aa:00:00:00:01 g4=10.0.2.2/24 g6=fd10:0:2::2/120 q=mq p=49152"
	if got, err := nic.Encode(); got != want || err != nil {
		t.Errorf("Encode = %q, %v\nwant     %q", got, err, want)
	}
}

func TestRefusals(t *testing.T) {
	valid, err := longest().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		alias string
		want  error // nil: any
	}{
		"empty":          {"", ErrNotOurs},
		"somebody else":  {"uplink of rack 7", ErrNotOurs},
		"no number":      {"podvirt/x nic=a", ErrNotOurs},
		"newer":          {strings.Replace(valid, "podvirt/1", "podvirt/2", 1), ErrNewer},
		"service tap":    {Service(), ErrService},
		"bad MAC":        {strings.Replace(valid, "mac=02:", "mac=xx:", 1), nil},
		"bad port":       {strings.Replace(valid, "p=65532", "p=70000", 1), nil},
		"name missing":   {strings.Replace(valid, "nic=", "xyz=", 1), nil},
		"bad prefix":     {strings.Replace(valid, "g4=", "g4=x", 1), nil},
		"bad IPv6":       {strings.Replace(valid, "g6=", "g6=x", 1), nil},
		"nothing behind": {"podvirt/1", nil},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Decode(row.alias); err == nil || row.want != nil && !errors.Is(err, row.want) {
				t.Errorf("Decode(%q) = %v; want %v", row.alias, err, row.want)
			}
		})
	}
	blank := longest()
	blank.Name = "a b"
	if text, err := blank.Encode(); err == nil {
		t.Errorf("Encode with a blank = %q; want an error", text)
	}
}

func TestUnknownWordsOfOurVersionArePassedOver(t *testing.T) {
	valid, err := longest().Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(valid + " new=1 flag")
	if diff := cmp.Diff(longest(), got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); err != nil || diff != "" {
		t.Errorf("Decode: %v (-want,+got)\n%s", err, diff)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("podvirt/1 nic=default if=eth0 b=masquerade mac=02:aa:00:00:00:01 g4=10.0.2.2/24 q=mq p=49152")
	f.Fuzz(func(t *testing.T, alias string) {
		nic, err := Decode(alias)
		if err != nil {
			return
		}
		again, err := nic.Encode()
		if err != nil {
			return // longer than the kernel would have taken
		}
		if got, err := Decode(again); err != nil || got.Name != nic.Name || got.PortBase != nic.PortBase {
			t.Errorf("%q decodes, its own encoding %q does not: %v", alias, again, err)
		}
	})
}
