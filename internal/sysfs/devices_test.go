package sysfs_test

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"podvirt.dev/internal/sysfs"
	"podvirt.dev/internal/sysfs/sysfstest"
)

const nic, vf0, vf1 = "0000:00:04.0", "0000:00:05.0", "0000:00:05.1"

// igbTree is a machine with an SR-IOV card on NUMA cell 1 and two of its virtual functions.
func igbTree() sysfstest.Tree {
	return sysfstest.Tree{}.IOMMU(true).
		PCI(sysfstest.PCI{Address: nic, ID: "8086:10c9", Driver: "igb", Group: 4, Cell: "1", Interface: "eth0", VFs: []string{vf0, vf1}, TotalVFs: 7}).
		PCI(sysfstest.PCI{Address: vf0, ID: "8086:10ca", Driver: "igbvf", Group: 9, PF: nic, Interface: "eth1"}).
		PCI(sysfstest.PCI{Address: vf1, ID: "8086:10ca", Group: 10, PF: nic, NoReset: true})
}

func TestPCIDevices(t *testing.T) {
	got, err := sysfs.PCIDevices(igbTree())
	if err != nil {
		t.Fatal(err)
	}
	want := []sysfs.PCIDevice{
		{Address: nic, Vendor: 0x8086, Device: 0x10c9, Driver: "igb", Group: 4, Cell: 1, VF: sysfs.None, VFs: []string{vf0, vf1}, TotalVFs: 7,
			Resettable: true, Interfaces: []string{"eth0"}},
		{Address: vf0, Vendor: 0x8086, Device: 0x10ca, Driver: "igbvf", Group: 9, Cell: 1, PF: nic, VF: 0, Resettable: true, Interfaces: []string{"eth1"}},
		{Address: vf1, Vendor: 0x8086, Device: 0x10ca, Group: 10, Cell: 1, PF: nic, VF: 1},
	}
	for i := range want {
		want[i].SubVendor, want[i].SubDevice, want[i].Class = 0x1af4, 0x1100, 0x20000
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateErrors()); diff != "" {
		t.Errorf("(-want,+got)\n%s", diff)
	}
	if works, remaps := sysfs.IOMMU(igbTree()); !works || !remaps {
		t.Errorf("IOMMU works %v, remaps %v; want both", works, remaps)
	}
	if works, remaps := sysfs.IOMMU(igbTree().IOMMU(false)); !works || remaps {
		t.Errorf("IOMMU works %v, remaps %v; want no remapping", works, remaps)
	}
	if !sysfs.Carrier(igbTree().File("sys/class/net/eth9/carrier", "1"), "eth9") || sysfs.Carrier(igbTree(), "eth0") {
		t.Error("carrier")
	}
}

// TestBrokenDevices: what is wrong with one device is said of it, and the others are as before.
func TestBrokenDevices(t *testing.T) {
	dir := "sys/devices/pci0000:00/" + vf0
	tests := map[string]func(sysfstest.Tree){
		"no vendor":             func(tree sysfstest.Tree) { delete(tree, dir+"/vendor") },
		"vendor is a word":      func(tree sysfstest.Tree) { tree.File(dir+"/vendor", "intel") },
		"class is too large":    func(tree sysfstest.Tree) { tree.File(dir+"/class", "0x1020000") },
		"endless vendor":        func(tree sysfstest.Tree) { tree.File(dir+"/vendor", "0x"+strings.Repeat("0", 1<<20)) },
		"vendor is a loop":      func(tree sysfstest.Tree) { tree.Link(dir+"/vendor", "vendor") },
		"device is a loop":      func(tree sysfstest.Tree) { tree.Link("sys/bus/pci/devices/"+vf0, vf0) },
		"device leads nowhere":  func(tree sysfstest.Tree) { tree.Link("sys/bus/pci/devices/"+vf0, "../../../nowhere") },
		"group is a word":       func(tree sysfstest.Tree) { tree.Link(dir+"/iommu_group", "../../../kernel/iommu_groups/x") },
		"cell is a word":        func(tree sysfstest.Tree) { tree.File(dir+"/numa_node", "left") },
		"vendor is a directory": func(tree sysfstest.Tree) { tree.Dir(dir + "/vendor") },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			tree := igbTree()
			change(tree)
			onDisk, err := tree.OnDisk(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			got, err := sysfs.PCIDevices(onDisk)
			if err != nil || len(got) != 3 {
				t.Fatalf("devices = %+v, %v; want three", got, err)
			}
			if got[1].Err == nil {
				t.Errorf("nothing is said of %+v", got[1])
			}
			if got[0].Err != nil || got[2].Err != nil {
				t.Errorf("the others: %v, %v", got[0].Err, got[2].Err)
			}
		})
	}
}

// forbidden is a tree in which one file may not be read.
type forbidden struct {
	sysfstest.Tree
	name string
}

func (f forbidden) Open(name string) (fs.File, error) {
	if name == f.name {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	return f.Tree.Open(name)
}

func TestForbiddenAttribute(t *testing.T) {
	got, err := sysfs.PCIDevices(forbidden{igbTree(), "sys/bus/pci/devices/" + vf0 + "/numa_node"})
	if err != nil || len(got) != 3 || !errors.Is(got[1].Err, fs.ErrPermission) || got[0].Err != nil {
		t.Errorf("devices = %+v, %v; want permission denied for the second", got, err)
	}
}

func TestMdevParents(t *testing.T) {
	const uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
	tree := sysfstest.Tree{}.
		MdevParent("mtty", sysfstest.MdevType{ID: "mtty-1", Name: "Single port serial", Available: 23},
			sysfstest.MdevType{ID: "mtty-2", Name: "Dual port serial", Available: 11}).
		Mdev("mtty", "mtty-1", uuid, 20).
		MdevParent("bad", sysfstest.MdevType{ID: "bad-1", Name: "B", Available: 1 << 30})
	got, err := sysfs.MdevParents(tree)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || !errors.Is(got[0].Err, sysfs.ErrFormat) {
		t.Fatalf("parents = %+v; want two, the bad one with an error", got)
	}
	want := sysfs.MdevParent{
		Name: "mtty", Path: "sys/class/mdev_bus/mtty", Cell: sysfs.None,
		Types: []sysfs.MdevType{
			{ID: "mtty-1", Name: "Single port serial", API: "vfio-pci", Available: 23},
			{ID: "mtty-2", Name: "Dual port serial", API: "vfio-pci", Available: 11},
		},
		Instances: []sysfs.Mdev{{UUID: uuid, Type: "mtty-1", Group: 20}},
	}
	if diff := cmp.Diff(want, got[1], cmpopts.EquateErrors()); diff != "" {
		t.Errorf("(-want,+got)\n%s", diff)
	}
	if none, err := sysfs.MdevParents(sysfstest.Tree{}.IOMMU(true)); err != nil || none != nil {
		t.Errorf("without the bus: %v, %v", none, err)
	}
}

func TestHostUse(t *testing.T) {
	const disk = "0000:00:07.0"
	tree := func() sysfstest.Tree {
		return igbTree().PCI(sysfstest.PCI{Address: disk, ID: "1af4:1001", Class: "0x010000", Driver: "virtio-pci"}).
			Link("sys/block/vda", "../devices/pci0000:00/"+disk+"/virtio3/block/vda").
			File("sys/devices/pci0000:00/"+disk+"/virtio3/block/vda/dev", "254:0").
			File("sys/devices/pci0000:00/"+disk+"/virtio3/block/vda/vda1/dev", "254:1").
			Link("sys/class/block/vda1", "../../devices/pci0000:00/"+disk+"/virtio3/block/vda/vda1")
	}
	net := "sys/devices/pci0000:00/" + nic + "/net/eth0"
	tests := map[string]struct {
		tree sysfstest.Tree
		want map[string]string
	}{
		"idle":    {tree(), map[string]string{}},
		"mounted": {tree().File("proc/1/mountinfo", "29 1 254:1 / / rw shared:1 - ext4 /dev/vda1 rw"), map[string]string{disk: "mounted at /"}},
		"swap": {tree().File("proc/swaps", "Filename Type Size Used Priority\n/dev/vda1 partition 1 0 -2"),
			map[string]string{disk: "swap"}},
		"held":   {tree().Dir("sys/devices/pci0000:00/" + disk + "/virtio3/block/vda/vda1/holders/dm-0"), map[string]string{disk: "vda1 is part of dm-0"}},
		"bridge": {tree().Link(net+"/master", "../../../../virtual/net/br0"), map[string]string{nic: "eth0 is part of br0"}},
		"route": {tree().File("proc/1/net/route", "Iface Destination Gateway Flags …\neth1 00000000 0102A8C0 0003 0 0 0 00000000 0 0 0"),
			map[string]string{vf0: "default route by eth1"}},
		"IPv6 route": {tree().File("proc/1/net/ipv6_route", strings.Repeat("0", 32)+" 00 "+strings.Repeat("0", 32)+" 00 fe80"+strings.Repeat("0", 28)+
			" 00000400 00000001 00000000 00000003 eth0"), map[string]string{nic: "default route by eth0"}},
		"console": {tree().File("sys/devices/pci0000:00/"+disk+"/boot_vga", "1").Dir("sys/devices/pci0000:00/" + disk + "/graphics/fb0"),
			map[string]string{disk: "console"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			devices, err := sysfs.PCIDevices(tt.tree)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, sysfs.HostUse(tt.tree, devices)); diff != "" {
				t.Errorf("(-want,+got)\n%s", diff)
			}
		})
	}
}

// TestNVMeWithSeveralControllers: a namespace that several controllers share stands on none of them in sysfs.
func TestNVMeWithSeveralControllers(t *testing.T) {
	const subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0"
	tree := igbTree().PCI(sysfstest.PCI{Address: "0000:00:08.0", ID: "1b36:0010", Class: "0x010802", Driver: "nvme"}).
		Link("sys/block/nvme0n1", "../devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1").
		File(subsystem+"/nvme0n1/dev", "259:0").
		Link("sys/class/nvme-subsystem/nvme-subsys0", "../../devices/virtual/nvme-subsystem/nvme-subsys0").
		Link(subsystem+"/nvme0", "../../../pci0000:00/0000:00:08.0/nvme/nvme0").
		File("proc/1/mountinfo", "29 1 259:0 / /data rw - ext4 /dev/nvme0n1 rw")
	devices, err := sysfs.PCIDevices(tree)
	if err != nil {
		t.Fatal(err)
	}
	if use := sysfs.HostUse(tree, devices)["0000:00:08.0"]; use != "mounted at /data" {
		t.Errorf("use = %q", use)
	}
}

// FuzzDevices reads trees in which one file holds anything. Loops of links are in TestBrokenDevices.
func FuzzDevices(f *testing.F) {
	f.Add("sys/devices/pci0000:00/"+vf0+"/vendor", "0x8086")
	f.Add("sys/devices/pci0000:00/"+nic+"/sriov_numvfs", "1000000000")
	f.Add("sys/class/net/eth0/x", "")
	f.Add("proc/1/mountinfo", "a b c d e f")
	f.Add("proc/1/net/route", "a 00000000")
	f.Add("sys/class/mdev_bus/mtty/mdev_supported_types", "mtty")
	f.Fuzz(func(t *testing.T, name, content string) {
		if !fs.ValidPath(name) || !strings.HasPrefix(name, "sys/") && !strings.HasPrefix(name, "proc/") {
			return
		}
		tree := igbTree().MdevParent("mtty", sysfstest.MdevType{ID: "mtty-1", Name: "x", Available: 2}).File(name, content)
		devices, err := sysfs.PCIDevices(tree)
		if err == nil {
			sysfs.HostUse(tree, devices)
		}
		_, _ = sysfs.MdevParents(tree) // an error or a result, in bounded time
	})
}
