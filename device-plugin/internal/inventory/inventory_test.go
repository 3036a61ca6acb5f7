package inventory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/cdi"
	"podvirt.dev/device-plugin/internal/holders"
	"podvirt.dev/device-plugin/internal/host"
	"podvirt.dev/internal/sysfs/sysfstest"
)

const vf0, vf1, nic = "0000:00:05.0", "0000:00:05.1", "0000:00:04.0"

// node is a node whose functions are bound to vfio-pci already, and what the kubelet says.
type node struct {
	*Inventory
	held  holders.Holders
	mute  bool // the kubelet does not answer
	specs map[string]map[string]cdi.Edit
}

func newNode(t *testing.T, tree sysfstest.Tree) *node {
	t.Helper()
	dir := t.TempDir()
	if _, err := tree.OnDisk(dir); err != nil {
		t.Fatal(err)
	}
	journal, err := host.OpenJournal(filepath.Join(dir, "devices.json"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := host.New(dir, journal)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{specs: map[string]map[string]cdi.Edit{}}
	n.Inventory = New(Options{
		Host: h, Machine: "m",
		Dev: fstest.MapFS{
			"ttyUSB0": {Mode: fs.ModeDevice | fs.ModeCharDevice}, "ttyUSBx": {Mode: fs.ModeDevice}, "vfio/9": {Mode: fs.ModeDevice | fs.ModeCharDevice},
		},
		Specify: func(kind string, edits map[string]cdi.Edit) error { n.specs[kind] = edits; return nil },
		Holders: func(context.Context) (holders.Holders, error) {
			if n.mute {
				return nil, errors.New("no answer")
			}
			return n.held, nil
		},
	})
	return n
}

// vfs are two virtual functions of one card that somebody has bound to vfio-pci.
func vfs() sysfstest.Tree {
	return sysfstest.Tree{}.IOMMU(true).
		PCI(sysfstest.PCI{Address: nic, ID: "8086:10c9", Driver: "igb", Group: 4, Cell: "1", VFs: []string{vf0, vf1}, TotalVFs: 7}).
		PCI(sysfstest.PCI{Address: vf0, ID: "8086:10ca", Driver: "vfio-pci", Group: 9, PF: nic}).
		PCI(sysfstest.PCI{Address: vf1, ID: "8086:10ca", Driver: "vfio-pci", Group: 10, PF: nic})
}

// refresh returns what is offered, a line for each unit.
func (n *node) refresh(t *testing.T, data map[string]string) []string {
	t.Helper()
	classes, errs := api.ParseDeviceClasses(data)
	if err := errs.Err(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, r := range n.Refresh(t.Context(), Settings{Classes: classes, Labels: map[string]string{"gpu": "yes"}}).Resources {
		for _, u := range r.Units {
			lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %v %s %s", r.Name, u.ID, u.Cells, u.Grant.Env[api.EnvPCI+api.EnvSuffix(r.Name)], u.Reason)))
		}
		if len(r.Units) == 0 {
			lines = append(lines, r.Name+" -")
		}
	}
	return lines
}

func TestResources(t *testing.T) {
	tests := map[string]struct {
		data map[string]string
		want []string
	}{
		"no class": {nil, nil},
		"two classes, one resource": {map[string]string{"device.a": "resource=e.org/vf,pf=" + nic + "#0", "device.b": "resource=e.org/vf,pf=" + nic + "#1"},
			[]string{"e.org/vf " + vf0 + " [1] " + vf0, "e.org/vf " + vf1 + " [1] " + vf1}},
		"one resource for each": {map[string]string{"device.a": "resource=e.org/vf,pf=" + nic + ",per-device=true"},
			[]string{"e.org/vf-0000-00-05.0 " + vf0 + " [1] " + vf0, "e.org/vf-0000-00-05.1 " + vf1 + " [1] " + vf1}},
		"nothing matches":   {map[string]string{"device.a": "resource=e.org/none,match=1:2"}, []string{"e.org/none -"}},
		"not on this node":  {map[string]string{"device.a": "resource=e.org/none,match=1:2,nodes=fpga"}, nil},
		"on this node":      {map[string]string{"device.a": "resource=e.org/none,match=1:2,nodes=gpu:yes"}, []string{"e.org/none -"}},
		"character devices": {map[string]string{"device.a": "resource=e.org/tty,path=/dev/ttyUSB*"}, []string{"e.org/tty ttyUSB0 []"}},
		"external":          {map[string]string{"device.a": "resource=e.org/vf,pf=" + nic + ",external=true"}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, newNode(t, vfs()).refresh(t, tt.data)); diff != "" {
				t.Errorf("(-want,+got)\n%s", diff)
			}
		})
	}
}

// TestNothingHeldIsForgotten: what a container has stays, with its specification, whatever the classes say; and while nobody
// knows who has what, everything stays.
func TestNothingHeldIsForgotten(t *testing.T) {
	n := newNode(t, vfs())
	all := map[string]string{"device.a": "resource=e.org/vf,pf=" + nic}
	n.refresh(t, all)
	n.mute = true
	want := []string{"e.org/vf " + vf0 + " [1] " + vf0 + " class removed", "e.org/vf " + vf1 + " [1] " + vf1 + " class removed"}
	if diff := cmp.Diff(want, n.refresh(t, nil)); diff != "" {
		t.Errorf("nobody knows (-want,+got)\n%s", diff)
	}
	n.mute, n.held = false, holders.Holders{vf1: {Pod: "a/b", Resource: "e.org/vf"}}
	if diff := cmp.Diff(want[1:], n.refresh(t, nil)); diff != "" {
		t.Errorf("one is held (-want,+got)\n%s", diff)
	}
	if edit := n.specs[kindPCI][vf1]; len(n.specs[kindPCI]) != 1 || !cmp.Equal(edit.Nodes, []string{"/dev/vfio/vfio", "/dev/vfio/10"}) {
		t.Errorf("specification: %+v", n.specs[kindPCI])
	}
	n.held = nil
	if left := n.refresh(t, nil); len(left) > 0 || len(n.specs[kindPCI]) > 0 {
		t.Errorf("left: %q, %v", left, n.specs[kindPCI])
	}
}

func TestPrepareReadsTheGroupAgain(t *testing.T) {
	n := newNode(t, vfs())
	n.refresh(t, map[string]string{"device.a": "resource=e.org/vf,pf=" + nic})
	n.edits[kindPCI][vf0] = cdi.Edit{Nodes: []string{"/dev/vfio/vfio", "/dev/vfio/77"}}
	if err := n.Prepare(t.Context(), "e.org/vf", []string{vf0, "other"}); err != nil {
		t.Fatal(err)
	}
	if nodes := n.specs[kindPCI][vf0].Nodes; !cmp.Equal(nodes, []string{"/dev/vfio/vfio", "/dev/vfio/9"}) {
		t.Errorf("files: %v", nodes)
	}
}
