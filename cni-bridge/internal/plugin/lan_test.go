package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"

	"podvirt.dev/cni-bridge/internal/netconf"
	"podvirt.dev/cni-bridge/internal/world"
	"podvirt.dev/internal/nl"
)

// node is a machine on which network modes work: a namespace with an uplink, whose other end is in a namespace outside.
type node struct {
	netns    ns.NetNS
	stateDir string
	path     string // CNI_PATH
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{stateDir: t.TempDir(), path: t.TempDir(), netns: world.Namespace(t)}
	world.Do(t, n.netns, func(h *nlHandle) { must(t, h.Set(index(t, h, "lo"), nl.Changes{Up: true})) })
	return n
}

// call runs a verb of the plugin on the node, for the interface ifname of a Pod.
func (n *node) call(t *testing.T, pod *attachment, ifname string, conf map[string]any, verb string) (*bytes.Buffer, error) {
	t.Helper()
	out := &bytes.Buffer{}
	p := Plugin{Out: out, AfterStep: pod.plugin.AfterStep}
	args := n.args(t, pod, ifname, conf)
	var err error
	must(t, n.netns.Do(func(ns.NetNS) error {
		funcs := p.Funcs(t.Context())
		err = map[string]func(*skel.CmdArgs) error{
			"ADD": funcs.Add, "DEL": funcs.Del, "CHECK": funcs.Check, "GC": funcs.GC, "STATUS": funcs.Status,
		}[verb](args)
		return nil
	}))
	return out, err
}

func (n *node) args(t *testing.T, pod *attachment, ifname string, conf map[string]any) *skel.CmdArgs {
	t.Helper()
	full := map[string]any{"cniVersion": "1.1.0", "name": "lan", "type": "cni-bridge", "stateDir": n.stateDir}
	maps.Copy(full, conf)
	data, err := json.Marshal(full)
	must(t, err)
	return &skel.CmdArgs{
		ContainerID: pod.id, Netns: pod.Pod.Path(), IfName: ifname, StdinData: data, Path: n.path,
		Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=" + pod.id,
	}
}

// attach adds a network, and with a VM's annotations the pod stage behind it.
func (n *node) attach(t *testing.T, id string, conf map[string]any, annotations map[string]string) *attachment {
	t.Helper()
	pod := newAttachment(t, world.Options{}, annotations)
	pod.id, pod.stateDir = id, n.stateDir
	_, err := n.call(t, pod, "net1", conf, "ADD")
	must(t, err)
	if annotations != nil {
		n.podStage(t, pod, "ADD")
	}
	return pod
}

// podStage calls the pod stage on the node.
func (n *node) podStage(t *testing.T, pod *attachment, verb string) {
	t.Helper()
	must(t, n.tryPodStage(t, pod, verb))
}

func (n *node) tryPodStage(t *testing.T, pod *attachment, verb string) error {
	t.Helper()
	var previous json.RawMessage
	switch verb {
	case "ADD":
		previous = previousResult(pod.Pod.Path())
		pod.out.Reset()
	case "CHECK":
		previous = pod.out.Bytes()
	}
	args := pod.args(t, previous)
	var err error
	must(t, n.netns.Do(func(ns.NetNS) error {
		funcs := pod.plugin.Funcs(t.Context())
		err = map[string]func(*skel.CmdArgs) error{"ADD": funcs.Add, "DEL": funcs.Del, "CHECK": funcs.Check}[verb](args)
		return nil
	}))
	return err
}

// static gives an interface of a Pod an address.
func static(t *testing.T, netns ns.NetNS, name, prefix string) {
	t.Helper()
	world.Do(t, netns, func(h *nlHandle) {
		must(t, h.AddAddress(index(t, h, name), netip.MustParsePrefix(prefix)))
	})
}

func vmWith(name string, annotations map[string]string) map[string]string {
	all := map[string]string{"podvirt.dev/vm": name, "k8s.v1.cni.cncf.io/networks": "lan"}
	maps.Copy(all, annotations)
	return all
}

// TestBridgeNetwork is two VMs and a plain Pod on one bridge that is made for them (NW-062, NW-066, NW-069).
func TestBridgeNetwork(t *testing.T) {
	n := newNode(t)
	before := world.Snapshot(t, n.netns)
	conf := map[string]any{"bridge": "br1", "create": true, "macspoofchk": true}
	one := n.attach(t, "one", conf, vmWith("one", nil))
	two := n.attach(t, "two", conf, vmWith("two", nil))
	plain := n.attach(t, "plain", conf, nil)
	static(t, plain.Pod, "net1", "198.51.100.3/24")
	nic := one.BootNIC(t, 1, "eth1", netip.MustParsePrefix("198.51.100.1/24"), netip.MustParsePrefix("2001:db8:1::1/64"))
	two.BootNIC(t, 1, "eth1", netip.MustParsePrefix("198.51.100.2/24"), netip.MustParsePrefix("2001:db8:1::2/64"))
	if nic.Name != "net1" || nic.Binding != "wire" || nic.MAC[0] != 2 || nic.Guest4.IsValid() {
		t.Errorf("alias %+v; want a wire with a derived MAC and no address", nic)
	}
	world.Listen(t, two.Guest, "198.51.100.2:80")
	world.Listen(t, two.Guest, "[2001:db8:1::2]:80")
	world.Listen(t, plain.Pod, "198.51.100.3:80")
	for name, row := range map[string]struct {
		from ns.NetNS
		to   string
		seen string
	}{
		"VM to VM":          {one.Guest, "198.51.100.2:80", "198.51.100.1"},
		"VM to VM by IPv6":  {one.Guest, "[2001:db8:1::2]:80", "2001:db8:1::1"},
		"VM to plain Pod":   {one.Guest, "198.51.100.3:80", "198.51.100.1"},
		"plain Pod to a VM": {plain.Pod, "198.51.100.2:80", "198.51.100.3"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := world.Ask(row.from, row.to); got != row.seen || err != nil {
				t.Errorf("the server saw %q, %v; want %q", got, err, row.seen)
			}
		})
	}
	t.Run("the Pod's own stack is silent", func(t *testing.T) {
		static(t, one.Pod, "net1", "198.51.100.9/24")
		if got, err := world.Ask(plain.Pod, "198.51.100.9:49155"); err == nil || strings.Contains(err.Error(), "refused") {
			t.Errorf("the Pod interface answered: %q, %v", got, err)
		}
	})
	t.Run("another MAC is not let out", func(t *testing.T) { checkSpoof(t, one, "198.51.100.3:80") })
	t.Run("CHECK", func(t *testing.T) {
		for _, pod := range []*attachment{one, two} {
			_, err := n.call(t, pod, "net1", conf, "CHECK")
			must(t, errors.Join(err, n.tryPodStage(t, pod, "CHECK")))
		}
	})
	for _, pod := range []*attachment{one, two, plain} {
		if pod.annotations != nil {
			n.podStage(t, pod, "DEL")
		}
		for range 2 {
			_, err := n.call(t, pod, "net1", conf, "DEL")
			must(t, err)
		}
	}
	if diff := cmp.Diff(before, world.Snapshot(t, n.netns)); diff != "" {
		t.Errorf("node (-before,+after)\n%s", diff)
	}
}

// checkSpoof changes the guest's MAC, is cut off, and changes it back (NW-070).
func checkSpoof(t *testing.T, pod *attachment, to string) {
	set := func(mac net.HardwareAddr) (before net.HardwareAddr) {
		world.Do(t, pod.Guest, func(h *nlHandle) {
			link, err := h.Link("eth1")
			must(t, err)
			before = link.MAC
			must(t, h.Set(link.Index, nl.Changes{MAC: mac}))
		})
		return before
	}
	own := set(net.HardwareAddr{2, 9, 9, 9, 9, 9})
	if _, err := world.Ask(pod.Guest, to); err == nil {
		t.Error("a guest with another MAC got an answer")
	}
	set(own)
	if _, err := world.Ask(pod.Guest, to); err != nil {
		t.Errorf("with its own MAC again: %v", err)
	}
}

// fakeIPAM is an IPAM plugin that always gives one address, and remembers its calls.
func (n *node) fakeIPAM(t *testing.T) (calls string) {
	t.Helper()
	calls = filepath.Join(n.path, "calls")
	script := "#!/bin/sh\ncat >/dev/null\necho $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME >>" + calls + "\n" +
		`[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.1.0","ips":[{"address":"198.51.100.77/24","gateway":"198.51.100.1"},` +
		`{"address":"2001:db8:1::77/64"}],"routes":[{"dst":"203.0.113.0/24"}]}'` + "\n"
	must(t, os.WriteFile(filepath.Join(n.path, "one-address"), []byte(script), 0o755))
	return calls
}

// lanConfigs are one configuration of each kind (also those of docs/cni-bridge.md).
func lanConfigs(t *testing.T) map[string]map[string]any {
	t.Helper()
	all := map[string]map[string]any{
		"bridge":        {"bridge": "br1", "create": true},
		"uplink":        {"uplink": "up0", "mtu": 1400, "macspoofchk": true},
		"ipam":          {"bridge": "br1", "create": true, "ipam": map[string]any{"type": "one-address"}, "portIsolation": true, "hairpinMode": true},
		"macvlan":       {"master": "up0", "mtu": 1300},
		"macvlan, ipam": {"master": "up0", "submode": "private", "ipam": map[string]any{"type": "one-address"}},
	}
	if vlans() {
		all["access"] = map[string]any{"uplink": "up0", "vlan": 100, "macspoofchk": true}
		all["trunk"] = map[string]any{"bridge": "br1", "create": true, "vlanTrunk": []any{map[string]int{"id": 10}, map[string]int{"minID": 20, "maxID": 30}}}
		all["service tag"] = map[string]any{"uplink": "up0", "vlan": 100, "vlanProto": "802.1ad"}
	}
	return all
}

// vlans says whether this kernel's bridges filter VLANs: that of test/kernel does.
func vlans() bool { return os.Getenv("PODVIRT_KERNEL_TEST") == "1" }

// uplinked gives the node an interface up0 that leads to a namespace outside.
func (n *node) uplinked(t *testing.T) (outside ns.NetNS) {
	t.Helper()
	outside = world.Namespace(t)
	world.Do(t, outside, func(h *nlHandle) {
		must(t, h.AddVeth("wire0", "up0", int(n.netns.Fd())))
		must(t, h.Set(index(t, h, "wire0"), nl.Changes{Up: true}))
		must(t, h.Set(index(t, h, "lo"), nl.Changes{Up: true}))
	})
	world.Do(t, n.netns, func(h *nlHandle) { must(t, h.Set(index(t, h, "up0"), nl.Changes{Up: true})) })
	return outside
}

// TestNetworkVerbs calls each verb for each kind of network: the result, CHECK of each part, DEL twice, and nothing left.
func TestNetworkVerbs(t *testing.T) {
	for name, conf := range lanConfigs(t) {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.uplinked(t)
			calls := n.fakeIPAM(t)
			before := world.Snapshot(t, n.netns)
			pod := newAttachment(t, world.Options{}, nil)
			podBefore := world.Snapshot(t, pod.Pod)
			verb := func(verb string) *bytes.Buffer {
				t.Helper()
				out, err := n.call(t, pod, "net1", conf, verb)
				if err != nil {
					t.Fatalf("%s: %v", verb, err)
				}
				return out
			}
			verb("DEL") // of what was never added
			verb("STATUS")
			var result current.Result
			must(t, json.Unmarshal(verb("ADD").Bytes(), &result))
			last := result.Interfaces[len(result.Interfaces)-1]
			if last.Name != "net1" || last.Sandbox == "" || conf["mtu"] != nil && last.Mtu != conf["mtu"] {
				t.Errorf("interface %+v", last)
			}
			if conf["ipam"] != nil && (len(result.IPs) != 2 || *result.IPs[0].Interface != len(result.Interfaces)-1) {
				t.Errorf("addresses %+v", result.IPs)
			}
			verb("ADD") // again: the same
			verb("CHECK")
			verb("STATUS")
			n.keepsValid(t, pod, conf)
			world.Do(t, pod.Pod, func(h *nlHandle) { must(t, h.Down(index(t, h, "net1"))) })
			if _, err := n.call(t, pod, "net1", conf, "CHECK"); code(err) != 108 || !strings.Contains(err.Error(), "net1 is down") {
				t.Errorf("CHECK of a link that is down = %v", err)
			}
			verb("DEL")
			verb("DEL")
			n.leavesNothing(t, pod, before, podBefore)
			if conf["ipam"] != nil {
				log, err := os.ReadFile(calls)
				must(t, err)
				if last := strings.Split(strings.TrimSpace(string(log)), "\n"); last[len(last)-1] != "DEL c1 net1" {
					t.Errorf("calls of the IPAM plugin:\n%s", log)
				}
			}
			verb("ADD")
			verb("GC") // nothing is valid
			n.leavesNothing(t, pod, before, podBefore)
		})
	}
}

// keepsValid runs GC with the attachment among the valid ones.
func (n *node) keepsValid(t *testing.T, pod *attachment, conf map[string]any) {
	t.Helper()
	with := maps.Clone(conf)
	with["cni.dev/valid-attachments"] = []netconf.Attachment{{ContainerID: pod.id, IfName: "net1"}}
	_, err := n.call(t, pod, "net1", with, "GC")
	must(t, err)
	_, err = n.call(t, pod, "net1", conf, "CHECK")
	must(t, err)
}

func (n *node) leavesNothing(t *testing.T, pod *attachment, before, podBefore string) {
	t.Helper()
	if diff := cmp.Diff(withoutIndexes(before), withoutIndexes(world.Snapshot(t, n.netns))); diff != "" {
		t.Errorf("node (-before,+after)\n%s", diff)
	}
	if diff := cmp.Diff(podBefore, world.Snapshot(t, pod.Pod)); diff != "" {
		t.Errorf("Pod (-before,+after)\n%s", diff)
	}
	for _, pattern := range []string{"networks/attachments/*", "networks/locks/*", "attachments/*"} {
		if left, err := filepath.Glob(filepath.Join(n.stateDir, pattern)); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
}

// TestNetworkRefusals is what a node says that cannot do what a network asks.
func TestNetworkRefusals(t *testing.T) {
	n := newNode(t)
	outside := n.uplinked(t)
	world.Do(t, n.netns, func(h *nlHandle) {
		must(t, h.AddBridge("br0"))
		must(t, h.Set(index(t, h, "br0"), nl.Changes{Up: true}))
		must(t, h.AddVeth("held", "far", int(outside.Fd())))
		must(t, h.AddAddress(index(t, h, "held"), netip.MustParsePrefix("192.0.2.7/24")))
		must(t, h.AddVeth("port", "far2", int(outside.Fd())))
		must(t, h.Set(index(t, h, "port"), nl.Changes{Master: index(t, h, "br0")}))
	})
	pod := newAttachment(t, world.Options{}, nil)
	before, podBefore := world.Snapshot(t, n.netns), world.Snapshot(t, pod.Pod)
	for name, row := range map[string]struct {
		conf map[string]any
		code uint
		want string
	}{
		"no bridge":        {map[string]any{"bridge": "br9"}, 104, "bridge br9: not on node "},
		"others there":     {map[string]any{"bridge": "br9"}, 104, "; bridges there: br0"},
		"no bridge at all": {map[string]any{"bridge": "up0"}, 104, "up0: not a bridge (veth)"},
		"VLAN filtering":   {map[string]any{"bridge": "br0", "vlan": 5}, 106, "bridge br0: VLAN filtering is off"},
		"stp":              {map[string]any{"bridge": "br0", "stp": true}, 106, "stp: bridge br0 exists with stp off"},
		"uplink holds an address": {map[string]any{"uplink": "held"}, 105,
			"uplink held holds 192.0.2.7: taking it would cut the node off; use node-network"},
		"uplink of another": {map[string]any{"bridge": "br7", "uplink": "port"}, 105, "uplink port is a port of br0 already"},
		"no uplink":         {map[string]any{"uplink": "eth9"}, 105, "uplink eth9: not on this node"},
		"MTU":               {map[string]any{"uplink": "up0", "mtu": 9000}, 7, "mtu 9000: uplink up0 has 1500"},
		"MTU of the bridge": {map[string]any{"bridge": "br0", "mtu": 9000}, 7, "mtu 9000: bridge br0 has 1500"},
		"VLAN number":       {map[string]any{"bridge": "br0", "vlan": 4095}, 7, "vlan 4095: 0 to 4094"},
		"trunk": {map[string]any{"bridge": "br0", "vlanTrunk": []any{map[string]int{"minID": 200, "maxID": 100}}}, 7,
			"vlanTrunk[0]: minID 200 > maxID 100"},
		"gateway":     {map[string]any{"bridge": "br0", "isGateway": true}, 2, "isGateway=true: not supported; use type bridge for routed networks"},
		"spoof check": {map[string]any{"bridge": "br0", "macspoofchk": "true"}, 7, `macspoofchk "true": not the right type`},
		"bridge name": {map[string]any{"bridge": "br/0"}, 7, `bridge "br/0": not an interface name of at most 15 characters`},
		"no master":   {map[string]any{"master": "eth9"}, 105, "master eth9: not on this node"},
		"macvlan mode": {map[string]any{"master": "up0", "submode": "brigde"}, 7,
			`submode "brigde": not one of bridge, private, vepa, passthru; nearest: bridge`},
		"nothing to do": {map[string]any{"vlan": 5}, 7, "mode: nothing says what to do; set bridge, uplink, master or mode"},
		"address, no ipam": {map[string]any{"bridge": "br0", "runtimeConfig": map[string]any{"ips": []string{"10.0.0.1/24"}}}, 7,
			"ips 10.0.0.1/24: the network has no ipam"},
		"mirror":       {map[string]any{"bridge": "br0", "mirrorTo": "eth9"}, 7, `mirrorTo="eth9": not supported by this version`},
		"no such ipam": {map[string]any{"bridge": "br0", "ipam": map[string]any{"type": "none-such"}}, 7, "ipam: failed to find plugin"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := n.call(t, pod, "net1", row.conf, "ADD")
			if code(err) != row.code || !strings.Contains(err.Error(), row.want) || out.Len() > 0 {
				t.Errorf("ADD = %v (code %d), %q\nwant %q (code %d)", err, code(err), out, row.want, row.code)
			}
		})
	}
	if diff := cmp.Diff(before, world.Snapshot(t, n.netns)); diff != "" {
		t.Errorf("node (-before,+after)\n%s", diff)
	}
	if diff := cmp.Diff(podBefore, world.Snapshot(t, pod.Pod)); diff != "" {
		t.Errorf("Pod (-before,+after)\n%s", diff)
	}
	if _, err := n.call(t, pod, "net1", map[string]any{"bridge": "br9"}, "STATUS"); code(err) != 50 {
		t.Errorf("STATUS without the bridge = %v; want code 50", err)
	}
}

// TestOneHolderOfAMAC refuses a second VM with the same MAC on the same network, naming the first, and allows it on another
// one (NW-076).
func TestOneHolderOfAMAC(t *testing.T) {
	n := newNode(t)
	conf := map[string]any{"bridge": "br1", "create": true, "macspoofchk": true}
	explicit := map[string]string{"podvirt.dev/nic.net1": "mac=02:aa:00:00:00:10"}
	first := n.attach(t, "first", conf, vmWith("first", explicit))
	second := n.attach(t, "second", conf, nil)
	second.annotations = vmWith("second", explicit)
	before := world.Snapshot(t, second.Pod)
	err := n.tryPodStage(t, second, "ADD")
	if want := "02:aa:00:00:00:10 on br1 is used by shop/first (Pod UID "; code(err) != 103 || !strings.Contains(err.Error(), want) {
		t.Errorf("ADD = %v (code %d); want %q (code 103)", err, code(err), want)
	}
	if diff := cmp.Diff(before, world.Snapshot(t, second.Pod)); diff != "" {
		t.Errorf("Pod after the refusal (-before,+after)\n%s", diff)
	}
	asked := maps.Clone(conf)
	asked["runtimeConfig"] = map[string]any{"mac": "02:aa:00:00:00:10"}
	third := newAttachment(t, world.Options{}, nil)
	third.id = "third"
	if _, err := n.call(t, third, "net1", asked, "ADD"); code(err) != 103 {
		t.Errorf("ADD of a Pod that asks for the MAC = %v; want code 103", err)
	}
	asked["bridge"] = "br2"
	if _, err := n.call(t, third, "net1", asked, "ADD"); err != nil {
		t.Errorf("on another network: %v", err)
	}
	n.podStage(t, first, "DEL")
	_, err = n.call(t, first, "net1", conf, "DEL")
	must(t, err)
	n.podStage(t, second, "ADD")
}

// TestIPAMGoesToTheGuest: the address of a secondary network is the guest's, and the Pod does not answer for it (NW-051).
func TestIPAMGoesToTheGuest(t *testing.T) {
	n := newNode(t)
	n.fakeIPAM(t)
	conf := map[string]any{"bridge": "br1", "create": true, "ipam": map[string]any{"type": "one-address"}}
	pod := n.attach(t, "vm", conf, vmWith("vm", nil))
	plain := n.attach(t, "plain", map[string]any{"bridge": "br1"}, nil)
	static(t, plain.Pod, "net1", "198.51.100.3/24")
	if _, err := world.Ask(plain.Pod, "198.51.100.77:49155"); err == nil || strings.Contains(err.Error(), "refused") {
		t.Errorf("the Pod answers for the guest: %v", err)
	}
	nic := pod.BootNIC(t, 1, "eth1")
	if nic.Guest4.String() != "198.51.100.77/24" || nic.Guest6.String() != "2001:db8:1::77/64" {
		t.Errorf("alias %+v", nic)
	}
	world.Listen(t, pod.Guest, "198.51.100.77:80")
	if got, err := world.Ask(plain.Pod, "198.51.100.77:80"); got != "198.51.100.3" || err != nil {
		t.Errorf("the guest saw %q, %v", got, err)
	}
}
