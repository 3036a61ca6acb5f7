package plugin

import (
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/nftables"

	"podvirt.dev/cni-bridge/internal/nat"
	"podvirt.dev/cni-bridge/internal/world"
	"podvirt.dev/internal/nl"
)

func index(t *testing.T, h *nl.Handle, name string) int {
	t.Helper()
	link, err := h.Link(name)
	must(t, err)
	return link.Index
}

func TestCheckNamesEachDifference(t *testing.T) {
	sysctl := func(t *testing.T, path, value string) { must(t, os.WriteFile("/proc/sys/"+path, []byte(value), 0o644)) }
	for name, row := range map[string]struct {
		drift func(t *testing.T, h *nl.Handle)
		want  string
	}{
		"tap gone":         {func(t *testing.T, h *nl.Handle) { must(t, h.Delete(index(t, h, "tap0"))) }, "tap0 is missing"},
		"service tap gone": {func(t *testing.T, h *nl.Handle) { must(t, h.Delete(index(t, h, "svc0"))) }, "svc0 is missing"},
		"tap down":         {func(t *testing.T, h *nl.Handle) { must(t, h.Down(index(t, h, "tap0"))) }, "tap0: up is false, want true"},
		"MTU": {func(t *testing.T, h *nl.Handle) { must(t, h.Set(index(t, h, "tap0"), nl.Changes{MTU: 1300})) },
			"tap0: MTU is 1300, want 1500"},
		"MAC": {func(t *testing.T, h *nl.Handle) {
			must(t, h.Set(index(t, h, "tap0"), nl.Changes{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}}))
		}, "tap0: MAC is 02:00:00:00:00:09, want 02:00:00:00:00:00"},
		"alias": {func(t *testing.T, h *nl.Handle) { must(t, h.Set(index(t, h, "svc0"), nl.Changes{Alias: "mine"})) },
			"svc0: alias is mine, want podvirt/1 service"},
		"filter of the tap": {func(t *testing.T, h *nl.Handle) { must(t, h.DeleteClsact(index(t, h, "tap0"))) }, "tap0: filter is missing"},
		"filter of the service tap": {func(t *testing.T, h *nl.Handle) { must(t, h.DeleteClsact(index(t, h, "svc0"))) },
			"svc0: filter is missing"},
		"table": {func(t *testing.T, _ *nl.Handle) { must(t, nat.Delete()) }, "table inet podvirt has 0 rules, want 26"},
		"one chain": {func(t *testing.T, _ *nl.Handle) {
			conn, err := nftables.New()
			must(t, err)
			table := &nftables.Table{Name: nat.Table, Family: nftables.TableFamilyINet}
			conn.FlushChain(&nftables.Chain{Name: "forward", Table: table})
			must(t, conn.Flush())
		}, "table inet podvirt has 19 rules, want 26"},
		"IPv4 forwarding": {func(t *testing.T, _ *nl.Handle) { sysctl(t, "net/ipv4/conf/eth0/forwarding", "0") },
			`sysctl net/ipv4/conf/eth0/forwarding is "0", want "1"`},
		"IPv6 forwarding": {func(t *testing.T, _ *nl.Handle) { sysctl(t, "net/ipv6/conf/all/forwarding", "0") },
			`sysctl net/ipv6/conf/all/forwarding is "0", want "1"`},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttachment(t, world.Options{}, vmPod(""))
			must(t, a.add(t))
			must(t, a.check(t))
			world.Do(t, a.Pod, func(h *nlHandle) { row.drift(t, h) })
			if err := a.check(t); err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("CHECK = %v; want it to say %q", err, row.want)
			}
			must(t, a.del(t))
			noJournal(t, a)
		})
	}
}

func TestCheckWithoutAdd(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod(""))
	err := a.plugin.Funcs(t.Context()).Check(a.args(t, previousResult(a.Pod.Path())))
	if code(err) != 3 {
		t.Errorf("CHECK = %v (code %d); want code 3", err, code(err))
	}
}

func TestGCKeepsOnlyWhatIsValid(t *testing.T) {
	kept := newAttachment(t, world.Options{}, vmPod(""))
	stale := newAttachment(t, world.Options{}, vmPod(""))
	other := newAttachment(t, world.Options{}, vmPod(""))
	stale.stateDir, other.stateDir = kept.stateDir, kept.stateDir
	stale.id, other.id = "c2", "c3"
	other.extra = map[string]any{"name": "another"}
	for _, a := range []*attachment{kept, stale, other} {
		must(t, a.add(t))
	}
	gc := func(valid ...map[string]string) {
		a := *kept
		a.extra = map[string]any{"cni.dev/valid-attachments": valid}
		must(t, a.plugin.Funcs(t.Context()).GC(a.args(t, nil)))
	}
	gc(map[string]string{"containerID": "c1", "ifname": "eth0"})
	must(t, kept.check(t))
	must(t, other.check(t))
	world.Do(t, stale.Pod, func(h *nlHandle) {
		if _, err := h.Link("tap0"); !nl.IsNotFound(err) {
			t.Errorf("tap of the stale attachment: %v; want it gone", err)
		}
	})
	gc()
	must(t, other.check(t)) // an empty list empties this network only
	left, err := filepath.Glob(filepath.Join(kept.stateDir, "attachments", "*"))
	if err != nil || len(left) != 1 {
		t.Errorf("journal holds %v, %v; want that of the other network", left, err)
	}
}

func TestErrors(t *testing.T) {
	for name, row := range map[string]struct {
		annotations map[string]string
		extra       map[string]any
		options     world.Options
		previous    bool
		code        uint
		want        string
	}{
		"not chained": {annotations: vmPod(""), code: 7, want: "mode pod must be chained"},
		"unknown key": {extra: map[string]any{"maxNIC": 3}, previous: true, code: 2, want: "maxNIC=3: unknown key in mode pod; nearest: maxNICs"},
		"mode": {extra: map[string]any{"mode": "brigde"}, previous: true, code: 7,
			want: `mode "brigde": not one of pod, bridge, macvlan, macvtap, sriov, tuning; nearest: bridge`},
		"other mode": {extra: map[string]any{"mode": "sriov", "deviceID": "0000:3b:02.1"}, previous: true, code: 7,
			want: `mode "sriov": not supported by this version; supported: pod, bridge, macvlan, tuning`},
		"other binding": {annotations: vmPod("binding=passt"), previous: true, code: 100, want: "podvirt.dev/nic.default: binding"},
		"owner root":    {extra: map[string]any{"owner": map[string]int{"uid": 0}}, previous: true, code: 7, want: "owner.uid 0"},
		"overlap": {annotations: vmPod(""), extra: map[string]any{"v4CIDR": "192.0.2.0/24"}, previous: true, code: 107,
			want: "guest network 192.0.2.0/24 overlaps the pod address 192.0.2.2"},
		"overlap with a route": {annotations: vmPod("v4-cidr=198.51.100.0/24"), options: world.Options{Route: "198.51.100.128/25"}, previous: true,
			code: 107, want: "guest network 198.51.100.0/24 overlaps the route to 198.51.100.128/25"},
		"reserved port": {annotations: vmPod("ports=49153"), previous: true, code: 100,
			want: "podvirt.dev/nic.default: ports=49153: kept for the launcher (49152 to 49155)"},
		"family missing": {annotations: vmPod("ip-family=46"), options: world.Options{Only: "4"}, previous: true, code: 100,
			want: "podvirt.dev/nic.default: ip-family=46: eth0 has no IPv6 address"},
		"name taken": {annotations: vmPod(""), options: world.Options{Extra: []string{"svc0"}}, previous: true, code: 108,
			want: "the Pod has an interface svc0 already (veth)"},
		"larger frames than the Pod's": {annotations: vmPod("mtu=9000"), previous: true, code: 100,
			want: "podvirt.dev/nic.default: mtu=9000: above the 1500 of eth0"},
		"one MAC twice": {annotations: map[string]string{
			"podvirt.dev/nic.default": "mac=02:aa:00:00:00:10", "podvirt.dev/nic.net1": "mac=02-AA-00-00-00-10",
		}, options: world.Options{Extra: []string{"net1"}}, previous: true, code: 100,
			want: "podvirt.dev/nic.net1: mac=02:aa:00:00:00:10: also on nic.default"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttachment(t, row.options, row.annotations)
			a.extra = row.extra
			before := world.Snapshot(t, a.Pod)
			var previous json.RawMessage
			if row.previous {
				previous = previousResult(a.Pod.Path())
			}
			err := a.plugin.Funcs(t.Context()).Add(a.args(t, previous))
			if code(err) != row.code || !strings.Contains(err.Error(), row.want) {
				t.Errorf("ADD = %v (code %d)\nwant %q (code %d)", err, code(err), row.want, row.code)
			}
			if a.out.Len() > 0 {
				t.Errorf("a failed ADD printed %q", a.out)
			}
			if after := world.Snapshot(t, a.Pod); after != before {
				t.Errorf("a refused ADD changed the namespace:\n%s", after)
			}
		})
	}
}

func TestOwnNamespaceIsRefused(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod(""))
	args := a.args(t, previousResult("/proc/self/ns/net"))
	args.Netns = "/proc/self/ns/net"
	if err := a.plugin.Funcs(t.Context()).Add(args); code(err) != 8 {
		t.Errorf("ADD into the node's own namespace = %v; want code 8", err)
	}
}

func TestNoNICAtAll(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod("binding=none"))
	before := world.Snapshot(t, a.Pod)
	must(t, a.add(t))
	must(t, a.check(t))
	if after := world.Snapshot(t, a.Pod); after != before {
		t.Errorf("binding=none changed the namespace:\n%s", after)
	}
	must(t, a.del(t))
}

// envOpen makes the test binary a process that opens the named tap as QEMU does, after it became the user of envUser.
const (
	envOpen = "PODVIRT_TEST_OPEN_TAP"
	envUser = "PODVIRT_TEST_USER"
)

func TestTapOpensWithoutPrivilege(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod(""))
	must(t, a.add(t))
	for name, row := range map[string]struct {
		user   string
		tap    string
		works  bool
		reason string
	}{
		"launcher's user, 4 queues":    {"107", "tap0", true, ""},
		"launcher's user, service tap": {"107", "svc0", true, ""},
		"another user":                 {"2000", "tap0", false, "operation not permitted"},
		"a new tap":                    {"107", "tap9", false, "operation not permitted"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := openTapAs(t, a.Pod, row.user, row.tap)
			if row.works != (err == nil) || !strings.Contains(out, row.reason) {
				t.Errorf("opening %s as %s: %v, %q; want works %v %q", row.tap, row.user, err, out, row.works, row.reason)
			}
		})
	}
}

// openTapAs runs the test binary as that user, without capabilities, in the namespace.
func openTapAs(t *testing.T, netns ns.NetNS, user, tap string) (string, error) {
	t.Helper()
	cmd := child(t, envOpen+"="+tap, envUser+"="+user)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	var out []byte
	runErr := netns.Do(func(ns.NetNS) error {
		var err error
		out, err = cmd.CombinedOutput()
		return err
	})
	return string(out), runErr
}

func TestGuestWithAForeignAddressIsDropped(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod(""))
	must(t, a.add(t))
	a.Boot(t)
	world.Listen(t, a.Outside, net.JoinHostPort(world.Outside4, "80"))
	world.Listen(t, a.Pod, net.JoinHostPort("", "9100"))
	world.Do(t, a.Guest, func(h *nlHandle) {
		must(t, h.AddAddress(index(t, h, "eth0"), netip.MustParsePrefix("10.0.2.77/24")))
	})
	from := func(d *net.Dialer) {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(10, 0, 2, 77)}
		d.Timeout = 2 * world.Silence
	}
	for _, to := range []string{world.Outside4 + ":80", "10.0.2.1:9100"} {
		if got, err := world.Ask(a.Guest, to, from); err == nil {
			t.Errorf("%s answered a foreign address of the guest: %q", to, got)
		}
	}
}

func TestNobodyEntersPastThePorts(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod("ports=80"))
	must(t, a.add(t))
	a.Boot(t)
	world.Listen(t, a.Guest, "10.0.2.2:22")
	world.Do(t, a.Outside, func(h *nlHandle) {
		must(t, h.AddRoute(nl.Route{
			Link: index(t, h, "out0"), Destination: netip.MustParsePrefix("10.0.2.0/24"), Gateway: netip.MustParseAddr(world.Pod4),
		}))
	})
	short := func(d *net.Dialer) { d.Timeout = 2 * world.Silence }
	if got, err := world.Ask(a.Outside, "10.0.2.2:22", short); err == nil {
		t.Errorf("the guest's own address answered from outside: %q", got)
	}
}
