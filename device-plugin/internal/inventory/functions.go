package inventory

import (
	"maps"
	"slices"
	"strings"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/cdi"
	"podvirt.dev/device-plugin/internal/device"
	"podvirt.dev/device-plugin/internal/pci"
	"podvirt.dev/internal/sysfs"
)

// functions offers PCI functions: virtual ones are made first, then all are bound, then what nobody wants is given back.
func (r *round) functions() {
	v, err := pci.Look(r.Host.FS())
	if err != nil {
		r.note("%v", err)
		r.planned = r.units
		return
	}
	if r.virtual(v) {
		if v, err = pci.Look(r.Host.FS()); err != nil {
			r.note("%v", err)
			return
		}
	}
	units, notes := r.plan(v)
	if r.bind(units) {
		if v, err = pci.Look(r.Host.FS()); err != nil {
			r.note("%v", err)
			return
		}
		failed := map[string]string{}
		for _, u := range units {
			failed[u.Device.Address] = u.Reason
		}
		units, notes = r.plan(v)
		for i := range units {
			if units[i].Reason == "" && strings.HasPrefix(failed[units[i].Device.Address], "bind failed") {
				units[i].Reason = failed[units[i].Device.Address]
			}
		}
	}
	r.result.Notes = append(r.result.Notes, notes...)
	r.offer(units)
	r.giveBack(v, units)
}

func (r *round) plan(v pci.View) ([]pci.Unit, []string) {
	return pci.Plan(v, r.classes, pci.Rules{UnsafeInterrupts: r.settings.UnsafeInterrupts, Origin: r.Host.Journal().Bound()})
}

// virtual makes physical functions have as many virtual ones as their class says, and those of no class what they had.
func (r *round) virtual(v pci.View) (changed bool) {
	for _, c := range pci.VFCounts(v, r.classes) {
		if c.Reason != "" {
			r.note("data.%s: %s", c.Class, c.Reason)
			continue
		}
		if who, held := r.anyHeld(v, c.PF.VFs); held {
			r.note("data.%s: vfs=%d: PF %s keeps %d while %s has one", c.Class, c.Count, c.PF.Address, len(c.PF.VFs), who)
			r.result.Waiting = true
			continue
		}
		if err := r.Host.SetVFs(r.ctx, c.PF, c.Count); err != nil {
			r.note("data.%s: vfs=%d: PF %s: %v", c.Class, c.Count, c.PF.Address, err)
			continue
		}
		r.act("DeviceBound", "PF %s has %d virtual functions", c.PF.Address, c.Count)
		changed = true
	}
	wanted := map[string]bool{}
	for _, class := range r.classes {
		if class.VFs != api.LeaveVFs {
			for _, pf := range v.PFs(class) {
				wanted[pf.Address] = true
			}
		}
	}
	for _, address := range slices.Sorted(maps.Keys(r.Host.Journal().VFs())) {
		if !wanted[address] && r.resetVFs(v, address) {
			changed = true
		}
	}
	return changed
}

func (r *round) resetVFs(v pci.View, address string) bool {
	pf, ok := v.Device(address)
	if !ok {
		return false
	}
	if _, held := r.anyHeld(v, pf.VFs); held {
		r.result.Waiting = true
		return false
	}
	if err := r.Host.ResetVFs(r.ctx, pf); err != nil {
		r.note("PF %s: %v", address, err)
		return false
	}
	return true
}

func (r *round) anyHeld(v pci.View, addresses []string) (string, bool) {
	for _, address := range addresses {
		if who, held := r.groupHolder(v, address); held {
			return who, true
		}
	}
	return "", false
}

// bind binds what is to be bound before the first allocation. A failure is the reason of its unit.
func (r *round) bind(units []pci.Unit) (changed bool) {
	for i := range units {
		u := &units[i]
		if u.Reason != "" || u.Class.When != api.WhenStart {
			continue
		}
		for _, address := range u.Bind {
			if err := r.Host.Bind(r.ctx, address, u.Class.Bind); err != nil {
				u.Reason = "bind failed: " + err.Error()
				break
			}
			r.act("DeviceBound", "%s is bound to %s for %s", address, u.Class.Bind, u.Class.Resource)
			changed = true
		}
	}
	return changed
}

// offer puts the units under their resources. A class without any has a resource all the same, with capacity 0.
func (r *round) offer(units []pci.Unit) {
	for _, c := range r.classes {
		if !c.External && !c.PerDevice && c.Path == "" {
			r.resource(c.Resource, c.Place)
		}
	}
	r.planned = map[string]pci.Unit{}
	for _, u := range units {
		name, fits := u.Resource()
		if !fits {
			r.note("data.%s: name %s is longer than %d characters", u.Class.Key, name, api.MaxResourceName)
			continue
		}
		address := u.Device.Address
		unit := device.Unit{ID: address, Reason: u.Reason, Card: u.Card(), Grant: device.Grant{
			CDI: []string{cdi.Name(kindPCI, address)}, Env: map[string]string{api.EnvPCI + api.EnvSuffix(name): address},
		}}
		if u.Device.Cell != sysfs.None {
			unit.Cells = []int{u.Device.Cell}
		}
		of := r.resource(name, u.Class.Place)
		of.Units = append(of.Units, unit)
		r.planned[address] = u
		if u.Device.Group != sysfs.None {
			r.specify(kindPCI, address, r.edit(u.Device))
		}
	}
}

// giveBack returns functions to the drivers they had when no class wants them and no container has them.
func (r *round) giveBack(v pci.View, units []pci.Unit) {
	wanted := map[string]bool{}
	for _, u := range units {
		for _, address := range u.Owned() {
			wanted[address] = true
		}
	}
	for _, address := range slices.Sorted(maps.Keys(r.Host.Journal().Bound())) {
		if wanted[address] {
			continue
		}
		if _, held := r.groupHolder(v, address); held {
			r.result.Waiting = true
			continue
		}
		if err := r.Host.Release(r.ctx, address); err != nil {
			r.note("%s: giving it back: %v", address, err)
			continue
		}
		r.act("DeviceBound", "%s is given back to its driver", address)
	}
}
