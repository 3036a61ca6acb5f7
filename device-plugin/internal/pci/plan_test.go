package pci

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/api"
	"podvirt.dev/internal/sysfs/sysfstest"
)

const (
	nic, vf0, vf1, vf2 = "0000:00:04.0", "0000:00:05.0", "0000:00:05.1", "0000:00:05.2"
	edu, tester        = "0000:02:01.0", "0000:02:02.0"
	bridge             = "0000:02:00.0"
	disk               = "0000:00:07.0"
)

// k1 is the machine K1 of devices.md 2.9: an SR-IOV card, two devices behind one bridge, and the disk of the node.
func k1() sysfstest.Tree {
	return sysfstest.Tree{}.IOMMU(true).
		PCI(sysfstest.PCI{Address: nic, ID: "8086:10c9", Driver: "igb", Group: 4, Cell: "1", Interface: "eth0", VFs: []string{vf0, vf1, vf2}, TotalVFs: 7}).
		PCI(sysfstest.PCI{Address: vf0, ID: "8086:10ca", Driver: "igbvf", Group: 9, PF: nic}).
		PCI(sysfstest.PCI{Address: vf1, ID: "8086:10ca", Driver: "vfio-pci", Group: 10, PF: nic}).
		PCI(sysfstest.PCI{Address: vf2, ID: "8086:10ca", Group: 11, PF: nic, NoReset: true}).
		PCI(sysfstest.PCI{Address: bridge, ID: "1b36:000e", Class: "0x060400", Group: 8}).
		PCI(sysfstest.PCI{Address: edu, ID: "1234:11e8", Class: "0x00ff00", Group: 8}).
		PCI(sysfstest.PCI{Address: tester, ID: "1b36:0005", Class: "0x00ff00", Driver: "x", Group: 8}).
		PCI(sysfstest.PCI{Address: disk, ID: "1af4:1001", Class: "0x010000", Driver: "virtio-pci", Group: 3}).
		Link("sys/block/vda", "../devices/pci0000:00/"+disk+"/virtio3/block/vda").
		File("sys/devices/pci0000:00/"+disk+"/virtio3/block/vda/dev", "254:0").
		File("proc/1/mountinfo", "29 1 254:0 / / rw - ext4 /dev/vda rw")
}

func plan(t *testing.T, tree sysfstest.Tree, rules Rules, lines ...string) []string {
	t.Helper()
	v, err := Look(tree)
	if err != nil {
		t.Fatal(err)
	}
	data := map[string]string{}
	for i, line := range lines {
		data[fmt.Sprintf("device.c%d", i)] = fmt.Sprintf("resource=e.org/c%d,%s", i, line)
	}
	classes, errs := api.ParseDeviceClasses(data)
	if err := errs.Err(); err != nil {
		t.Fatal(err)
	}
	units, notes := Plan(v, classes, rules)
	var out []string
	for _, u := range units {
		line := strings.TrimPrefix(u.Class.Resource, "e.org/") + " " + strings.Join(u.Owned(), "+")
		if u.Reason != "" {
			line += ": " + u.Reason
		}
		if len(u.Bind) > 0 {
			line += " bind " + strings.Join(u.Bind, "+")
		}
		out = append(out, line)
	}
	return append(out, notes...)
}

func TestPlan(t *testing.T) {
	tests := map[string]struct {
		change  func(sysfstest.Tree)
		rules   Rules
		classes []string
		want    []string
	}{
		"no class, no offer": {},
		"by id, any case":    {classes: []string{"match=8086:10CA,address=*:00:05.0"}, want: []string{"c0 " + vf0 + " bind " + vf0}},
		"virtual functions": {classes: []string{"match=8086:10ca,pf=eth0"},
			want: []string{"c0 " + vf0 + " bind " + vf0, "c0 " + vf1, "c0 " + vf2 + ": no reset method"}},
		"range of them": {classes: []string{"pf=" + nic + "#1-2,no-reset=allow"}, want: []string{"c0 " + vf1, "c0 " + vf2 + " bind " + vf2}},
		"another card":  {classes: []string{"pf=eth1"}},
		"by driver":     {classes: []string{"pf=eth0,driver=igbvf"}, want: []string{"c0 " + vf0 + " bind " + vf0}},
		"by the driver it had": {classes: []string{"pf=eth0,driver=igbvf"}, rules: Rules{Origin: map[string]string{vf1: "igbvf", vf0: "other"}},
			want: []string{"c0 " + vf1}},
		"by class code": {classes: []string{"match=class:00ff,address=0000:02:01.0,group=companions"},
			want: []string{"c0 " + edu + "+" + tester + " bind " + edu + "+" + tester}},
		"link type": {classes: []string{"match=8086:10ca+1234:11e8,link=ether,pf=eth0#1"}, want: []string{"c0 " + vf1 + ": link down"}},
		"link is up": {change: func(t sysfstest.Tree) { t.File("sys/devices/pci0000:00/"+nic+"/net/eth0/carrier", "1") }, classes: []string{"link=ether,pf=eth0#1"},
			want: []string{"c0 " + vf1}},
		"strict group": {classes: []string{"match=1234:11e8"},
			want: []string{"c0 " + edu + ": IOMMU group 8 also holds " + tester + " (driver x)"}},
		"group of two as a whole, once": {classes: []string{"match=1234:11e8+1b36:0005,group=companions"},
			want: []string{"c0 " + edu + "+" + tester + " bind " + edu + "+" + tester}},
		"two classes in one group": {classes: []string{"match=1234:11e8,group=companions", "match=1b36:0005,group=companions"},
			want: []string{"c0 " + edu + "+" + tester + " bind " + edu + "+" + tester, "device.c1: " + tester + " belongs to device.c0"}},
		"mate of somebody else": {classes: []string{"match=1234:11e8,group=companions", "match=1b36:0005,external=true"},
			want: []string{"c0 " + edu + "+" + tester + ": IOMMU group 8 also holds " + tester + ", which belongs to device.c1"}},
		"two classes, one device": {classes: []string{"pf=eth0#0", "match=8086:10ca,pf=eth0#0-1"},
			want: []string{"c0 " + vf0 + " bind " + vf0, "c1 " + vf1, "device.c1: " + vf0 + " belongs to device.c0"}},
		"external": {classes: []string{"pf=eth0", "match=8086:10ca,external=true"}, want: []string{
			"device.c0: " + vf0 + " belongs to device.c1", "device.c0: " + vf1 + " belongs to device.c1", "device.c0: " + vf2 + " belongs to device.c1",
		}},
		"the node's disk": {classes: []string{"match=1af4:1001"}, want: []string{"c0 " + disk + ": in use by the host: mounted at /"}},
		"card with virtual functions": {classes: []string{"match=8086:10c9"},
			want: []string{"c0 " + nic + ": in use by the host: 3 virtual functions"}},
		"bridge": {classes: []string{"match=1b36:000e"}, want: []string{"c0 " + bridge + ": in use by the host: bridge"}},
		"bind=none": {classes: []string{"pf=eth0#0-1,bind=none"},
			want: []string{"c0 " + vf0 + ": driver igbvf instead of vfio-pci", "c0 " + vf1}},
		"IOMMU off": {change: func(t sysfstest.Tree) { delete(t, "sys/class/iommu/dmar0") }, classes: []string{"pf=eth0#0"},
			want: []string{"c0 " + vf0 + ": IOMMU is off: boot with intel_iommu=on or amd_iommu=on and enable it in firmware"}},
		"no remapping": {change: func(t sysfstest.Tree) { t.IOMMU(false) }, classes: []string{"pf=eth0#0"},
			want: []string{"c0 " + vf0 + ": no interrupt remapping"}},
		"no remapping, allowed": {change: func(t sysfstest.Tree) { t.IOMMU(false) }, rules: Rules{UnsafeInterrupts: true}, classes: []string{"pf=eth0#0"},
			want: []string{"c0 " + vf0 + " bind " + vf0}},
		"not readable": {change: func(t sysfstest.Tree) { t.File("sys/devices/pci0000:00/"+vf0+"/numa_node", "left") }, classes: []string{"pf=eth0#0-1"},
			want: []string{"c0 " + vf0 + `: not readable: sys/bus/pci/devices/` + vf0 + `/numa_node: unexpected content: "left"`, "c0 " + vf1}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tree := k1()
			if tt.change != nil {
				tt.change(tree)
			}
			if diff := cmp.Diff(tt.want, plan(t, tree, tt.rules, tt.classes...)); diff != "" {
				t.Errorf("(-want,+got)\n%s", diff)
			}
		})
	}
}

func TestVFCounts(t *testing.T) {
	v, err := Look(k1())
	if err != nil {
		t.Fatal(err)
	}
	for count, want := range map[int]string{3: "", 0: "0", 7: "7", 8: "8 vfs=8: PF " + nic + " has 7"} {
		classes, errs := api.ParseDeviceClasses(map[string]string{
			"device.a": fmt.Sprintf("resource=e.org/a,pf=eth0,vfs=%d", count), "device.b": "resource=e.org/b,pf=" + nic + ",vfs=1",
		})
		if err := errs.Err(); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range VFCounts(v, classes) {
			got = append(got, strings.TrimSpace(fmt.Sprintf("%d %s", c.Count, c.Reason)))
		}
		if strings.Join(got, ";") != want {
			t.Errorf("vfs=%d: %q, want %q", count, got, want)
		}
	}
}

func TestResourceOfOneDevice(t *testing.T) {
	u := Unit{Class: api.DeviceClass{Resource: "e.org/vf", PerDevice: true}}
	u.Device.Address = vf0
	if name, fits := u.Resource(); name != "e.org/vf-0000-00-05.0" || !fits {
		t.Errorf("%s, %v", name, fits)
	}
	u.Class.Resource = "e.org/" + strings.Repeat("v", 55)
	if name, fits := u.Resource(); fits {
		t.Errorf("%s fits", name)
	}
}
