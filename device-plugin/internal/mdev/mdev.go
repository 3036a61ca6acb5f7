// Package mdev decides which mediated devices a node shall have (devices.md 2.3). It only reads: what is to be made and
// removed is in its result.
package mdev

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"podvirt.dev/api"
	"podvirt.dev/internal/sysfs"
)

// Rules are what the plan follows besides the classes.
type Rules struct {
	Machine string                 // id of the machine, part of the names of instances
	Held    func(uuid string) bool // a container has the instance
	Ours    func(uuid string) bool // we made the instance
	Off     bool                   // devices.mdev: off
}

// Instance is one mediated device that is there or shall be.
type Instance struct {
	UUID   string
	Parent sysfs.MdevParent
	Type   sysfs.MdevType
	Class  api.DeviceClass
	Mdev   sysfs.Mdev // as the kernel shows it; zero where it is not there yet
}

// Plan is what is to be done, and what is offered of what is there.
type Plan struct {
	Create []Instance
	Remove []string // UUIDs of ours that nobody wants and nobody holds
	Offer  []Instance
	Notes  []string
}

// InForce returns the classes of vGPUs that count on a node: where one with a selector matches, those without do not
// (devices.md 2.2), sorted by order and key.
func InForce(classes []api.DeviceClass, labels map[string]string) []api.DeviceClass {
	var general, special []api.DeviceClass
	for _, c := range classes {
		switch {
		case c.Kind != api.ClassVGPU || !c.Matches(labels):
		case len(c.Nodes) > 0:
			special = append(special, c)
		default:
			general = append(general, c)
		}
	}
	chosen := general
	if len(special) > 0 {
		chosen = special
	}
	slices.SortStableFunc(chosen, func(a, b api.DeviceClass) int {
		return cmp.Or(cmp.Compare(a.Order, b.Order), strings.Compare(a.Key, b.Key))
	})
	return chosen
}

// Make returns the plan. classes are those of [InForce].
func Make(parents []sysfs.MdevParent, classes []api.DeviceClass, rules Rules) Plan {
	p := planner{rules: rules, classes: classes, cards: map[string]int{}}
	for _, parent := range parents {
		p.present(parent)
	}
	if rules.Off {
		return p.plan
	}
	var empty []sysfs.MdevParent
	for _, parent := range parents {
		if p.keep(parent) {
			empty = append(empty, parent)
		}
	}
	for _, parent := range empty {
		p.assign(parent)
	}
	for _, c := range classes {
		if c.Manage == api.ManageCreate && !c.External && p.supported(parents, c) == 0 && len(parents) > 0 {
			p.plan.Notes = append(p.plan.Notes, fmt.Sprintf("data.%s: type=%s: no card on this node supports it", c.Key, c.Type))
		}
	}
	return p.plan
}

type planner struct {
	rules   Rules
	classes []api.DeviceClass
	cards   map[string]int // cards of this node that carry a type, by its id
	plan    Plan
}

func (p *planner) supported(parents []sysfs.MdevParent, c api.DeviceClass) int {
	n := 0
	for _, parent := range parents {
		for _, t := range parent.Types {
			if names(c, t) {
				n++
			}
		}
	}
	return n
}

// names says whether a class means a type, by its id or by its name, in which "_" may stand for a blank.
func names(c api.DeviceClass, t sysfs.MdevType) bool {
	plain := func(s string) string { return strings.ReplaceAll(s, "_", " ") }
	return c.Type == t.ID || t.Name != "" && plain(c.Type) == plain(t.Name)
}

// wanted returns the class that has instances of a type made, or offers those that it finds.
func (p *planner) wanted(t sysfs.MdevType, manage string) (api.DeviceClass, bool) {
	i := slices.IndexFunc(p.classes, func(c api.DeviceClass) bool { return !c.External && c.Manage == manage && names(c, t) })
	if i < 0 {
		return api.DeviceClass{}, false
	}
	return p.classes[i], true
}

// present offers what is there: of ours what a class makes, of others what a class finds.
func (p *planner) present(parent sysfs.MdevParent) {
	for _, m := range parent.Instances {
		t := typeOf(parent, m.Type)
		manage := api.ManageFound
		if p.rules.Ours(m.UUID) {
			manage = api.ManageCreate
		}
		if class, ok := p.wanted(t, manage); ok {
			p.plan.Offer = append(p.plan.Offer, Instance{UUID: m.UUID, Parent: parent, Type: t, Class: class, Mdev: m})
		}
	}
}

func typeOf(parent sysfs.MdevParent, id string) sysfs.MdevType {
	i := slices.IndexFunc(parent.Types, func(t sysfs.MdevType) bool { return t.ID == id })
	if i < 0 {
		return sysfs.MdevType{ID: id}
	}
	return parent.Types[i]
}

// keep looks at a card with instances: those that a class wants are completed, ours that nobody wants are removed unless
// they are held. It returns true for a card without instances, which can be given any type.
func (p *planner) keep(parent sysfs.MdevParent) (empty bool) {
	carried := map[string]bool{}
	for _, m := range parent.Instances {
		t := typeOf(parent, m.Type)
		_, want := p.wanted(t, api.ManageCreate)
		if p.rules.Ours(m.UUID) && !want && !p.rules.Held(m.UUID) {
			p.plan.Remove = append(p.plan.Remove, m.UUID)
			continue
		}
		carried[m.Type] = true
	}
	for id := range carried {
		p.cards[id]++
		if class, want := p.wanted(typeOf(parent, id), api.ManageCreate); want && len(carried) == 1 {
			p.create(parent, typeOf(parent, id), class)
		}
	}
	return len(parent.Instances) == 0
}

// assign gives a card the wanted type that fewest cards have; the earlier one of equals.
func (p *planner) assign(parent sysfs.MdevParent) {
	var best sysfs.MdevType
	var chosen api.DeviceClass
	for _, class := range p.classes {
		if class.External || class.Manage != api.ManageCreate {
			continue
		}
		for _, t := range parent.Types {
			if names(class, t) && t.Available > 0 && (best.ID == "" || p.cards[t.ID] < p.cards[best.ID]) {
				best, chosen = t, class
			}
		}
	}
	if best.ID != "" {
		p.cards[best.ID]++
		p.create(parent, best, chosen)
	}
}

// create has as many instances made as the driver says are still possible. Their names are those that are not taken.
func (p *planner) create(parent sysfs.MdevParent, t sysfs.MdevType, class api.DeviceClass) {
	taken := map[string]bool{}
	for _, m := range parent.Instances {
		taken[m.UUID] = true
	}
	for n, left := 0, t.Available; left > 0; n++ {
		id := Name(p.rules.Machine, parent.Name, t.ID, n)
		if taken[id] {
			continue
		}
		p.plan.Create = append(p.plan.Create, Instance{UUID: id, Parent: parent, Type: t, Class: class})
		left--
	}
}

// Name is the UUID of the n-th instance of a type on a card: the same after every reboot.
func Name(machine, parent, kind string, n int) string {
	space := uuid.NewSHA1(uuid.NameSpaceOID, []byte("podvirt.dev/mdev/"+machine))
	return uuid.NewSHA1(space, fmt.Appendf(nil, "%s/%s/%d", parent, kind, n)).String()
}
