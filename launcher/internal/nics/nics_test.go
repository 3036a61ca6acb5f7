package nics

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netns"

	"podvirt.dev/api"
	"podvirt.dev/internal/nicalias"
	"podvirt.dev/internal/nl"
	"podvirt.dev/internal/require"
)

func alias(name, itf string) nicalias.NIC {
	return nicalias.NIC{
		Name: name, Interface: itf, Binding: string(api.BindingMasquerade), MAC: net.HardwareAddr{2, 0xaa, 0, 0, 0, 1},
		Guest4: netip.MustParsePrefix("10.0.2.2/24"), Guest6: netip.MustParsePrefix("fd10:0:2::2/120"), MultiQueue: true, PortBase: 49152,
	}
}

// inNamespace runs the test in a network namespace of its own, which ends with the test.
func inNamespace(t *testing.T) *nl.Handle {
	t.Helper()
	require.Root(t)
	runtime.LockOSThread() // never unlocked: the thread, which changed its namespace, dies with the test
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	space, err := netns.New()
	if err != nil {
		require.Feature(t, false, "network namespaces: "+err.Error())
	}
	t.Cleanup(func() {
		_ = netns.Set(before)
		_ = before.Close()
		_ = space.Close()
	})
	handle, err := nl.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(handle.Close)
	return handle
}

// makeTap leaves a tap as the CNI plugin does.
func makeTap(t *testing.T, h *nl.Handle, name, text string, tap nl.Tap, addresses ...string) {
	t.Helper()
	if err := nl.AddTap(name, tap); err != nil {
		t.Fatal(err)
	}
	link, err := h.Link(name)
	if err != nil {
		t.Fatal(err)
	}
	changes := nl.Changes{Alias: text, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 0}, MTU: 1450, Up: true}
	if err := h.Set(link.Index, changes); err != nil {
		t.Fatal(err)
	}
	for _, address := range addresses {
		if err := h.AddAddress(link.Index, netip.MustParsePrefix(address)); err != nil {
			t.Fatal(err)
		}
	}
}

func text(t *testing.T, nic nicalias.NIC) string {
	t.Helper()
	text, err := nic.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestFind(t *testing.T) {
	h := inNamespace(t)
	owner := uint32(107)
	tap := nl.Tap{UID: &owner, GID: &owner, MultiQueue: true}
	// Made in another order than that of the NICs, between interfaces that are not ours.
	makeTap(t, h, "tap10", text(t, alias("net10", "net10")), tap)
	makeTap(t, h, "tap1", text(t, alias("net1", "net1")), tap)
	makeTap(t, h, "tap2", "somebody's", nl.Tap{})
	makeTap(t, h, "svc0", nicalias.Service(), tap)
	makeTap(t, h, "tap0", text(t, alias("default", "eth0")), tap, "10.0.2.1/24", "fd10:0:2::1/120", "fe80::ff:fe00:0/64")

	got, err := Find(h, Wanted{UID: 107, Annotated: true})
	if err != nil {
		t.Fatal(err)
	}
	want := NIC{
		NIC: alias("default", "eth0"), Tap: "tap0", Service: "svc0", MTU: 1450, GatewayMAC: net.HardwareAddr{2, 0, 0, 0, 0, 0},
		Gateway4: netip.MustParseAddr("10.0.2.1"), Gateway6: netip.MustParseAddr("fd10:0:2::1"),
		LinkLocal: netip.MustParseAddr("fe80::ff:fe00:0"),
	}
	if len(got) != 3 || got[1].Name != "net1" || got[2].Name != "net10" {
		t.Fatalf("NICs = %+v; want default, net1, net10", got)
	}
	if diff := cmp.Diff(want, got[0], cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("(-want,+got)\n%s", diff)
	}

	_, err = Find(h, Wanted{UID: 1000, Annotated: true})
	wantError(t, err, api.ReasonBadConfig, `belongs to uid 107, the launcher runs as 1000; set podvirt.dev/tap-owner: "1000"`)
}

// TestFindBridged: what the Pod interface has given up for the guest is in the alias, the launcher's own address on the
// service tap.
func TestFindBridged(t *testing.T) {
	h := inNamespace(t)
	owner := uint32(107)
	tap := nl.Tap{UID: &owner, GID: &owner}
	bridged := alias("default", "eth0")
	bridged.Binding, bridged.PodOnLink = string(api.BindingBridge), true
	bridged.Guest4, bridged.Guest6 = netip.MustParsePrefix("192.0.2.17/24"), netip.MustParsePrefix("2001:db8::17/64")
	bridged.PodGateway4, bridged.PodGateway6 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fe80::1")
	makeTap(t, h, "tap0", text(t, bridged), tap)
	makeTap(t, h, "svc0", nicalias.Service(), tap, "169.254.75.1/32", "fe80::ff:fe00:0/64")
	got, err := Find(h, Wanted{UID: 107, Annotated: true})
	if err != nil || len(got) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	want := NIC{
		NIC: bridged, Tap: "tap0", Service: "svc0", MTU: 1450, GatewayMAC: net.HardwareAddr{2, 0, 0, 0, 0, 0}, OnLink: true,
		Gateway4: bridged.PodGateway4, Gateway6: bridged.PodGateway6,
		Server4: netip.MustParseAddr("169.254.75.1"), LinkLocal: netip.MustParseAddr("fe80::ff:fe00:0"),
	}
	if diff := cmp.Diff(want, got[0], cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("(-want,+got)\n%s", diff)
	}
	bridged.PodOnLink = false // a routed Pod
	makeTap(t, h, "tap1", text(t, bridged), tap)
	makeTap(t, h, "svc1", nicalias.Service(), tap)
	if got, err = Find(h, Wanted{UID: 107, Annotated: true}); err != nil || len(got) != 2 || len(got[1].Routes) != 1 ||
		got[1].Routes[0].Destination.String() != "192.0.2.1/32" {
		t.Errorf("%+v, %v; want a route to the gateway", got, err)
	}
}

func TestFindErrors(t *testing.T) {
	newer := strings.Replace(text(t, alias("default", "eth0")), "podvirt/1", "podvirt/2", 1)
	rows := []struct {
		name   string
		links  []nl.Link
		wanted Wanted
		reason api.Reason
		text   string
	}{
		{"no annotation", nil, Wanted{}, api.ReasonNodeLacks, "no tap for nic default: this Pod has no annotation podvirt.dev/vm"},
		{"sandbox older than the plugin", nil, Wanted{Annotated: true}, api.ReasonNodeLacks,
			"the network stage of this node did not see this Pod (made before it was installed, " +
				"or the runtime passes no annotations); delete this Pod"},
		{"host network", nil, Wanted{Host: true}, api.ReasonBadConfig, "hostNetwork: a VM Pod needs a network namespace of its own"},
		{"newer plugin", []nl.Link{{Name: "tap0", Alias: newer}}, Wanted{Annotated: true}, api.ReasonNodeLacks,
			"tap0: alias of a newer version: podvirt/2; this program knows podvirt/1"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			_, err := Find(fakeNamespace(row.links), row.wanted)
			wantError(t, err, row.reason, row.text)
		})
	}
	if found, err := Find(fakeNamespace(nil), Wanted{None: true}); err != nil || len(found) != 0 {
		t.Errorf("a VM without NICs: %v, %v", found, err)
	}
	if _, err := Find(fakeNamespace{{Name: "tap0", Alias: "podvirt/1 nic=default"}}, Wanted{}); err == nil {
		t.Error("a broken alias was taken")
	}
}

func wantError(t *testing.T, err error, reason api.Reason, text string) {
	t.Helper()
	var refused *Error
	if !errors.As(err, &refused) || refused.Reason != reason || !strings.HasSuffix(refused.Text, text) {
		t.Errorf("err = %#v; want %s: %s", err, reason, text)
	}
}

type fakeNamespace []nl.Link

func (f fakeNamespace) Links() ([]nl.Link, error)           { return f, nil }
func (f fakeNamespace) Addresses(int) ([]nl.Address, error) { return nil, nil }
func (f fakeNamespace) Routes() ([]nl.Route, error)         { return nil, nil }

// TestFindWire reads what the guest of an interface with addresses of its own is told.
func TestFindWire(t *testing.T) {
	h := inNamespace(t)
	own := alias("net1", "net1")
	own.Binding, own.Guest4 = string(api.BindingWire), netip.MustParsePrefix("198.51.100.7/24")
	makeTap(t, h, "net1", "", nl.Tap{}, "198.51.100.7/24")
	makeTap(t, h, "tap0", text(t, alias("default", "eth0")), nl.Tap{}, "10.0.2.1/24")
	makeTap(t, h, "tap1", text(t, own), nl.Tap{})
	makeTap(t, h, "svc1", nicalias.Service(), nl.Tap{}, "169.254.75.2/32", "fe80::ff:fe00:0/64")
	net1, err := h.Link("net1")
	if err != nil {
		t.Fatal(err)
	}
	for destination, gateway := range map[string]string{"0.0.0.0/0": "198.51.100.1", "203.0.113.0/24": "198.51.100.2"} {
		route := nl.Route{Link: net1.Index, Destination: netip.MustParsePrefix(destination), Gateway: netip.MustParseAddr(gateway)}
		if err := h.AddRoute(route); err != nil {
			t.Fatal(err)
		}
	}
	found, err := Find(h, Wanted{UID: 0, Annotated: true})
	if err != nil || len(found) != 2 {
		t.Fatalf("Find = %+v, %v; want two NICs", found, err)
	}
	nic := found[1]
	if nic.Service != "svc1" || nic.Server4.String() != "169.254.75.2" || nic.Gateway4.String() != "198.51.100.1" || !nic.LinkLocal.IsLinkLocalUnicast() {
		t.Errorf("%+v", nic)
	}
	if len(nic.Routes) != 1 || nic.Routes[0].Destination.String() != "203.0.113.0/24" {
		t.Errorf("routes %+v", nic.Routes)
	}
}

func TestHostNamespace(t *testing.T) {
	host := fstest.MapFS{"proc/sys/net/core/netdev_max_backlog": {}}
	if !HostNamespace(host) || HostNamespace(fstest.MapFS{}) {
		t.Error("want true with the sysctl of the host's namespace and false without")
	}
	inNamespace(t)
	if HostNamespace(os.DirFS("/")) {
		t.Error("a new namespace is taken for the host's")
	}
}
