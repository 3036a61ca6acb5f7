package virtualmachine

import (
	"cmp"
	"slices"

	"podvirt.dev/api"
)

// demand is what a VM needs of NUMA cells.
type demand struct {
	size   string // of its huge pages; "": it needs none
	pages  int64  // in all
	cpus   int64  // of its own, in all
	policy api.NUMAPolicy
	cells  int // with policy [api.NUMACells]
}

// placed says whether cells are to be chosen for it.
func (d demand) placed() bool { return (d.pages > 0 || d.cpus > 0) && d.policy != api.NUMANone }

// asks says whether the Node's cells have to be looked at: for cells, or for CPUs wherever they are.
func (d demand) asks() bool { return d.placed() || d.cpus > 0 }

// counts returns from how many to how many cells the VM may be spread over, fewest first. A kubelet that aligns a
// container's CPUs with one cell would refuse it over two.
func (d demand) counts(t *topology) (least, most int) {
	switch {
	case d.policy == api.NUMACells:
		return d.cells, d.cells
	case d.policy == api.NUMASingle, d.cpus > 0 && t.kubelet.Topology == api.TopologySingleNode:
		return 1, 1
	default:
		return 1, len(t.cells)
	}
}

// room is what VMs may take of each cell, in the order of the topology.
type room struct{ pages, cpus []int64 }

func newRoom(t *topology) room {
	return room{pages: make([]int64, len(t.cells)), cpus: make([]int64, len(t.cells))}
}

func (r room) add(i int, pages, cpus int64) {
	r.pages[i] += pages
	r.cpus[i] += cpus
}

// fits says whether cell i has room for the part that is number at of n.
func (r room) fits(d demand, i, n, at int) bool {
	return (d.pages == 0 || r.pages[i] >= api.Portion(d.pages, n, at)) && (d.cpus == 0 || r.cpus[i] >= api.Portion(d.cpus, n, at))
}

// largeMachine is the number of cells from which not every combination is tried.
const largeMachine = 10

// choose returns the cells for a VM, as positions in the list: the fewest that suffice; of those the set that is left
// least ragged, then the closest together, then the first (scheduling.md SC-044, SC-045, SC-056). Nil: none suffice.
// Where the kubelet's topology manager gives out CPUs it takes the first cells that do, and so does this.
func choose(d demand, t *topology, free room) []int {
	least, most := d.counts(t)
	for n := least; n <= most && n <= len(t.cells); n++ {
		if best := chooseOf(d, t, free, n); best != nil {
			return best
		}
	}
	return nil
}

// chooseOf is choose for exactly n cells.
func chooseOf(d demand, t *topology, free room, n int) []int {
	var fit []int
	for i, c := range t.cells {
		if c.cpus && free.fits(d, i, n, n-1) {
			fit = append(fit, i)
		}
	}
	if len(t.cells) > largeMachine {
		slices.SortStableFunc(fit, func(a, b int) int { return costOf(d, t, free, []int{a}).compare(costOf(d, t, free, []int{b})) })
		if len(fit) > n {
			fit = fit[:n]
		}
		slices.Sort(fit)
	}
	var best []int
	var bestCost cost
	combinations(fit, n, func(set []int) {
		if !suffices(d, free, set) {
			return
		}
		if c := costOf(d, t, free, set); best == nil || c.compare(bestCost) < 0 {
			best, bestCost = slices.Clone(set), c
		}
	})
	return best
}

// suffices looks at each part: the first cells may get one page or CPU more.
func suffices(d demand, free room, set []int) bool {
	for at, i := range set {
		if !free.fits(d, i, len(set), at) {
			return false
		}
	}
	return true
}

// cost orders sets of cells of one size.
type cost struct {
	pages, cpus int64 // before the VM; what is left differs by a constant
	distance    int
}

func (c cost) compare(other cost) int {
	return cmp.Or(cmp.Compare(c.pages, other.pages), cmp.Compare(c.cpus, other.cpus), cmp.Compare(c.distance, other.distance))
}

func costOf(d demand, t *topology, free room, set []int) cost {
	var c cost
	if d.cpus > 0 && t.aligns() {
		return c
	}
	for at, i := range set {
		if d.pages > 0 {
			c.pages += free.pages[i]
		}
		if d.cpus > 0 {
			c.cpus += free.cpus[i]
		}
		for _, j := range set[:at] {
			c.distance += t.distance(i, j)
		}
	}
	return c
}

// combinations calls f with every choice of n elements, in lexical order. The slice is used again.
func combinations(of []int, n int, f func([]int)) {
	set := make([]int, 0, n)
	var extend func(from int)
	extend = func(from int) {
		if len(set) == n {
			f(set)
			return
		}
		for i := from; i <= len(of)-(n-len(set)); i++ {
			set = append(set, of[i])
			extend(i + 1)
			set = set[:len(set)-1]
		}
	}
	extend(0)
}
