// Package inventory is what a node offers under the classes of podvirt-config: it looks at the host, has it prepared for
// what the classes want, and says which units there are. What a container has is never touched.
package inventory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/cdi"
	"podvirt.dev/device-plugin/internal/device"
	"podvirt.dev/device-plugin/internal/holders"
	"podvirt.dev/device-plugin/internal/host"
	"podvirt.dev/device-plugin/internal/pci"
	"podvirt.dev/internal/sysfs"
)

// Kinds of CDI devices, each with a specification of its own.
const (
	kindPCI  = "pci"
	kindMdev = "mdev"
	kindChar = "char"
)

// Settings are what podvirt-config and the Node say.
type Settings struct {
	Classes          []api.DeviceClass
	Labels           map[string]string // of the Node
	MdevOff          bool
	UnsafeInterrupts bool
}

// Options are what an [Inventory] needs; all are required.
type Options struct {
	Host    *host.Host
	Dev     fs.FS  // the host's /dev
	Machine string // id of the machine, part of the names of mediated devices
	// Specify puts the CDI specification of a kind in place, which holds exactly these devices.
	Specify func(kind string, edits map[string]cdi.Edit) error
	// Holders says which container has which unit; an error means that nobody knows.
	Holders func(context.Context) (holders.Holders, error)
}

// Inventory looks and prepares; its methods may be called concurrently.
type Inventory struct {
	Options

	mu      sync.Mutex
	offered map[string]map[string]device.Unit // what the last refresh offered, by resource and id
	units   map[string]pci.Unit               // PCI units of the last refresh, by address
	edits   map[string]map[string]cdi.Edit    // by kind and name of the device
}

// Result is what a refresh found and did.
type Result struct {
	Resources []device.Resource
	Notes     []string // what is wrong or left out, each a line for people
	Acts      []Act
	Waiting   bool // something is to change when a container ends
}

// Act is a change of the host that people are told of.
type Act struct{ Reason, Message string }

// New returns an inventory that has looked at nothing yet.
func New(o Options) *Inventory {
	return &Inventory{Options: o, offered: map[string]map[string]device.Unit{}, units: map[string]pci.Unit{}}
}

// Refresh looks at the host and brings it nearer to what the settings want. It goes on where one thing fails and says so.
func (i *Inventory) Refresh(ctx context.Context, s Settings) Result {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := &round{Inventory: i, ctx: ctx, settings: s, specs: map[string]map[string]cdi.Edit{}, byResource: map[string]*device.Resource{}}
	r.classes = slices.DeleteFunc(slices.Clone(s.Classes), func(c api.DeviceClass) bool {
		return c.Kind != api.ClassDevice || !c.Matches(s.Labels)
	})
	release, err := i.Host.Journal().Exclusive()
	if err != nil {
		r.note("%v", err)
	}
	if release == nil {
		return r.result // without the journal nothing could be undone
	}
	defer release()
	r.functions()
	r.mediated()
	r.characters()
	r.left()
	return r.finish()
}

// round is one refresh.
type round struct {
	*Inventory
	ctx        context.Context //nolint:containedctx // a round is one call
	settings   Settings
	classes    []api.DeviceClass // of PCI functions and character devices on this node
	byResource map[string]*device.Resource
	specs      map[string]map[string]cdi.Edit // what becomes edits of the inventory
	planned    map[string]pci.Unit            // what becomes its units
	result     Result

	asked   bool
	held    holders.Holders
	unknown bool // nobody knows who holds what
}

func (r *round) note(format string, args ...any) {
	r.result.Notes = append(r.result.Notes, fmt.Sprintf(format, args...))
}

func (r *round) act(reason, format string, args ...any) {
	r.result.Acts = append(r.result.Acts, Act{reason, fmt.Sprintf(format, args...)})
}

// holders asks the kubelet, once in a round.
func (r *round) holders() holders.Holders {
	if !r.asked {
		r.asked = true
		held, err := r.Holders(r.ctx)
		if err != nil {
			r.unknown = true
			r.note("%v", err)
		}
		r.held = held
	}
	return r.held
}

// holder returns who has a unit; where nobody knows it may be anybody.
func (r *round) holder(id string) (who string, has bool) {
	if h, ok := r.holders()[id]; ok {
		return h.Pod, true
	}
	if r.unknown {
		return "perhaps a container", true
	}
	return "", false
}

// groupHolder is holder for a function and all that share its IOMMU group.
func (r *round) groupHolder(v pci.View, address string) (who string, has bool) {
	addresses := []string{address}
	if d, ok := v.Device(address); ok && d.Group != sysfs.None {
		addresses = v.Groups[d.Group]
	}
	for _, a := range addresses {
		if who, has := r.holder(a); has {
			return who, true
		}
	}
	return "", false
}

// resource returns the resource of a name, which is offered from now on.
func (r *round) resource(name, place string) *device.Resource {
	of := r.byResource[name]
	if of == nil {
		of = &device.Resource{Name: name, Place: device.Place(place)}
		r.byResource[name] = of
	}
	return of
}

func (r *round) specify(kind, name string, edit cdi.Edit) {
	if r.specs[kind] == nil {
		r.specs[kind] = map[string]cdi.Edit{}
	}
	r.specs[kind][name] = edit
}

// left keeps units that are no longer there, or that no class wants, while a container has them: they are unhealthy.
func (r *round) left() {
	classed := map[string]bool{}
	for name := range r.byResource {
		classed[name] = true
	}
	keep := func(resource, id string, unit device.Unit) {
		unit.Reason = "class removed"
		if classed[resource] {
			unit.Reason = "gone"
		}
		r.keep(resource, id, unit)
	}
	for name, units := range r.offered {
		for id, unit := range units {
			if r.has(name, id) {
				continue
			}
			if _, held := r.holder(id); !held {
				continue
			}
			keep(name, id, unit)
		}
	}
	if journal := r.Host.Journal(); len(r.offered) > 0 || len(journal.Bound())+len(journal.Mdevs()) == 0 {
		return
	}
	// After a restart the kubelet alone knows what was offered.
	for id, h := range r.holders() {
		_, bound := r.Host.Journal().Bound()[id]
		if (bound || r.Host.Journal().Made(id)) && !r.has(h.Resource, id) {
			keep(h.Resource, id, device.Unit{ID: id})
		}
	}
}

func (r *round) has(resource, id string) bool {
	of := r.byResource[resource]
	if of == nil {
		return false
	}
	_, ok := of.Unit(id)
	return ok
}

func (r *round) keep(resource, id string, unit device.Unit) {
	of := r.resource(resource, "")
	of.Units = append(of.Units, unit)
	for kind, edits := range r.edits {
		if edit, ok := edits[id]; ok {
			r.specify(kind, id, edit) // a restarted container is given the same devices
		}
	}
	r.result.Waiting = true
}

// finish puts the specifications in place and returns what may be offered then.
func (r *round) finish() Result {
	for _, kind := range []string{kindPCI, kindMdev, kindChar} {
		if err := r.Specify(kind, r.specs[kind]); err != nil {
			r.note("CDI specification of %s: %v", kind, err)
			r.result.Resources = nil
			return r.result
		}
	}
	r.edits, r.units = r.specs, r.planned
	r.offered = map[string]map[string]device.Unit{}
	for _, name := range slices.Sorted(maps.Keys(r.byResource)) {
		of := r.byResource[name]
		slices.SortFunc(of.Units, func(a, b device.Unit) int { return strings.Compare(a.ID, b.ID) })
		r.result.Resources = append(r.result.Resources, *of)
		r.offered[name] = map[string]device.Unit{}
		for _, unit := range of.Units {
			r.offered[name][unit.ID] = unit
		}
	}
	slices.Sort(r.result.Notes)
	r.result.Notes = slices.Compact(r.result.Notes)
	return r.result
}

// Prepare makes units ready that a container is about to get: it binds what is bound at its first allocation only, and
// reads the IOMMU group again, whose number may have changed. It knows nothing of units that need no preparation.
func (i *Inventory) Prepare(ctx context.Context, resource string, ids []string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.units) == 0 {
		return nil
	}
	release, err := i.Host.Journal().Exclusive()
	if err != nil {
		return err
	}
	defer release()
	changed := false
	var errs []error
	for _, id := range ids {
		unit, ok := i.units[id]
		if _, offered := i.offered[resource][id]; !ok || !offered {
			continue
		}
		for _, address := range unit.Bind {
			if err := i.Host.Bind(ctx, address, unit.Class.Bind); err != nil {
				errs = append(errs, fmt.Errorf("%s: bind failed: %w", address, err))
			}
		}
		v, err := pci.Look(i.Host.FS())
		if err != nil {
			return err
		}
		d, there := v.Device(id)
		if !there {
			return fmt.Errorf("%s: gone", id)
		}
		edit := i.edit(d)
		if before, ok := i.edits[kindPCI][id]; !ok || !slices.Equal(before.Nodes, edit.Nodes) {
			i.edits[kindPCI][id] = edit
			changed = true
		}
	}
	if changed {
		errs = append(errs, i.Specify(kindPCI, i.edits[kindPCI]))
	}
	return errors.Join(errs...)
}

// edit is what a container gets with a function: the files of its IOMMU group, and the right to lock memory.
func (i *Inventory) edit(d sysfs.PCIDevice) cdi.Edit { return i.vfio(d.Group, d.VFIODevice) }

func (i *Inventory) vfio(group int, file string) cdi.Edit {
	edit := cdi.Edit{
		Nodes: []string{"/dev/vfio/vfio", fmt.Sprintf("/dev/vfio/%d", group)},
		Hook:  []string{"memlock=unlimited"},
	}
	if file == "" {
		return edit
	}
	for _, name := range []string{"vfio/devices/" + file, "iommu"} {
		if _, err := fs.Stat(i.Dev, name); err == nil {
			edit.Nodes = append(edit.Nodes, "/dev/"+name)
		}
	}
	return edit
}
