package pci

import (
	"fmt"
	"slices"
	"strings"

	"podvirt.dev/api"
	"podvirt.dev/internal/sysfs"
)

// NoIOMMU is the reason of a function that no IOMMU holds in bounds (devices.md 2.7).
const NoIOMMU = "IOMMU is off: boot with intel_iommu=on or amd_iommu=on and enable it in firmware"

// Unit is one function to offer, and what goes with it.
type Unit struct {
	Class      api.DeviceClass
	Device     sysfs.PCIDevice
	Companions []string // other functions of the IOMMU group that are bound with it
	Reason     string   // why it cannot be handed out; empty: it can, once Bind is done
	Bind       []string // functions that are not bound to the class's driver yet
}

// Owned returns the functions that nobody else may have while the unit is offered.
func (u Unit) Owned() []string { return append([]string{u.Device.Address}, u.Companions...) }

// Rules are what the plan follows besides the classes.
type Rules struct {
	UnsafeInterrupts bool
	// Origin is the driver that a function had before we bound it, by address.
	Origin map[string]string
}

// Plan says what is offered. Classes come in the order of their keys; the first that selects a function has it, and
// what a class calls external is nobody's.
func Plan(v View, classes []api.DeviceClass, rules Rules) (units []Unit, notes []string) {
	p := planner{view: v, rules: rules, owner: map[string]string{}}
	for _, class := range classes {
		if class.External {
			p.each(class, func(d sysfs.PCIDevice) { p.owner[d.Address] = class.Key })
		}
	}
	for _, class := range classes {
		if !class.External {
			p.each(class, func(d sysfs.PCIDevice) { p.add(class, d) })
		}
	}
	return p.units, p.notes
}

type planner struct {
	view  View
	rules Rules
	owner map[string]string // key of the class that has a function, by address
	units []Unit
	notes []string
}

// each calls do for every function that a class selects.
func (p *planner) each(class api.DeviceClass, do func(sysfs.PCIDevice)) {
	if class.Kind != api.ClassDevice || class.Path != "" {
		return
	}
	for _, d := range p.view.Devices {
		driver := d.Driver
		if before, ours := p.rules.Origin[d.Address]; ours {
			driver = before
		}
		if p.view.selects(class, d, driver) {
			do(d)
		}
	}
}

func (p *planner) add(class api.DeviceClass, d sysfs.PCIDevice) {
	if owner, taken := p.owner[d.Address]; taken {
		if owner != class.Key {
			p.notes = append(p.notes, fmt.Sprintf("%s: %s belongs to %s", class.Key, d.Address, owner))
		}
		return
	}
	u := Unit{Class: class, Device: d}
	mates := p.view.mates(d)
	if class.Group == api.GroupCompanions {
		for _, mate := range mates {
			u.Companions = append(u.Companions, mate.Address)
		}
	}
	u.Reason = p.reason(u, mates)
	if u.Reason == "" {
		u.Reason = p.binding(&u)
	}
	for _, address := range u.Owned() {
		p.owner[address] = class.Key
	}
	p.units = append(p.units, u)
}

// reason says what stands against handing the function out, or "".
func (p *planner) reason(u Unit, mates []sysfs.PCIDevice) string {
	d := u.Device
	switch {
	case d.Err != nil:
		return "not readable: " + firstLine(d.Err)
	case d.Bridge():
		return "in use by the host: bridge"
	case len(d.VFs) > 0:
		return fmt.Sprintf("in use by the host: %d virtual functions", len(d.VFs))
	case p.view.Use[d.Address] != "":
		return "in use by the host: " + p.view.Use[d.Address]
	case !p.view.IOMMU || d.Group == sysfs.None:
		return NoIOMMU
	case !p.view.Remaps && !p.rules.UnsafeInterrupts:
		return "no interrupt remapping"
	case !d.Resettable && u.Class.NoReset != api.NoResetAllow:
		return "no reset method"
	case u.Class.Link != "" && (p.view.Down[d.Address] || p.view.Down[d.PF]):
		return "link down"
	}
	return p.group(u, mates)
}

// group says what stands against the function's IOMMU group, which is handed out whole or not at all.
func (p *planner) group(u Unit, mates []sysfs.PCIDevice) string {
	for _, mate := range mates {
		driver := "no driver"
		if mate.Driver != "" {
			driver = "driver " + mate.Driver
		}
		also := fmt.Sprintf("IOMMU group %d also holds %s", u.Device.Group, mate.Address)
		switch owner, taken := p.owner[mate.Address]; {
		case u.Class.Group != api.GroupCompanions:
			return fmt.Sprintf("%s (%s)", also, driver)
		case taken:
			return fmt.Sprintf("%s, which belongs to %s", also, owner)
		case p.view.Use[mate.Address] != "":
			return fmt.Sprintf("%s, in use by the host: %s", also, p.view.Use[mate.Address])
		}
	}
	return ""
}

// binding notes what is to be bound, or says why nothing will be.
func (p *planner) binding(u *Unit) string {
	want := u.Class.Bind
	if want == api.BindNone {
		if u.Device.Driver != api.BindVFIO {
			return fmt.Sprintf("driver %s instead of %s", orNone(u.Device.Driver), api.BindVFIO)
		}
		return ""
	}
	for _, address := range u.Owned() {
		if d, ok := p.view.Device(address); ok && d.Driver != want {
			u.Bind = append(u.Bind, address)
		}
	}
	return ""
}

func orNone(driver string) string {
	if driver == "" {
		return "none"
	}
	return driver
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// Resource returns the name under which the unit is offered; false if the name would be too long.
func (u Unit) Resource() (string, bool) {
	if !u.Class.PerDevice {
		return u.Class.Resource, true
	}
	name := u.Class.Resource + "-" + strings.ReplaceAll(u.Device.Address, ":", "-")
	_, last, _ := strings.Cut(name, "/")
	return name, len(last) <= api.MaxResourceName
}

// Card is the physical thing that a function belongs to: functions of one card compete for it.
func (u Unit) Card() string {
	if u.Device.PF != "" {
		return u.Device.PF
	}
	return u.Device.Address
}

// VFCount is how many virtual functions a physical one is to have.
type VFCount struct {
	PF     sysfs.PCIDevice
	Count  int
	Class  string
	Reason string // why it cannot be done
}

// VFCounts returns the physical functions whose number of virtual functions is not what a class says. The first class by
// key decides about a PF.
func VFCounts(v View, classes []api.DeviceClass) []VFCount {
	var counts []VFCount
	decided := map[string]bool{}
	for _, class := range classes {
		if class.VFs == api.LeaveVFs || class.External {
			continue
		}
		for _, pf := range v.PFs(class) {
			if decided[pf.Address] {
				continue
			}
			decided[pf.Address] = true
			c := VFCount{PF: pf, Count: class.VFs, Class: class.Key}
			if class.VFs > pf.TotalVFs {
				c.Reason = fmt.Sprintf("vfs=%d: PF %s has %d", class.VFs, pf.Address, pf.TotalVFs)
			}
			if c.Reason != "" || len(pf.VFs) != class.VFs {
				counts = append(counts, c)
			}
		}
	}
	return slices.Clip(counts)
}
