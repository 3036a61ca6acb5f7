// Package device says what a node offers. Discovery produces resources, the board tells what changed between two
// discoveries, and the servers of package kubelet hand out what stands on the board; none of the three knows another.
package device

import (
	"slices"
	"strings"
)

// MaxIDLength bounds the ids of units (k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1, message Device).
const MaxIDLength = 63

// Resource is one extended resource and all its units on this node. A resource without units is still offered, with
// capacity 0; one that must not appear on the Node is not on the board at all.
type Resource struct {
	Name  string // full name, such as podvirt.dev/kvm
	Units []Unit
	Note  string // for people: why there are no units, or fewer than asked for
	Place Place  // which units a container had better get
}

// Place says how the units of one container are spread over cards.
type Place string

// Places.
const (
	Anywhere Place = ""       // units do not differ
	Pack     Place = "pack"   // from as few cards as possible, the fullest first
	Spread   Place = "spread" // from as many cards as possible, the emptiest first
)

// Unit is what one container can hold. Its id is the same after restarts of plugin, kubelet and node.
type Unit struct {
	ID     string
	Reason string // why it is unhealthy; empty: healthy (devices.md 2.7)
	Cells  []int  // NUMA cells it belongs to; empty: no cell, or every cell
	Card   string // what it is a part of, for Place; "": nothing
	Grant  Grant
}

// Healthy says whether the unit may be handed out.
func (u Unit) Healthy() bool { return u.Reason == "" }

// Grant is what a container gets with one unit.
type Grant struct {
	CDI []string          // full CDI device names
	Env map[string]string // values of several units are joined with commas
}

// Unit returns the unit with the id.
func (r Resource) Unit(id string) (Unit, bool) {
	i := slices.IndexFunc(r.Units, func(u Unit) bool { return u.ID == id })
	if i < 0 {
		return Unit{}, false
	}
	return r.Units[i], true
}

// Counts returns how many units are healthy, and how many are not.
func (r Resource) Counts() (healthy, unhealthy int) {
	for _, u := range r.Units {
		if u.Healthy() {
			healthy++
		}
	}
	return healthy, len(r.Units) - healthy
}

// equal says whether the kubelet and a container would see no difference. The note is for people only, yet it is
// compared too: the board is also what the list of devices is printed from.
func (r Resource) equal(o Resource) bool {
	return r.Name == o.Name && r.Note == o.Note && r.Place == o.Place && slices.EqualFunc(r.Units, o.Units, Unit.equal)
}

func (u Unit) equal(o Unit) bool {
	return u.ID == o.ID && u.Reason == o.Reason && u.Card == o.Card && slices.Equal(u.Cells, o.Cells) && u.Grant.equal(o.Grant)
}

func (g Grant) equal(o Grant) bool {
	if len(g.Env) != len(o.Env) || !slices.Equal(g.CDI, o.CDI) {
		return false
	}
	for name, value := range g.Env {
		if other, ok := o.Env[name]; !ok || other != value {
			return false
		}
	}
	return true
}

// Changes is the difference between two discoveries, by resource name, sorted.
type Changes struct {
	Added, Changed, Removed []string
}

// Empty says whether nothing differs.
func (c Changes) Empty() bool { return len(c.Added)+len(c.Changed)+len(c.Removed) == 0 }

// Diff compares two sets of resources. The order of resources has no meaning, that of units has.
func Diff(before, after []Resource) Changes {
	var c Changes
	old := byName(before)
	for _, r := range after {
		switch was, ok := old[r.Name]; {
		case !ok:
			c.Added = append(c.Added, r.Name)
		case !was.equal(r):
			c.Changed = append(c.Changed, r.Name)
		}
		delete(old, r.Name)
	}
	for name := range old {
		c.Removed = append(c.Removed, name)
	}
	for _, names := range [][]string{c.Added, c.Changed, c.Removed} {
		slices.SortFunc(names, strings.Compare)
	}
	return c
}

func byName(resources []Resource) map[string]Resource {
	m := make(map[string]Resource, len(resources))
	for _, r := range resources {
		m[r.Name] = r
	}
	return m
}
