package plugin

import (
	"encoding/json"
	"testing"

	"podvirt.dev/cni-bridge/internal/world"
	"podvirt.dev/internal/nl"
)

// TestNetworksOfOtherClusters runs the configurations that the product's documents show for cnv-bridge and cnv-tuning, as they
// are (NW-073). Those with a VLAN need the kernel of make test-kernel.
func TestNetworksOfOtherClusters(t *testing.T) {
	for _, text := range []string{
		`{"cniVersion":"0.3.1","name":"bridge-network","type":"cnv-bridge","bridge":"br1"}`,
		`{"cniVersion":"0.3.1","name":"br","plugins":[{"type":"cnv-bridge","bridge":"br1","ipam":{}},{"type":"cnv-tuning"}]}`,
		`{"cniVersion":"0.3.1","name":"br","type":"cnv-bridge","bridge":"br1","macspoofchk":true,"disableContainerInterface":true,` +
			`"preserveDefaultVlan":false}`,
		`{"cniVersion":"0.3.1","name":"br","type":"cnv-bridge","bridge":"br1","macspoofchk":true,"portIsolation":true,"mtu":1400}`,
		`{"cniVersion":"0.3.1","name":"pxe","plugins":[{"type":"cnv-bridge","bridge":"br1","vlan":1},{"type":"cnv-tuning"}]}`,
		`{"cniVersion":"0.3.1","name":"vlan","type":"cnv-bridge","bridge":"br1","macspoofchk":true,"vlan":100}`,
		`{"cniVersion":"0.3.1","name":"trunk","type":"cnv-bridge","bridge":"br1","vlanTrunk":[{"id":10},{"minID":20,"maxID":30}]}`,
	} {
		t.Run(text, func(t *testing.T) {
			var list struct {
				CNIVersion, Name string
				Plugins          []map[string]any
			}
			must(t, json.Unmarshal([]byte(text), &list))
			if len(list.Plugins) == 0 {
				list.Plugins = make([]map[string]any, 1)
				must(t, json.Unmarshal([]byte(text), &list.Plugins[0]))
			}
			first := list.Plugins[0]
			first["cniVersion"], first["name"] = list.CNIVersion, list.Name
			if needsFiltering(first) && !vlans() {
				return
			}
			n := newNode(t)
			world.Do(t, n.netns, func(h *nlHandle) {
				if needsFiltering(first) {
					must(t, h.AddFilteringBridge("br1"))
				} else {
					must(t, h.AddBridge("br1"))
				}
				must(t, h.Set(index(t, h, "br1"), nl.Changes{MAC: guestMAC, Up: true}))
			})
			pod := newAttachment(t, world.Options{}, nil)
			before := world.Snapshot(t, n.netns)
			result, err := n.call(t, pod, "net1", first, "ADD")
			must(t, err)
			for _, verb := range []string{"CHECK", "STATUS"} {
				if _, err := n.call(t, pod, "net1", first, verb); err != nil {
					t.Errorf("%s: %v", verb, err)
				}
			}
			n.tuned(t, pod, list.Plugins[1:], result.Bytes())
			for range 2 {
				if _, err := n.call(t, pod, "net1", first, "DEL"); err != nil {
					t.Errorf("DEL: %v", err)
				}
			}
			if after := world.Snapshot(t, n.netns); after != before {
				t.Errorf("the node was\n%s\nand is\n%s", before, after)
			}
		})
	}
}

// tuned chains the second plugin of a list with the MAC that somebody asks for, which it is there for.
func (n *node) tuned(t *testing.T, pod *attachment, plugins []map[string]any, previous []byte) {
	t.Helper()
	if len(plugins) == 0 {
		return
	}
	conf := plugins[0]
	conf["cniVersion"], conf["name"], conf["prevResult"] = "0.3.1", "br", json.RawMessage(previous)
	conf["runtimeConfig"] = map[string]any{"mac": "02:aa:00:00:00:77"}
	_, err := n.call(t, pod, "net1", conf, "ADD")
	must(t, err)
	if got := macOf(t, pod.Pod, "net1").String(); got != "02:aa:00:00:00:77" {
		t.Errorf("net1 has MAC %s; want what was asked for", got)
	}
	if _, err := n.call(t, pod, "net1", conf, "DEL"); err != nil {
		t.Errorf("DEL of the second plugin: %v", err)
	}
}
