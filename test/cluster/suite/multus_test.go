package suite

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/test/cluster/harness"
)

// networks are three secondary networks: a bridge over the nodes' second interface, one with addresses that never leaves a
// node, and a macvlan.
const networks = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: lan}
spec:
  config: '{"cniVersion":"1.0.0","name":"lan","type":"cni-bridge","uplink":"ext0","macspoofchk":true,"capabilities":{"mac":true}}'
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: inner}
spec:
  config: '{"cniVersion":"1.0.0","name":"inner","type":"cni-bridge","bridge":"br-inner","create":true,
    "ipam":{"type":"host-local","ranges":[[{"subnet":"198.51.100.0/24"}]]}}'
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: vlanless}
spec:
  config: '{"cniVersion":"1.0.0","name":"vlanless","type":"cni-bridge","master":"ext1"}'
`

// TestMultus gives VMs on two nodes further NICs by Multus, in both forms of its annotation, and an ordinary Pod on the same
// networks (NW-001, NW-003, NW-004, NW-062, NW-066). The NICs of one VM are not virtio (NW-005).
func TestMultus(t *testing.T) {
	long(t, "test-network")
	c := harness.Installed(t)
	c.Cable(t, "ext0", 9000)
	c.Cable(t, "ext1", 1500)
	c.Multus(t)
	ns := setUp(t, "guest-tiny")
	c.RequireImage(t, "guest-hardware")
	ns.Apply(t, networks)
	const asked = "02:aa:00:00:00:01"
	short := onNode(newVM("short", "guest-tiny"), ns.Nodes[0]).httpReady(8080)
	short.Annotations[networksAnnotation] = "lan,inner@blue," + ns.Name + "/vlanless"
	const e1000e = "model=e1000e"
	list := onNode(newVM("list", "guest-hardware"), ns.Nodes[1]).httpReady(8080).annotate(map[string]string{
		"nic.default": e1000e, "nic.net1": e1000e, "nic.blue": e1000e, "nic.net3": e1000e, "nic.again": e1000e,
	})
	list.Annotations[networksAnnotation] = `[{"name":"lan","mac":"` + asked + `"},{"name":"inner","interface":"blue"},{"name":"vlanless"},
		{"name":"inner","interface":"again"}]`
	for _, v := range []*vm{short, list} {
		ns.Apply(t, v.manifest(t))
	}
	ns.Apply(t, strings.NewReplacer("{name: client}", "{name: plain, annotations: {"+networksAnnotation+": 'lan,inner'}}", "spec:\n",
		"spec:\n  nodeName: "+ns.Nodes[0]+"\n").Replace(clientPod))
	ns.WaitPod(t, "plain", harness.Medium, harness.Ready)
	hosts := map[string]string{}
	for i, name := range []string{"short", "list"} {
		pod := ns.WaitPod(t, name, harness.Medium, harness.Ready)
		hosts[name] = net.JoinHostPort(pod.Status.PodIP, "80")
		sh(t, ns, hosts[name], fmt.Sprintf("ip addr add 203.0.113.%d/24 dev eth1; ip addr add 192.0.2.%d/24 dev eth3", i+1, i+1))
	}

	t.Run("NICs in the order of the annotation", func(t *testing.T) { checkNICOrder(t, ns, hosts, asked) })
	t.Run("between nodes", func(t *testing.T) { checkBetween(t, ns, hosts) })
	t.Run("addresses of the network's ipam", func(t *testing.T) { checkInner(t, ns, hosts["short"]) })
	t.Run("a guest that changes its MAC is cut off", func(t *testing.T) { checkMACGuard(t, ns, hosts["short"]) })
	t.Run("the same MACs after re-creation", func(t *testing.T) { checkSameMACs(t, ns, short, hosts["short"]) })
	t.Run("a network that is missing", func(t *testing.T) { checkNoSuchNetwork(t, ns) })
	for _, name := range []string{"short", "list", "plain"} {
		deletePod(t, ns, name)
	}
	t.Run("nothing is left on the nodes", func(t *testing.T) {
		for _, node := range ns.Nodes {
			links := ns.OnNode(t, node, "ip", "-o", "link")
			if strings.Contains(links, "br-ext0") || strings.Contains(links, "br-inner") || strings.Contains(links, " pv") {
				t.Errorf("%s:\n%s", node, links)
			}
		}
	})
}

// checkNICOrder finds the networks behind the guests' NICs: the first has the MTU of its uplink, the second an address of
// its network's ipam, the third is looked at by checkBetween.
func checkNICOrder(t *testing.T, ns *harness.Namespace, hosts map[string]string, asked string) {
	for name, host := range hosts {
		if nics := strings.Fields(sh(t, ns, host, "ls /sys/class/net")); strings.Join(nics[:4], " ") != "eth0 eth1 eth2 eth3" {
			t.Errorf("%s has %s", name, nics)
		}
		innerAddress(t, ns, host, "eth2")
	}
	if mac := sh(t, ns, hosts["list"], "cat /sys/class/net/eth1/address"); strings.TrimSpace(mac) != asked {
		t.Errorf("eth1 has %s; want the MAC of the annotation", mac)
	}
	if mtu := sh(t, ns, hosts["short"], "cat /sys/class/net/eth1/mtu"); strings.TrimSpace(mtu) != "9000" {
		t.Errorf("eth1 has MTU %s; want the uplink's", mtu)
	}
	if one, other := innerAddress(t, ns, hosts["list"], "eth2"), innerAddress(t, ns, hosts["list"], "eth4"); one == other {
		t.Errorf("two NICs on one network have %s both", one)
	}
	for nic := range 5 {
		driver := sh(t, ns, hosts["list"], fmt.Sprintf("readlink /sys/class/net/eth%d/device/driver", nic))
		if !strings.HasSuffix(strings.TrimSpace(driver), "/e1000e") {
			t.Errorf("driver of eth%d: %s", nic, driver)
		}
	}
}

// checkBetween reaches the other VM over each network that leaves the node, and over neither what it has on the other:
// frames to that MAC find nobody.
func checkBetween(t *testing.T, ns *harness.Namespace, hosts map[string]string) {
	host := hosts["short"]
	const bridged, macvlan = "203.0.113.2", "192.0.2.2"
	for _, address := range []string{bridged, macvlan} {
		if got := sh(t, ns, host, "wget -qO- http://"+address+"/"); !strings.HasPrefix(got, "podvirt-tiny") {
			t.Errorf("%s: %q", address, got)
		}
	}
	if got := sh(t, ns, host, "wget -qO- http://"+bridged+"/client"); strings.TrimSpace(got) != "203.0.113.1" {
		t.Errorf("the server sees %q; want the guest's own address", got)
	}
	mac := strings.TrimSpace(sh(t, ns, hosts["list"], "cat /sys/class/net/eth3/address"))
	across := fmt.Sprintf("ip route replace %[1]s dev eth1; arp -i eth1 -s %[1]s %[2]s; %[3]s; arp -i eth1 -d %[1]s; ip route del %[1]s dev eth1",
		macvlan, mac, fetch(macvlan))
	if got := sh(t, ns, host, across); !strings.Contains(got, "cut off") {
		t.Errorf("%s over the other network: %q", macvlan, got)
	}
}

// innerAddress waits for the address of network inner that a guest gets for a NIC by DHCP.
func innerAddress(t *testing.T, ns *harness.Namespace, host, nic string) string {
	t.Helper()
	var address string
	harness.Eventually(t, harness.Short, "address of "+nic, func(context.Context) error {
		text := sh(t, ns, host, "ip -4 addr show dev "+nic)
		_, rest, found := strings.Cut(text, "inet ")
		if address, _, _ = strings.Cut(rest, "/"); !found || !strings.HasPrefix(address, "198.51.100.") {
			return errors.New(text)
		}
		return nil
	})
	return address
}

// fetch is a script that says whether a server answers.
func fetch(address string) string {
	return "wget -T 2 -qO /dev/null http://" + address + "/ && echo reached || echo cut off"
}

const networksAnnotation = "k8s.v1.cni.cncf.io/networks"

func onNode(v *vm, node string) *vm {
	v.Spec.NodeSelector = map[string]string{"kubernetes.io/hostname": node}
	return v
}

// checkInner finds the guest under the address that host-local gave the Pod, which the guest got by DHCP.
func checkInner(t *testing.T, ns *harness.Namespace, host string) {
	ip := innerAddress(t, ns, host, "eth2")
	if got := ns.Exec(t, "plain", "main", "curl", "--silent", "--show-error", "--max-time", "20", "http://"+ip+"/"); !strings.HasPrefix(got, "podvirt-tiny") {
		t.Errorf("from a Pod of the same network: %q", got)
	}
	if route := sh(t, ns, host, "ip route show default"); !strings.Contains(route, "dev eth0") {
		t.Errorf("default route: %q", route)
	}
}

func checkMACGuard(t *testing.T, ns *harness.Namespace, host string) {
	fetch := fetch("203.0.113.2")
	own := strings.TrimSpace(sh(t, ns, host, "cat /sys/class/net/eth1/address"))
	change := func(mac string) string { return "ip link set eth1 address " + mac + "; ip neigh flush dev eth1; " }
	if got := sh(t, ns, host, change("02:99:00:00:00:01")+fetch); !strings.Contains(got, "cut off") {
		t.Errorf("with another MAC: %q", got)
	}
	harness.Eventually(t, harness.Short, "the other guest, with its own MAC again", func(context.Context) error {
		if got := sh(t, ns, host, change(own)+fetch); !strings.Contains(got, "reached") {
			return errors.New(got)
		}
		return nil
	})
}

func checkSameMACs(t *testing.T, ns *harness.Namespace, v *vm, host string) {
	const macs = "cat /sys/class/net/eth0/address /sys/class/net/eth1/address /sys/class/net/eth2/address"
	before := sh(t, ns, host, macs)
	deletePod(t, ns, v.Name)
	ns.Apply(t, v.manifest(t))
	pod := ns.WaitPod(t, v.Name, harness.Medium, harness.Ready)
	if after := sh(t, ns, net.JoinHostPort(pod.Status.PodIP, "80"), macs); after != before {
		t.Errorf("MACs were\n%sand are\n%s", before, after)
	}
}

func checkNoSuchNetwork(t *testing.T, ns *harness.Namespace) {
	lost := newVM("lost", "guest-tiny")
	lost.Annotations[networksAnnotation] = "nowhere"
	ns.Apply(t, lost.manifest(t))
	harness.Eventually(t, harness.Short, "event about the network", func(ctx context.Context) error {
		list, err := ns.Client.CoreV1().Events(ns.Name).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=lost"})
		if err != nil {
			return err
		}
		for _, e := range list.Items {
			if strings.Contains(e.Message, "nowhere") {
				return nil
			}
		}
		return errors.New("none yet")
	})
	deletePod(t, ns, "lost")
}
