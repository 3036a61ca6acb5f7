package plugin

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/cni-bridge/internal/world"
	"podvirt.dev/internal/nl"
	"podvirt.dev/internal/require"
)

// TestDocumentedNetworks calls every verb, DEL twice, for each network configuration of the documentation: the table of the component's page,
// and the NetworkAttachmentDefinitions of the task pages.
func TestDocumentedNetworks(t *testing.T) {
	if vlans() {
		t.Skip("the documentation is not in the guest; TestNetworkVerbs has the same kinds")
	}
	require.Root(t)
	tried := 0
	for _, text := range documented(t) {
		var conf map[string]any
		must(t, json.Unmarshal([]byte(text), &conf))
		if conf["mode"] == "pod" {
			continue // every other test
		}
		tried++
		t.Run(text, func(t *testing.T) { everyVerb(t, conf) })
	}
	if tried < 9 {
		t.Errorf("%d configurations found", tried)
	}
}

// documented returns JSON configurations, completed where the table leaves out what is the same in all.
func documented(t *testing.T) []string {
	t.Helper()
	var found []string
	row := regexp.MustCompile("(?m)^\\| `(\\{.*\\})` \\|")
	inline := regexp.MustCompile(`(?m)^  config: '(\{.*\})'$`)
	for _, page := range []string{"cni-bridge.md", "tasks/network.md"} {
		text, err := os.ReadFile("../../../docs/" + page)
		must(t, err)
		for _, match := range append(row.FindAllSubmatch(text, -1), inline.FindAllSubmatch(text, -1)...) {
			found = append(found, strings.Replace(string(match[1]), "{…,", `{"type": "cni-bridge",`, 1))
		}
	}
	return found
}

// everyVerb runs them on a node that has what the configurations name: bridge br1 unless it is to be made, and eth1.
func everyVerb(t *testing.T, conf map[string]any) {
	n := newNode(t)
	outside := world.Namespace(t)
	world.Do(t, n.netns, func(h *nlHandle) {
		must(t, h.AddVeth("eth1", "far", int(outside.Fd())))
		if conf["create"] == nil && conf["bridge"] == "br1" {
			must(t, h.AddBridge("br1"))
			must(t, h.Set(index(t, h, "br1"), nl.Changes{MAC: guestMAC, Up: true})) // without one of its own it has a port's
		}
		must(t, h.Set(index(t, h, "eth1"), nl.Changes{Up: true}))
	})
	pod := newAttachment(t, world.Options{}, nil)
	ifname := "net1"
	if conf["mode"] == "tuning" {
		ifname = "eth0"
		conf["prevResult"] = previousResult(pod.Pod.Path())
	}
	before := world.Snapshot(t, n.netns)
	if needsFiltering(conf) {
		_, err := n.call(t, pod, ifname, conf, "ADD")
		if code(err) != 102 && code(err) != 106 { // TestVLANs has a kernel that can
			t.Errorf("ADD on a kernel without VLAN filtering = %v; want code 102 or 106", err)
		}
		return
	}
	for _, verb := range []string{"STATUS", "ADD", "CHECK", "GC", "DEL", "DEL"} {
		if verb == "STATUS" && ifname == "eth0" {
			continue // what is chained has no state of its own
		}
		if _, err := n.call(t, pod, ifname, conf, verb); err != nil && verb != "GC" {
			t.Errorf("%s: %v", verb, err)
		}
		if verb == "GC" && ifname == "net1" { // it took the attachment, which is not valid
			_, err := n.call(t, pod, ifname, conf, "ADD")
			must(t, err)
		}
	}
	if diff := cmp.Diff(before, world.Snapshot(t, n.netns)); diff != "" {
		t.Errorf("node (-before,+after)\n%s", diff)
	}
}

func needsFiltering(conf map[string]any) bool { return conf["vlan"] != nil || conf["vlanTrunk"] != nil }
