package nicplan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/api"
	"podvirt.dev/cni-bridge/internal/fault"
	"podvirt.dev/cni-bridge/internal/netconf"
)

func eth0(prefixes ...string) []Interface {
	itf := Interface{Name: "eth0"}
	for _, p := range prefixes {
		itf.Prefixes = append(itf.Prefixes, netip.MustParsePrefix(p))
	}
	return []Interface{itf}
}

func config() netconf.Config {
	c := netconf.Defaults("/x")
	c.MACSalt = "salt"
	return c
}

func TestDefaultNIC(t *testing.T) {
	nics, err := Make(config(), api.VM{Name: "web"}, Pod{Namespace: "shop", Name: "web-0"}, eth0("192.0.2.2/24", "2001:db8::2/64"))
	if err != nil || len(nics) != 1 {
		t.Fatal(nics, err)
	}
	n := nics[0]
	got := fmt.Sprintln(n.Index, n.Name, n.Interface, n.Binding, n.SingleQueue, n.Ports, n.DHCP, n.RA, n.V4, n.V6)
	want := "0 default eth0 masquerade false [] true true {10.0.2.0/24 10.0.2.1/24 10.0.2.2/24 [192.0.2.2]} " +
		"{fd10:0:2::/120 fd10:0:2::1/120 fd10:0:2::2/120 [2001:db8::2]}\n"
	if got != want {
		t.Errorf("NIC\n%s\nwant\n%s", got, want)
	}
}

func TestMACs(t *testing.T) {
	pod := Pod{Namespace: "shop", Name: "web-0"}
	ofVM, ofPod := DeriveMAC([]byte{2}, "salt", "shop", "web", "default").String(), DeriveMAC([]byte{2}, "salt", "shop", "web-0", "default").String()
	asked := func(mac string) api.VM { return api.VM{Name: "web", NICs: []api.NIC{{Name: "default", MAC: mac}}} }
	for name, row := range map[string]struct {
		vm   api.VM
		want string // "": that of the Pod interface
	}{
		"derived from the VM":       {api.VM{Name: "web"}, ofVM},
		"of a pool: from the Pod":   {api.VM{Name: "web", Identity: api.IdentityPod}, ofPod},
		"no name: from the Pod":     {api.VM{}, ofPod},
		"asked for the Pod's":       {asked("pod"), ofPod},
		"written":                   {asked("02:aa:00:00:00:10"), "02:aa:00:00:00:10"},
		"that of the Pod interface": {asked("cni"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			nics, err := Make(config(), row.vm, pod, eth0("192.0.2.2/24"))
			if err != nil || nics[0].MAC.String() != row.want {
				t.Errorf("MAC %v, %v; want %s", nics, err, row.want)
			}
		})
	}
}

// TestMACVectors: these must never change, or every VM of an upgraded cluster has new MACs.
func TestMACVectors(t *testing.T) {
	for _, row := range []struct {
		prefix                   net.HardwareAddr
		salt, namespace, vm, nic string
		want                     string
	}{
		{net.HardwareAddr{0x02}, "", "shop", "web", "default", "02:58:5a:68:e3:7b"},
		{net.HardwareAddr{0x02}, "6c6ee4ae-6d3c-4d5b-9f0e-3a9e8d7c1b2a", "shop", "web", "default", "02:f7:97:02:0c:c4"},
		{net.HardwareAddr{0x52, 0x54, 0x00}, "", "shop", "web", "default", "52:54:00:58:5a:68"},
		{net.HardwareAddr{0x02}, "", "shop", "web", "net1", "02:f8:8d:78:00:73"},
	} {
		if got := DeriveMAC(row.prefix, row.salt, row.namespace, row.vm, row.nic).String(); got != row.want {
			t.Errorf("MAC of %v = %s; want %s", row, got, row.want)
		}
	}
	if DeriveMAC([]byte{2}, "", "a", "bc", "d").String() == DeriveMAC([]byte{2}, "", "ab", "c", "d").String() {
		t.Error("names that run together have one MAC")
	}
}

func TestAMillionNamesHaveNoSystematicClash(t *testing.T) {
	const names = 1_000_000
	seen := make(map[[5]byte]bool, names)
	clashes := 0
	for i := range names {
		mac := DeriveMAC([]byte{2}, "salt", fmt.Sprintf("ns%d", i%1000), fmt.Sprintf("vm%d", i/1000), "default")
		key := [5]byte(mac[1:])
		if seen[key] {
			clashes++
		}
		seen[key] = true
	}
	// The birthday bound for 40 bits is 0.45 pairs.
	if clashes > 4 {
		t.Errorf("%d of %d MACs are there twice", clashes, names)
	}
}

func TestOrder(t *testing.T) {
	all := []Interface{{Name: "blue"}, {Name: "net1"}, {Name: "eth0"}, {Name: "other"}}
	for annotation, want := range map[string]string{
		"":               "eth0 blue net1 other",
		"a, shop/b@blue": "eth0 net1 blue other",
		`[{"name":"x","interface":"blue"},{"name":"y","interface":"net1"}]`: "eth0 blue net1 other",
		`[{"name":"x"},{"name":"y","interface":"blue"}]`:                    "eth0 net1 blue other",
		"][": "eth0 net1 blue other",
	} {
		var names []string
		for _, itf := range Order(all, "eth0", annotation) {
			names = append(names, itf.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%q: %s; want %s", annotation, got, want)
		}
	}
}

func TestRefusalsComeAtOnce(t *testing.T) {
	c := config()
	c.Pod.AllowedBindings = []api.Binding{api.BindingMasquerade}
	vm := api.VM{Name: "web", NICs: []api.NIC{
		{Name: "default", IPFamily: "6", Ports: []api.PortRange{
			{First: 80, Last: 80, Protocol: "tcp"}, {First: 49150, Last: 49153, Protocol: "tcp"},
		}},
		{Name: "net1", Binding: api.BindingMasquerade},
		{Name: "net7"},
	}}
	interfaces := append(eth0("192.0.2.2/24"), Interface{Name: "net1"}, Interface{Name: "net2"})
	_, err := Make(c, vm, Pod{}, interfaces)
	f, ok := errors.AsType[*fault.Error](err)
	want := []string{
		"podvirt.dev/nic.default: ip-family=6: eth0 has no IPv6 address",
		"podvirt.dev/nic.default: ports=49150-49153: kept for the launcher (49152 to 49155)",
		"podvirt.dev/nic.net1: binding=masquerade: masquerade works only on the pod network; use wire",
		"podvirt.dev/nic.net2: binding=wire: wire is not in network.allowed-bindings: masquerade",
		"podvirt.dev/nic.net7: no such NIC: default, net1, net2; nearest: net1",
	}
	if !ok || f.Code != fault.Annotation {
		t.Fatalf("error %v; want code 100", err)
	}
	if diff := cmp.Diff(want, strings.Split(f.Details, "\n")); diff != "" {
		t.Errorf("lines (-want,+got)\n%s", diff)
	}
	if f.Message != "5 annotations refused" {
		t.Errorf("message %q", f.Message)
	}
}

func TestTooMany(t *testing.T) {
	c := config()
	c.Pod.MaxNICs = 1
	c.Pod.SecondaryBinding = api.BindingNone
	if _, err := Make(c, api.VM{}, Pod{}, append(eth0("192.0.2.2/24"), Interface{Name: "net1"})); err != nil {
		t.Errorf("an interface that stays with the Pod counts as a NIC: %v", err)
	}
}

func TestIsVM(t *testing.T) {
	for key, want := range map[string]bool{
		"podvirt.dev/vm": true, "podvirt.dev/memory": true, "podvirt.dev/nic.default": true, "example.com/vm": false, "vm": false,
	} {
		if got := IsVM(map[string]string{key: "x"}); got != want {
			t.Errorf("IsVM(%s) = %v; want %v", key, got, want)
		}
	}
	if IsVM(nil) {
		t.Error("no annotations make a VM")
	}
}

func TestOnlyOurAnnotationsAreJudged(t *testing.T) {
	if _, err := Parse(map[string]string{"podvirt.dev/vm": "web", "podvirt.dev/memory": "nonsense", "podvirt.dev/nonsense": "x"}); err != nil {
		t.Errorf("the launcher's annotations are judged by the plugin: %v", err)
	}
	_, err := Parse(map[string]string{"podvirt.dev/vm": "web", "podvirt.dev/nic.default": "binding=masq,queues=x"})
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || f.Code != fault.Annotation || !strings.Contains(f.Details, "nearest: masquerade") || !strings.Contains(f.Details, "queues=x") {
		t.Errorf("error %+v; want code 100 and both lines", f)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("podvirt.dev/nic.default", "binding=masquerade,ports=22+80-90/udp,mac=02:aa:00:00:00:10")
	f.Add("podvirt.dev/nic.net1", `dhcp-search="a b",queues=4`)
	f.Add("podvirt.dev/tap-owner", "1000:1000")
	f.Fuzz(func(t *testing.T, key, value string) {
		began := time.Now()
		annotations := map[string]string{api.KeyVM: "web", key: value}
		vm, err := Parse(annotations)
		if err == nil {
			nics, err := Make(config(), vm, Pod{Namespace: "n", Name: "p"}, eth0("192.0.2.2/24", "2001:db8::2/64"))
			if err == nil && slices.ContainsFunc(nics, func(n NIC) bool { return n.MAC != nil && (len(n.MAC) != 6 || n.MAC[0]&1 != 0) }) {
				t.Errorf("%q=%q gives %+v", key, value, nics)
			}
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%q=%q took %s", key, value, took)
		}
	})
}

// TestAgainstThePod: what an annotation asks for and the Pod's interfaces do not allow (NW-039, NW-063).
func TestAgainstThePod(t *testing.T) {
	mac := func(last byte) net.HardwareAddr { return net.HardwareAddr{2, 0xaa, 0, 0, 0, last} }
	interfaces := append(eth0("192.0.2.2/24"), Interface{Name: "net1", MAC: mac(1), MTU: 1500}, Interface{Name: "net2", MAC: mac(2), MTU: 9000},
		Interface{Name: "net3", MAC: mac(3), MTU: 1500}, Interface{Name: "net4", MAC: mac(3), MTU: 1500})
	const both = `[{"name":"a","interface":"net3","mac":"02:aa:00:00:00:03"},{"name":"b","interface":"net4","mac":"02:aa:00:00:00:03"}]`
	for name, row := range map[string]struct {
		nics     []api.NIC
		networks string
		want     string
	}{
		"as large as the Pod's":      {nics: []api.NIC{{Name: "net1", MTU: 1500}, {Name: "net2", MTU: 9000}}},
		"larger than the Pod's":      {nics: []api.NIC{{Name: "net1", MTU: 9000}}, want: "net1: mtu=9000: above the 1500 of net1"},
		"of an interface that stays": {nics: []api.NIC{{Name: "net1", MTU: 9000, Binding: api.BindingNone}}},
		"one MAC twice by itself":    {},
		"one MAC asked for twice": {
			nics: []api.NIC{{Name: "net1", MAC: "02:aa:00:00:00:10"}, {Name: "net2", MAC: "02:aa:00:00:00:10"}},
			want: "net2: mac=02:aa:00:00:00:10: also on nic.net1",
		},
		"that of another interface":   {nics: []api.NIC{{Name: "net1", MAC: "02:AA:00:00:00:02"}}, want: "net2: mac=02:aa:00:00:00:02: also on nic.net1"},
		"asked for twice of networks": {networks: both, want: "net4: mac=02:aa:00:00:00:03: also on nic.net3"},
		"changed places":              {nics: []api.NIC{{Name: "net1", MAC: "02:aa:00:00:00:02"}, {Name: "net2", MAC: "02:aa:00:00:00:01"}}},
	} {
		t.Run(name, func(t *testing.T) {
			c := config()
			c.Annotations = map[string]string{NetworksAnnotation: row.networks}
			_, err := Make(c, api.VM{Name: "web", NICs: row.nics}, Pod{}, interfaces)
			got := ""
			if f, ok := errors.AsType[*fault.Error](err); ok {
				got = strings.TrimPrefix(f.Message, "annotation refused: podvirt.dev/nic.")
			}
			if got != row.want || (err == nil) != (got == "") {
				t.Errorf("%v; want %q", err, row.want)
			}
		})
	}
}
