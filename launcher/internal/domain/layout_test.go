package domain

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/api"
)

func machineWith(names ...string) api.Machine {
	var m api.Machine
	for _, n := range names {
		m.Disks = append(m.Disks, api.Disk{Name: n, Bus: "virtio"})
	}
	return m
}

// TestLayoutStays: devices that come and go leave those alone whose places are known (VM-069).
func TestLayoutStays(t *testing.T) {
	known := Layout{}
	for round, names := range [][]string{{"root"}, {"root", "data"}, {"a", "data", "root", "z"}, {"root", "z"}, {"a", "b", "root", "z"}} {
		layout, err := NewLayout(machineWith(names...), known)
		if err != nil {
			t.Fatal(err)
		}
		places := map[Place]string{}
		for key, place := range layout {
			if other := places[place]; other != "" {
				t.Errorf("round %d: %s and %s are both at %s", round, key, other, place)
			}
			places[place] = key
			if before, was := known[key]; was && before != place {
				t.Errorf("round %d: %s moved from %s to %s", round, key, before, place)
			}
			known[key] = place
		}
	}
}

// TestLayoutOfNames: without a memory the names alone decide, in whatever order they come.
func TestLayoutOfNames(t *testing.T) {
	a, err := NewLayout(machineWith("root", "data", "log"), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewLayout(machineWith("log", "root", "data"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(a, b); diff != "" {
		t.Errorf("the order of devices matters (-first,+second):\n%s", diff)
	}
}

// TestBootDiskIsFirst: whatever the others are called, the guest meets the disk first that it is booted from. A place that is
// kept is kept.
func TestBootDiskIsFirst(t *testing.T) {
	for i := range 100 {
		boot := fmt.Sprintf("boot%d", i)
		for bus, key := range map[string]func(string) string{"virtio": diskKey, "scsi": scsiKey} {
			m := machineWith("a", "data", "log", boot, "z")
			for i := range m.Disks {
				m.Disks[i].Bus = bus
			}
			m.BootOrder = []api.BootDevice{{Kind: "nic", Name: "default"}, {Kind: "disk", Name: boot}, {Kind: "disk", Name: "a"}}
			layout, err := NewLayout(m, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range m.Disks {
				if layout[key(d.Name)].Slot < layout[key(boot)].Slot {
					t.Errorf("%s: %s at %s is before %s at %s", bus, d.Name, layout[key(d.Name)], boot, layout[key(boot)])
				}
			}
			kept := Layout{key(boot): {Slot: 0x14}}
			if layout, err = NewLayout(m, kept); err != nil || layout[key(boot)] != kept[key(boot)] {
				t.Errorf("%s: %v, %v; want %v", bus, layout, err, kept)
			}
		}
	}
}

// TestNICsInOrder: a guest that walks the bus meets the NICs in the order of the networks, whatever their names and
// whatever else the VM has; one more at the end moves none (NW-004).
func TestNICsInOrder(t *testing.T) {
	m := machineWith("root", "data", "a", "b")
	before := Layout{}
	for n := range 64 { // network.max-nics at its highest
		name := "default"
		if n > 0 {
			name = fmt.Sprintf("%cnet%d", "zamq"[n%4], n)
		}
		m.NICs = append(m.NICs, api.NIC{Name: name})
		layout, err := NewLayout(m, nil)
		if err != nil {
			t.Fatalf("%d NICs: %v", n+1, err)
		}
		last := Place{}
		for _, nic := range m.NICs {
			place := layout[nicKey(nic.Name)]
			if place.Slot < last.Slot || place.Slot == last.Slot && place.Function <= last.Function {
				t.Errorf("%d NICs: %s is at %s, behind %s", n+1, nic.Name, place, last)
			}
			if was, known := before[nicKey(nic.Name)]; known && was != place {
				t.Errorf("%d NICs: %s moved from %s to %s", n+1, nic.Name, was, place)
			}
			last = place
		}
		for _, d := range m.Disks {
			if was, known := before[diskKey(d.Name)]; known && n < 5 && was != layout[diskKey(d.Name)] {
				t.Errorf("%d NICs: disk %s moved", n+1, d.Name)
			}
		}
		before = layout
	}
}

// TestNICOrderKept: a layout that is kept stays, a new NIC goes behind its neighbours where there is room.
func TestNICOrderKept(t *testing.T) {
	m := machineWith("root")
	m.NICs = []api.NIC{{Name: "default"}, {Name: "net1"}, {Name: "net2"}}
	known := Layout{"nic.net1": {0x0c, 0}, "disk.root": {0x0d, 0}}
	layout, err := NewLayout(m, known)
	if err != nil {
		t.Fatal(err)
	}
	if layout["nic.net1"] != known["nic.net1"] || layout["disk.root"] != known["disk.root"] || layout["nic.net2"] != (Place{0x0e, 0}) {
		t.Errorf("%v", layout)
	}
	m.NICs = []api.NIC{{Name: "b"}, {Name: "a"}} // the first is kept for the Pod
	if layout, err = NewLayout(m, nil); err != nil || layout["nic.b"] != (Place{0x0b, 0}) || layout["nic.a"] != (Place{0x0c, 0}) {
		t.Errorf("without nic.default: %v, %v", layout, err)
	}
}

func TestLayoutLimits(t *testing.T) {
	var names []string
	for i := range 8 * (lastFree - firstFree + 1) {
		names = append(names, fmt.Sprintf("d%d", i))
	}
	layout, err := NewLayout(machineWith(names...), nil)
	if err != nil {
		t.Fatal(err)
	}
	for slot := uint(firstFree); slot <= lastFree; slot++ {
		if !layout.shared(slot) {
			t.Errorf("slot %d holds one device", slot)
		}
	}
	if _, err := NewLayout(machineWith(append(names, "one-more")...), nil); err == nil || !strings.Contains(err.Error(), "bus=scsi") {
		t.Errorf("one device too many: %v", err)
	}
}

// TestSCSIUnits: every disk has its own, the same whoever else is there, and the last is refused by name.
func TestSCSIUnits(t *testing.T) {
	m := api.Machine{}
	for i := range 257 {
		m.Disks = append(m.Disks, api.Disk{Name: fmt.Sprintf("d%03d", i), Bus: "scsi"})
	}
	if _, err := NewLayout(m, nil); err == nil || !strings.HasPrefix(err.Error(), "podvirt.dev/disk.d256: a VM has 256 SCSI disks at most") {
		t.Errorf("257 disks: %v", err)
	}
	m.Disks = m.Disks[:256]
	all, err := NewLayout(m, nil)
	if err != nil {
		t.Fatal(err)
	}
	units := map[uint]bool{}
	for _, d := range m.Disks {
		units[all[scsiKey(d.Name)].Slot] = true
	}
	if len(units) != 256 {
		t.Errorf("256 disks have %d units", len(units))
	}
	m.Disks = m.Disks[3:4]
	alone, err := NewLayout(m, all)
	if err != nil || alone["scsi-unit.d003"] != all["scsi-unit.d003"] {
		t.Errorf("%v, %v; want unit %v", alone, err, all["scsi-unit.d003"])
	}
}

// TestSATAPorts: the chipset has six.
func TestSATAPorts(t *testing.T) {
	var host Host
	for i := range 7 {
		host.Disks = append(host.Disks, Disk{Options: api.Disk{Name: fmt.Sprintf("d%d", i), Bus: "sata"}, Format: "raw", Source: "/d"})
	}
	want := "not in this launcher image: disk.d6: the SATA controller has 6 ports; use bus=scsi"
	if _, err := Build(api.Machine{}, host); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	host.Disks = host.Disks[:6]
	d, err := Build(api.Machine{}, host)
	if err != nil || *d.Devices.Disks[5].Address.Drive.Unit != 5 {
		t.Errorf("the sixth disk: %v", err)
	}
}

func TestAskedPlaces(t *testing.T) {
	m := machineWith("a", "b")
	m.Disks[1].PCI = "0000:00:14.0"
	layout, err := NewLayout(m, nil)
	if err != nil || layout["disk.b"] != (Place{0x14, 0}) {
		t.Errorf("%v, %v", layout["disk.b"], err)
	}
	m.Disks[1].PCI = "0000:00:05.0"
	want := "podvirt.dev/disk.b: pci=0000:00:05.0: taken by balloon"
	if _, err := NewLayout(m, nil); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestSerial(t *testing.T) {
	long := strings.Repeat("x", 40)
	for _, test := range []struct {
		disk api.Disk
		want string
	}{
		{api.Disk{Name: "root", Bus: "virtio"}, "root"},
		{api.Disk{Name: "root", Bus: "virtio", Serial: "S1"}, "S1"},
		{api.Disk{Name: strings.Repeat("x", 21), Bus: "sata"}, strings.Repeat("x", 11) + "-7799e514"},
		{api.Disk{Name: long, Bus: "scsi"}, strings.Repeat("x", 27) + "-" + "d5d4cd07"},
	} {
		got := Serial(test.disk)
		if test.disk.Name == long {
			if len(got) != 36 || !strings.HasPrefix(got, strings.Repeat("x", 27)+"-") {
				t.Errorf("serial %q", got)
			}
			continue
		}
		if got != test.want {
			t.Errorf("serial %q, want %q", got, test.want)
		}
	}
}
