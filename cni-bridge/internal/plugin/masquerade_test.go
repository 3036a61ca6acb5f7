package plugin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	current "github.com/containernetworking/cni/pkg/types/100"

	"podvirt.dev/cni-bridge/internal/netconf"
	"podvirt.dev/cni-bridge/internal/world"
)

// attachment is a Pod whose ADD and DEL a test calls.
type attachment struct {
	*world.World
	plugin      Plugin
	out         *bytes.Buffer
	stateDir    string
	annotations map[string]string
	extra       map[string]any // further keys of the configuration
	id          string
}

func newAttachment(t *testing.T, o world.Options, annotations map[string]string) *attachment {
	t.Helper()
	a := &attachment{World: world.New(t, o), out: &bytes.Buffer{}, stateDir: t.TempDir(), annotations: annotations, id: "c1"}
	a.plugin.Out = a.out
	return a
}

func vmPod(options string) map[string]string {
	annotations := map[string]string{"podvirt.dev/vm": "web"}
	if options != "" {
		annotations["podvirt.dev/nic.default"] = options
	}
	return annotations
}

func previousResult(sandbox string) json.RawMessage {
	return json.RawMessage(fmt.Sprintf(`{"cniVersion":"1.1.0",  "interfaces":[{"name":"eth0","sandbox":%q}],`+
		`"ips":[{"interface":0,"address":"192.0.2.2/24"},{"interface":0,"address":"2001:db8::2/64"}],"dns":{}}`, sandbox))
}

func (a *attachment) args(t *testing.T, previous json.RawMessage) *skel.CmdArgs {
	t.Helper()
	conf := map[string]any{
		"cniVersion": "1.1.0", "name": "pods", "type": "cni-bridge", "mode": "pod", "stateDir": a.stateDir, "macSalt": "salt",
	}
	maps.Copy(conf, a.extra)
	if a.annotations != nil {
		conf["runtimeConfig"] = map[string]any{netconf.Annotations: a.annotations}
	}
	if previous != nil {
		conf["prevResult"] = "HERE" // Marshal would compact it
	}
	data, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	data = bytes.Replace(data, []byte(`"HERE"`), previous, 1)
	return &skel.CmdArgs{
		ContainerID: a.id, Netns: a.Pod.Path(), IfName: "eth0", StdinData: data,
		Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u1",
	}
}

func (a *attachment) add(t *testing.T) error {
	t.Helper()
	a.out.Reset()
	return a.plugin.Funcs(t.Context()).Add(a.args(t, previousResult(a.Pod.Path())))
}

func (a *attachment) del(t *testing.T) error {
	t.Helper()
	return a.plugin.Funcs(t.Context()).Del(a.args(t, nil))
}

func (a *attachment) check(t *testing.T) error {
	t.Helper()
	return a.plugin.Funcs(t.Context()).Check(a.args(t, a.out.Bytes()))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func join(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }

func TestMasqueradeCarriesTrafficBothWays(t *testing.T) {
	for _, family := range []struct{ name, outside, pod, guest, gateway string }{
		{"IPv4", world.Outside4, world.Pod4, "10.0.2.2", "10.0.2.1"},
		{"IPv6", world.Outside6, world.Pod6, "fd10:0:2::2", "fd10:0:2::1"},
	} {
		t.Run(family.name, func(t *testing.T) {
			a := newAttachment(t, world.Options{}, vmPod(""))
			must(t, a.add(t))
			a.Boot(t)
			world.Listen(t, a.Guest, join(family.guest, 80))
			world.Listen(t, a.Outside, join(family.outside, 80))
			world.Listen(t, a.Pod, net.JoinHostPort("", "9100"))
			world.Listen(t, a.Pod, net.JoinHostPort("", "49153"))

			for _, row := range []struct {
				name string
				ask  func() (string, error)
				want string
			}{
				{"in: the guest sees the real client", func() (string, error) { return world.Ask(a.Outside, join(family.pod, 80)) }, family.outside},
				{"out: outside sees only the pod IP", func() (string, error) { return world.Ask(a.Guest, join(family.outside, 80)) }, family.pod},
				{"sidecar to the pod IP", func() (string, error) { return world.Ask(a.Pod, join(family.pod, 80)) }, family.pod},
				{"guest to its own pod IP", func() (string, error) { return world.Ask(a.Guest, join(family.pod, 80)) }, family.gateway},
				{"guest to a sidecar by the gateway", func() (string, error) { return world.Ask(a.Guest, join(family.gateway, 9100)) }, family.guest},
				{"launcher's port from outside", func() (string, error) { return world.Ask(a.Outside, join(family.pod, 49153)) }, family.outside},
				{"guest's own outgoing port 49153", func() (string, error) {
					return world.Ask(a.Guest, join(family.outside, 80), func(d *net.Dialer) {
						d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(family.guest), Port: 49153}
					})
				}, family.pod},
			} {
				t.Run(row.name, func(t *testing.T) {
					got, err := row.ask()
					if got != row.want || err != nil {
						t.Errorf("the server saw %q, %v; want %q", got, err, row.want)
					}
				})
			}
		})
	}
}

func TestReservedPortWithoutListenerIsRefused(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod(""))
	must(t, a.add(t))
	a.Boot(t)
	world.Listen(t, a.Guest, "10.0.2.2:49152")
	for port := 49152; port <= 49155; port++ {
		if got, err := world.Ask(a.Outside, join(world.Pod4, port)); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("port %d answered %q, %v; want connection refused", port, got, err)
		}
	}
}

// TestPortBaseMoves gives the launcher other ports (launcher.port-base), which a Pod keeps that was made with the former ones.
func TestPortBaseMoves(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod(""))
	must(t, a.add(t))
	b := newAttachment(t, world.Options{}, vmPod(""))
	b.stateDir, b.id, b.extra = a.stateDir, "c2", map[string]any{"reservedPorts": []string{"50000-50003/tcp"}}
	must(t, b.add(t))
	for name, row := range map[string]struct {
		at          *attachment
		base        uint16
		kept, given int
	}{"before": {a, 49152, 49155, 50003}, "after": {b, 50000, 50003, 49155}} {
		t.Run(name, func(t *testing.T) {
			if nic := row.at.Boot(t); nic.PortBase != row.base {
				t.Errorf("the launcher is told port base %d; want %d", nic.PortBase, row.base)
			}
			for _, port := range []int{row.kept, row.given} {
				world.Listen(t, row.at.Guest, join("10.0.2.2", port))
			}
			if _, err := world.Ask(row.at.Outside, join(world.Pod4, row.kept)); err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("port %d reaches the guest: %v", row.kept, err)
			}
			if _, err := world.Ask(row.at.Outside, join(world.Pod4, row.given)); err != nil {
				t.Errorf("port %d does not reach the guest: %v", row.given, err)
			}
			must(t, row.at.check(t))
		})
	}
	b.annotations = vmPod("ports=50001")
	if err := b.add(t); code(err) != 100 || !strings.Contains(err.Error(), "ports=50001: kept for the launcher (50000 to 50003)") {
		t.Errorf("ADD = %v; want code 100", err)
	}
}

func TestOnlyListedPortsComeIn(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod("ports=22+80+5000-5002+53/udp"))
	must(t, a.add(t))
	a.Boot(t)
	for _, port := range []int{22, 80, 81, 4999, 5000, 5001, 5002, 5003} {
		world.Listen(t, a.Guest, join("", port))
	}
	for port, open := range map[int]bool{22: true, 80: true, 81: false, 4999: false, 5000: true, 5001: true, 5002: true, 5003: false} {
		for _, pod := range []string{world.Pod4, world.Pod6} {
			_, err := world.Ask(a.Outside, join(pod, port))
			if open != (err == nil) || !open && !strings.Contains(err.Error(), "refused") {
				t.Errorf("%s: error %v; want open %v, else refused", join(pod, port), err, open)
			}
		}
	}
	if got := askUDP(t, a, 53); got != world.Outside4 {
		t.Errorf("udp/53 answered %q; want the address of the client", got)
	}
}

// askUDP sends a datagram from outside to the pod IP and returns what the guest says it came from.
func askUDP(t *testing.T, a *attachment, port int) string {
	t.Helper()
	var server net.PacketConn
	world.Do(t, a.Guest, func(*nlHandle) {
		var err error
		server, err = net.ListenPacket("udp", join("10.0.2.2", port))
		must(t, err)
	})
	defer server.Close()
	go func() {
		buffer := make([]byte, 64<<10)
		for {
			_, from, err := server.ReadFrom(buffer)
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(from.String())
			if _, err := server.WriteTo([]byte(host), from); err != nil {
				return
			}
		}
	}()
	conn, err := world.Dial(a.Outside, "udp", join(world.Pod4, port))
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(world.Timeout)))
	buffer := make([]byte, 128)
	if _, err := conn.Write(make([]byte, 8000)); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(buffer)
	must(t, err)
	return string(buffer[:n])
}

func TestLargeTransferThroughSmallMTU(t *testing.T) {
	a := newAttachment(t, world.Options{MTU: 1400}, vmPod(""))
	must(t, a.add(t))
	a.Boot(t)
	world.Do(t, a.Pod, func(h *nlHandle) {
		for _, name := range []string{"tap0", "svc0"} {
			if link, err := h.Link(name); err != nil || link.MTU != 1400 {
				t.Errorf("%s has MTU %d, %v; want that of eth0, 1400", name, link.MTU, err)
			}
		}
	})
	world.Listen(t, a.Guest, "10.0.2.2:80")
	conn, err := world.Dial(a.Outside, "tcp", join(world.Pod4, 80))
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	const size = 4 << 20
	sent := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	go func() { _, _ = conn.Write(sent) }()
	got := make([]byte, size+len(world.Outside4)+1)
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.HasSuffix(got, sent) {
		t.Errorf("4 MiB through the guest: %v; want the same bytes back", err)
	}
}

func TestResultNamesTheTap(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod(""))
	must(t, a.add(t))
	result, err := current.NewResult(a.out.Bytes())
	must(t, err)
	r, err := current.NewResultFromResult(result)
	must(t, err)
	if len(r.Interfaces) != 2 || r.Interfaces[1].Name != "tap0" || r.Interfaces[1].Sandbox != a.Pod.Path() || len(r.IPs) != 2 {
		t.Errorf("result %s; want what came in, and tap0 in the sandbox", a.out)
	}
}

func TestFamiliesFollowThePod(t *testing.T) {
	for name, row := range map[string]struct {
		only, options  string
		want4, want6   bool
		otherGuest4    string
		podHasThatMany int
	}{
		"v4 Pod":                {only: "4", want4: true},
		"v6 Pod":                {only: "6", want6: true},
		"dual Pod, v4 asked":    {options: "ip-family=4", want4: true},
		"dual Pod, v6 asked":    {options: "ip-family=6", want6: true},
		"dual Pod":              {want4: true, want6: true},
		"other inside network":  {options: "v4-cidr=172.31.0.0/30,ip-family=4", want4: true, otherGuest4: "172.31.0.2"},
		"one queue, four ports": {options: "queues=1,ports=1+2+3+4", want4: true, want6: true},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttachment(t, world.Options{Only: row.only}, vmPod(row.options))
			must(t, a.add(t))
			nic := a.Boot(t)
			if nic.Guest4.IsValid() != row.want4 || nic.Guest6.IsValid() != row.want6 {
				t.Errorf("guest has %s and %s; want v4 %v, v6 %v", nic.Guest4, nic.Guest6, row.want4, row.want6)
			}
			if row.otherGuest4 != "" && nic.Guest4.Addr() != netip.MustParseAddr(row.otherGuest4) {
				t.Errorf("guest has %s; want %s", nic.Guest4, row.otherGuest4)
			}
			must(t, a.check(t))
		})
	}
}
