package device

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// Differs says whether it matters which units a container gets.
func (r Resource) Differs() bool {
	return r.Place != Anywhere || slices.ContainsFunc(r.Units, func(u Unit) bool { return len(u.Cells) > 0 })
}

// Prefer chooses size of the available units: those that must be included first, then units of the NUMA cell that has
// most of what is chosen or can hold all, then by card as Place says, then by id. It always returns as many as it can.
func (r Resource) Prefer(available, must []string, size int) []string {
	chosen := slices.Clone(must[:min(len(must), max(size, 0))])
	p := preference{units: map[string]Unit{}, place: r.Place, free: map[string]int{}, onCard: map[string]int{}, onCell: map[int]int{}}
	for _, u := range r.Units {
		p.units[u.ID] = u
	}
	var rest []string
	for _, id := range available {
		if !slices.Contains(chosen, id) {
			rest = append(rest, id)
			p.free[p.units[id].Card]++
		}
	}
	for _, id := range chosen {
		p.take(id)
	}
	if len(chosen) == 0 {
		p.cell(rest, size)
	}
	for len(chosen) < size && len(rest) > 0 {
		best := slices.MinFunc(rest, p.compare)
		p.take(best)
		chosen = append(chosen, best)
		rest = slices.DeleteFunc(rest, func(id string) bool { return id == best })
	}
	return chosen
}

// preference compares units by what is chosen already.
type preference struct {
	units  map[string]Unit
	place  Place
	free   map[string]int // available units by card
	onCard map[string]int // chosen units by card
	onCell map[int]int    // weight of a cell
}

func (p preference) take(id string) {
	u := p.units[id]
	p.onCard[u.Card]++
	for _, cell := range u.Cells {
		p.onCell[cell]++
	}
}

// cell gives weight to the first cell that has room for all.
func (p preference) cell(available []string, size int) {
	room := map[int]int{}
	for _, id := range available {
		for _, cell := range p.units[id].Cells {
			room[cell]++
		}
	}
	for _, cell := range slices.Sorted(maps.Keys(room)) {
		if room[cell] >= size {
			p.onCell[cell]++
			return
		}
	}
}

func (p preference) compare(a, b string) int {
	u, v := p.units[a], p.units[b]
	order := 0
	switch p.place {
	case Pack:
		order = cmp.Or(cmp.Compare(p.onCard[v.Card], p.onCard[u.Card]), cmp.Compare(p.free[u.Card], p.free[v.Card]))
	case Spread:
		order = cmp.Or(cmp.Compare(p.onCard[u.Card], p.onCard[v.Card]), cmp.Compare(p.free[v.Card], p.free[u.Card]))
	case Anywhere:
	}
	return cmp.Or(cmp.Compare(p.weight(v), p.weight(u)), order, strings.Compare(a, b))
}

func (p preference) weight(u Unit) int {
	most := 0
	for _, cell := range u.Cells {
		most = max(most, p.onCell[cell])
	}
	return most
}
