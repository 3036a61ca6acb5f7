// Package pci decides which PCI functions of a node are offered under which class, and why the others are not. It only
// reads: what it finds necessary to do is in its result.
package pci

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"podvirt.dev/api"
	"podvirt.dev/internal/sysfs"
)

// View is what the kernel says about PCI at one moment.
type View struct {
	Devices []sysfs.PCIDevice
	Groups  map[int][]string  // addresses by IOMMU group
	Use     map[string]string // why the host needs a function, by address
	IOMMU   bool
	Remaps  bool            // interrupts are remapped
	Down    map[string]bool // functions whose network interface has no link, by address

	byAddress map[string]int
}

// Look reads the view. A function that cannot be read whole is in it, with its error.
func Look(fsys sysfs.FS) (View, error) {
	devices, err := sysfs.PCIDevices(fsys)
	if err != nil {
		return View{}, fmt.Errorf("PCI functions: %w", err)
	}
	v := View{Devices: devices, Groups: map[int][]string{}, Use: sysfs.HostUse(fsys, devices), Down: map[string]bool{}, byAddress: map[string]int{}}
	v.IOMMU, v.Remaps = sysfs.IOMMU(fsys)
	for i, d := range devices {
		v.byAddress[d.Address] = i
		if d.Group != sysfs.None {
			v.Groups[d.Group] = append(v.Groups[d.Group], d.Address)
		}
		for _, name := range d.Interfaces {
			v.Down[d.Address] = !sysfs.Carrier(fsys, name)
		}
	}
	return v, nil
}

// Device returns the function at an address; false if there is none.
func (v View) Device(address string) (sysfs.PCIDevice, bool) {
	i, ok := v.byAddress[address]
	if !ok {
		return sysfs.PCIDevice{}, false
	}
	return v.Devices[i], true
}

// mates returns the other functions of the device's IOMMU group that are no bridges.
func (v View) mates(d sysfs.PCIDevice) []sysfs.PCIDevice {
	var mates []sysfs.PCIDevice
	for _, address := range v.Groups[d.Group] {
		if mate, ok := v.Device(address); ok && address != d.Address && !mate.Bridge() {
			mates = append(mates, mate)
		}
	}
	return mates
}

// PFs returns the physical functions that a class names: by address or by the name of an interface.
func (v View) PFs(class api.DeviceClass) []sysfs.PCIDevice {
	var found []sysfs.PCIDevice
	for _, d := range v.Devices {
		for _, pf := range class.PFs {
			if d.TotalVFs > 0 && isPF(d, pf.Name) {
				found = append(found, d)
				break
			}
		}
	}
	return found
}

func isPF(d sysfs.PCIDevice, name string) bool {
	if d.Address == strings.ToLower(name) {
		return true
	}
	return slices.Contains(d.Interfaces, name)
}

// selects says whether a class means a function. driver is the one it had before anything was bound by us.
func (v View) selects(c api.DeviceClass, d sysfs.PCIDevice, driver string) bool {
	switch {
	case len(c.Match) > 0 && !slices.ContainsFunc(c.Match, func(m api.DeviceMatch) bool { return matches(m, d) }):
		return false
	case len(c.Addresses) > 0 && !slices.ContainsFunc(c.Addresses, func(glob string) bool { return globs(glob, d.Address) }):
		return false
	case len(c.PFs) > 0 && !v.isVFOf(c.PFs, d):
		return false
	case len(c.Drivers) > 0 && !slices.Contains(c.Drivers, driver):
		return false
	}
	return c.Link == "" || c.Link == linkType(d)
}

func matches(m api.DeviceMatch, d sysfs.PCIDevice) bool {
	if m.ByClass {
		return d.Class>>8 == uint32(m.Class)
	}
	return m.Vendor == d.Vendor && m.Device == d.Device && (!m.Sub || m.SubVendor == d.SubVendor && m.SubDevice == d.SubDevice)
}

func globs(glob, address string) bool {
	ok, err := path.Match(glob, address)
	return ok && err == nil
}

func (v View) isVFOf(ranges []api.PFRange, d sysfs.PCIDevice) bool {
	pf, ok := v.Device(d.PF)
	if !ok || d.VF == sysfs.None {
		return false
	}
	return slices.ContainsFunc(ranges, func(r api.PFRange) bool {
		return isPF(pf, r.Name) && d.VF >= r.From && (r.To == api.LeaveVFs || d.VF <= r.To)
	})
}

// linkType is what PCI's class says of a network device.
func linkType(d sysfs.PCIDevice) string {
	switch d.Class >> 8 {
	case 0x0200:
		return "ether"
	case 0x0207:
		return "infiniband"
	}
	return ""
}
