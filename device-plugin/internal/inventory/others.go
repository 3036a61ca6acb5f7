package inventory

import (
	"io/fs"
	"slices"
	"strings"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/cdi"
	"podvirt.dev/device-plugin/internal/device"
	"podvirt.dev/device-plugin/internal/mdev"
	"podvirt.dev/internal/sysfs"
)

// mediated makes and removes mediated devices and offers what is there.
func (r *round) mediated() {
	classes := mdev.InForce(r.settings.Classes, r.settings.Labels)
	for _, c := range classes {
		if !c.External {
			r.resource(c.Resource, c.Place)
		}
	}
	plan, ok := r.mediatedPlan(classes)
	if !ok {
		return
	}
	if len(plan.Create)+len(plan.Remove) > 0 {
		r.apply(plan)
		if plan, ok = r.mediatedPlan(classes); !ok {
			return
		}
		if len(plan.Create)+len(plan.Remove) > 0 { // cards that are empty now get their next type
			r.apply(plan)
			plan, _ = r.mediatedPlan(classes)
		}
	}
	r.result.Notes = append(r.result.Notes, plan.Notes...)
	for _, i := range plan.Offer {
		unit := device.Unit{ID: i.UUID, Card: i.Parent.Name, Grant: device.Grant{
			CDI: []string{cdi.Name(kindMdev, i.UUID)}, Env: map[string]string{api.EnvMdev + api.EnvSuffix(i.Class.Resource): i.UUID},
		}}
		if i.Parent.Cell != sysfs.None {
			unit.Cells = []int{i.Parent.Cell}
		}
		of := r.resource(i.Class.Resource, i.Class.Place)
		of.Units = append(of.Units, unit)
		if i.Mdev.Group != sysfs.None {
			r.specify(kindMdev, i.UUID, r.vfio(i.Mdev.Group, i.Mdev.VFIODevice))
		}
	}
}

func (r *round) mediatedPlan(classes []api.DeviceClass) (mdev.Plan, bool) {
	parents, err := sysfs.MdevParents(r.Host.FS())
	if err != nil {
		r.note("mediated devices: %v", err)
		return mdev.Plan{}, false
	}
	present := map[string]bool{}
	for _, p := range parents {
		if p.Err != nil {
			r.note("card %s: %v", p.Name, p.Err)
		}
		for _, m := range p.Instances {
			present[m.UUID] = true
		}
	}
	if err := r.Host.Forget(func(uuid string) bool { return present[uuid] }); err != nil {
		r.note("%v", err)
	}
	return mdev.Make(parents, classes, mdev.Rules{
		Machine: r.Machine, Ours: r.Host.Journal().Made, Off: r.settings.MdevOff,
		Held: func(uuid string) bool {
			_, held := r.holder(uuid)
			r.result.Waiting = r.result.Waiting || held
			return held
		},
	}), true
}

// apply removes and makes instances. A card whose driver refuses one is left with what it has.
func (r *round) apply(plan mdev.Plan) {
	for _, uuid := range plan.Remove {
		if err := r.Host.RemoveMdev(r.ctx, uuid); err != nil {
			r.note("vGPU %s: removing it: %v", uuid, err)
		}
	}
	made, refused := map[string]int{}, map[string]bool{}
	for _, i := range plan.Create {
		card := i.Parent.Name + ": " + i.Type.ID
		if refused[card] {
			continue
		}
		if err := r.Host.CreateMdev(r.ctx, i.Parent, i.Type.ID, i.UUID); err != nil {
			r.note("data.%s: card %s: vGPU type not creatable: %v", i.Class.Key, card, err)
			refused[card] = true
			continue
		}
		made[card]++
	}
	for card, n := range made {
		r.act("VGPUChanged", "card %s: %d made", card, n)
	}
	if n := len(plan.Remove); n > 0 {
		r.act("VGPUChanged", "%d removed", n)
	}
}

// maxCharacters bounds the character devices of one class.
const maxCharacters = 1024

// characters offers character devices by their paths.
func (r *round) characters() {
	taken := map[string]string{}
	for _, c := range r.classes {
		if c.Path == "" || c.External {
			continue
		}
		if !c.PerDevice {
			r.resource(c.Resource, c.Place)
		}
		names, err := fs.Glob(r.Dev, strings.TrimPrefix(c.Path, "/dev/"))
		if err != nil {
			r.note("data.%s: %v", c.Key, err)
		}
		for _, name := range names[:min(len(names), maxCharacters)] {
			if info, err := fs.Stat(r.Dev, name); err != nil || info.Mode()&fs.ModeCharDevice == 0 || neverOffered(name) {
				continue
			}
			if owner, ok := taken[name]; ok {
				r.note("%s: /dev/%s belongs to %s", c.Key, name, owner)
				continue
			}
			taken[name] = c.Key
			r.character(c, name)
		}
	}
}

func neverOffered(name string) bool {
	return slices.ContainsFunc(api.NeverOffered(), func(never string) bool {
		return "/dev/"+name == never || strings.HasPrefix("/dev/"+name, never+"/")
	})
}

func (r *round) character(c api.DeviceClass, name string) {
	id := strings.ReplaceAll(name, "/", "-")
	resource := c.Resource
	if c.PerDevice {
		resource += "-" + id
	}
	_, last, _ := strings.Cut(resource, "/")
	if len(id) > device.MaxIDLength || len(last) > api.MaxResourceName {
		r.note("data.%s: /dev/%s: the name is too long", c.Key, name)
		return
	}
	of := r.resource(resource, c.Place)
	of.Units = append(of.Units, device.Unit{ID: id, Grant: device.Grant{
		CDI: []string{cdi.Name(kindChar, id)}, Env: map[string]string{api.EnvChar + api.EnvSuffix(resource): "/dev/" + name},
	}})
	r.specify(kindChar, id, cdi.Edit{Nodes: []string{"/dev/" + name}})
}
