package domain

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"podvirt.dev/api"
)

// Every device of the VM sits on the root bus, in a place that is its own: bus numbers are handed out by firmware and
// would move all devices behind a new one, while an address on bus 0 stays what it is (VM-069).
const (
	slotVideo    = 0x1e // 0x01 is the chipset's on machine type pc
	slotPorts    = 0x02
	slotSCSI     = 0x03
	slotSerial   = 0x04
	slotBalloon  = 0x05
	slotRNG      = 0x06
	slotWatchdog = 0x07
	slotPanic    = 0x08
	slotUSB      = 0x09
	slotNIC      = 0x0a // nic.default, and the next four NICs behind it
	slotBoot     = 0x0f // the first virtio disk in the boot order
	firstFree    = 0x10 // other disks, devices and NICs beyond
	lastFree     = 0x1c
	slotSeed     = 0x1d // the seed of cloud-init; 0x1f is the chipset's
)

// spareRootPorts are the PCIe ports for devices that are plugged in later (hotplug-ports, vm.md 2.2).
const spareRootPorts = 4

// Keys of the devices that every VM may have. Disks and NICs are "disk.NAME" and "nic.NAME", as in annotations.
const (
	keyVideo    = "video"
	keySCSI     = "scsi"
	keySerial   = "virtio-serial"
	keyBalloon  = "balloon"
	keyRNG      = "rng"
	keyWatchdog = "watchdog"
	keyPanic    = "panic"
	keyUSB      = "usb"
)

// SeedDisk is the name of the seed among the disks of a Host. No annotation can give it to a disk, for its underscore.
const SeedDisk = "cloud_init"

// scsiPrefix begins the keys of SCSI units, which are the slots of their places.
const scsiPrefix = "scsi-unit."

func diskKey(name string) string { return "disk." + name }
func nicKey(name string) string  { return "nic." + name }
func scsiKey(name string) string { return scsiPrefix + name }

// Place is a slot and function on PCI bus 0.
type Place struct {
	Slot, Function uint
}

// String returns the place as lspci and option pci write it.
func (p Place) String() string { return fmt.Sprintf("0000:00:%02x.%x", p.Slot, p.Function) }

// Layout says where each device sits. It is kept in /vm/state/layout where that is mounted.
type Layout map[string]Place

func fixedPlaces() Layout {
	return Layout{
		keyVideo: {slotVideo, 0}, keySCSI: {slotSCSI, 0}, keySerial: {slotSerial, 0}, keyBalloon: {slotBalloon, 0},
		keyRNG: {slotRNG, 0}, keyWatchdog: {slotWatchdog, 0}, keyPanic: {slotPanic, 0}, keyUSB: {slotUSB, 0},
		nicKey("default"): {slotNIC, 0}, diskKey(SeedDisk): {slotSeed, 0},
	}
}

// room is where devices of one kind can be placed.
type room struct {
	first, slots, functions uint
	full                    string // what a device is told for which there is no place
}

func pciRoom() room {
	return room{firstFree, lastFree - firstFree + 1, slotFunction, "no PCI slot is free; use bus=scsi"}
}

// scsiRoom are units of one target: libvirt's schema allows two digits of a target. 256 is what VM-074 asks for.
func scsiRoom() room {
	return room{0, scsiUnits, 1, "a VM has 256 SCSI disks at most"}
}

// scsiUnits end where a unit needs more than the simplest form of its number (SAM-5, 4.7.7.2).
const scsiUnits = 256

// NewLayout gives every virtio disk and NIC of the VM its place on the PCI bus, and every SCSI disk its unit. Those in
// known keep theirs, a place that an option pci asks for comes next. Other NICs get places one behind the other, in their
// order: guests number NICs as they find them on the bus (NW-004). The first disk of a bus that the VM boots from comes before
// all others: people expect it to be vda or sda. All else gets a place drawn from its name, the next free one where it is taken:
// without known the layout is a function of the names, of the disk to boot from and of the order of the NICs.
func NewLayout(vm api.Machine, known Layout) (Layout, error) {
	layout, units := fixedPlaces(), map[Place]string{}
	if name := bootDisk(vm, "virtio"); name != "" {
		layout[diskKey(name)] = Place{Slot: slotBoot}
	}
	if name := bootDisk(vm, "scsi"); name != "" {
		layout[scsiKey(name)], units[Place{}] = Place{}, scsiKey(name)
	}
	taken := map[Place]string{}
	for key, place := range layout {
		taken[place] = key
	}
	if err := layout.place(wanted(vm), known, taken, pciRoom()); err != nil {
		return nil, err
	}
	return layout, layout.place(wantedUnits(vm), known, units, scsiRoom())
}

// bootDisk is the first disk of a bus in the boot order, if there is one.
func bootDisk(vm api.Machine, bus string) string {
	for _, device := range vm.BootOrder {
		for _, d := range vm.Disks {
			if device.Kind == "disk" && d.Name == device.Name && d.Bus == bus {
				return d.Name
			}
		}
	}
	return ""
}

// place adds devices to the layout. taken are the places in the room that are somebody's, with their holders.
func (l Layout) place(devices []wantedPlace, known Layout, taken map[Place]string, in room) error {
	var drawn []wantedPlace
	for _, d := range devices {
		place, fixed := known[d.key]
		if d.pci != "" {
			if _, err := fmt.Sscanf(d.pci, "0000:00:%x.%x", &place.Slot, &place.Function); err != nil {
				return fmt.Errorf("podvirt.dev/%s: pci=%s: not on bus 00", d.key, d.pci)
			}
			fixed = true
		}
		if !fixed || taken[place] == d.key {
			drawn = append(drawn, d)
			continue
		}
		if holder := taken[place]; holder != "" {
			return fmt.Errorf("podvirt.dev/%s: pci=%s: taken by %s", d.key, place, holder)
		}
		l[d.key], taken[place] = place, d.key
	}
	for _, d := range drawn {
		if _, has := l[d.key]; has {
			continue
		}
		place, free := in.draw(d.key, taken)
		if d.nic {
			place, free = drawNIC(d.number, taken)
		}
		if !free {
			return fmt.Errorf("podvirt.dev/%s: %s", d.annotation(), in.full)
		}
		l[d.key], taken[place] = place, d.key
	}
	return nil
}

type wantedPlace struct {
	key, pci string
	nic      bool
	number   uint // of the NIC among the NICs
}

// annotation names the device for people.
func (w wantedPlace) annotation() string {
	if name, found := strings.CutPrefix(w.key, scsiPrefix); found {
		return diskKey(name)
	}
	return w.key
}

// wanted lists the devices that need a place: the asked-for places first, then the NICs in their order, then the others
// sorted. A NIC that moves has another name in many guests, a disk is found by its serial number.
func wanted(vm api.Machine) []wantedPlace {
	var list, others []wantedPlace
	for _, n := range vm.NICs {
		if n.Binding != api.BindingNone {
			list = append(list, wantedPlace{key: nicKey(n.Name), pci: n.PCI, nic: true, number: uint(len(list))})
		}
	}
	for _, d := range vm.Disks {
		if d.Bus == "virtio" {
			others = append(others, wantedPlace{key: diskKey(d.Name), pci: d.PCI})
		}
	}
	for _, d := range vm.Devices {
		others = append(others, wantedPlace{key: deviceKey(d.Name), pci: d.PCI})
	}
	slices.SortFunc(others, func(a, b wantedPlace) int { return strings.Compare(a.key, b.key) })
	list = append(list, others...)
	slices.SortStableFunc(list, func(a, b wantedPlace) int {
		if (a.pci == "") != (b.pci == "") {
			return strings.Compare(b.pci, a.pci)
		}
		return 0
	})
	return list
}

// wantedUnits lists the disks on the SCSI bus, sorted.
func wantedUnits(vm api.Machine) []wantedPlace {
	var list []wantedPlace
	for _, d := range vm.Disks {
		if d.Bus == "scsi" {
			list = append(list, wantedPlace{key: scsiKey(d.Name)})
		}
	}
	slices.SortFunc(list, func(a, b wantedPlace) int { return strings.Compare(a.key, b.key) })
	return list
}

// draw takes function 0 of every slot before it takes a function above.
func (r room) draw(key string, taken map[Place]string) (Place, bool) {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(key))
	start := uint(hash.Sum32()) % r.slots
	for function := range r.functions {
		for i := range r.slots {
			place := Place{Slot: r.first + (start+i)%r.slots, Function: function}
			if taken[place] == "" {
				return place, true
			}
		}
	}
	return Place{}, false
}

// Places of NICs: one to a slot as long as slots last, since a slot that is shared gives its NICs other names in the guest.
const (
	nicSlots     = 11 // from slotNIC
	slotFunction = 8  // functions of a slot
	nicPlaces    = nicSlots + (lastFree-slotNIC-nicSlots+1)*slotFunction
)

// nicPlace is the place of the NIC with this number. The places of higher numbers are higher.
func nicPlace(number uint) Place {
	if number < nicSlots {
		return Place{Slot: slotNIC + number}
	}
	beyond := number - nicSlots
	return Place{Slot: slotNIC + nicSlots + beyond/slotFunction, Function: beyond % slotFunction}
}

// drawNIC takes the place of the NIC's number, or the next one that is free.
func drawNIC(number uint, taken map[Place]string) (Place, bool) {
	for ; number < nicPlaces; number++ {
		if place := nicPlace(number); taken[place] == "" {
			return place, true
		}
	}
	return Place{}, false
}

// address is the place of a device as libvirt writes it; nil leaves the choice to libvirt.
func (b *builder) address(key string) *libvirtxml.DomainAddress {
	place, ok := b.host.Addresses[key]
	if !ok {
		return nil
	}
	pci := &libvirtxml.DomainAddressPCI{
		Domain: new(uint(0)), Bus: new(uint(0)), Slot: new(place.Slot), Function: new(place.Function),
	}
	if place.Function == 0 && b.host.Addresses.shared(place.Slot) {
		pci.MultiFunction = "on"
	}
	return &libvirtxml.DomainAddress{PCI: pci}
}

// drive is the place of a disk on the first controller of its bus. libvirt would count over all disks, whatever their
// bus, and add controllers of its own for what it takes to be the seventh on SATA and the eighth on SCSI.
func drive(unit uint) *libvirtxml.DomainAddress {
	return &libvirtxml.DomainAddress{Drive: &libvirtxml.DomainAddressDrive{
		Controller: new(uint(0)), Bus: new(uint(0)), Target: new(uint(0)), Unit: new(unit),
	}}
}

// sataPorts is how many disks the chipset's AHCI controller takes.
const sataPorts = 6

// sataPort counts the SATA disks before one.
func (b *builder) sataPort(name string) uint {
	port := uint(0)
	for _, d := range b.host.Disks {
		if d.Options.Name == name {
			break
		}
		if d.Options.Bus == "sata" {
			port++
		}
	}
	return port
}

// shared says whether more than one device sits in a slot.
func (l Layout) shared(slot uint) bool {
	for _, p := range l {
		if p.Slot == slot && p.Function > 0 {
			return true
		}
	}
	return false
}

// aliasPrefix is what libvirt demands of a name that a user gives to a device.
const aliasPrefix = "ua-"

// alias names a device after its annotation. libvirt allows no dot, and names of devices have no underscore.
func alias(kind, name string) *libvirtxml.DomainAlias {
	return &libvirtxml.DomainAlias{Name: aliasPrefix + kind + "_" + strings.ReplaceAll(name, ".", "_")}
}

// DiskOfAlias finds the disk's name again in a device alias of an event.
func DiskOfAlias(name string, disks []Disk) string {
	for _, d := range disks {
		if alias("disk", d.Options.Name).Name == name {
			return d.Options.Name
		}
	}
	return name
}

// DiskTargets returns the names of the disks by the targets under which libvirt counts them.
func DiskTargets(disks []Disk) map[string]string {
	names := make(map[string]string, len(disks))
	for i, d := range disks {
		names[targetName(d.Options.Bus, i)] = d.Options.Name
	}
	return names
}
