package virtualmachine

import (
	"slices"

	"podvirt.dev/api"
)

// demand is what a VM needs of NUMA cells.
type demand struct {
	size   string // of its huge pages; "": it needs none
	pages  int64  // in all
	policy api.NUMAPolicy
	cells  int // with policy [api.NUMACells]
}

// placed says whether cells are to be chosen for it.
func (d demand) placed() bool { return d.pages > 0 && d.policy != api.NUMANone }

// counts returns from how many to how many cells the VM may be spread over, fewest first.
func (d demand) counts(cells int) (least, most int) {
	switch d.policy {
	case api.NUMASingle:
		return 1, 1
	case api.NUMACells:
		return d.cells, d.cells
	default:
		return 1, cells
	}
}

// largeMachine is the number of cells from which not every combination is tried.
const largeMachine = 10

// choose returns the cells for a VM, as positions in the list: the fewest that suffice; of those the set that is left
// least ragged, then the closest together, then the first (scheduling.md SC-044, SC-045, SC-056). Nil: none suffice.
func choose(d demand, t *topology, free []int64) []int {
	least, most := d.counts(len(t.cells))
	for n := least; n <= most && n <= len(t.cells); n++ {
		if best := chooseOf(d, t, free, n); best != nil {
			return best
		}
	}
	return nil
}

// chooseOf is choose for exactly n cells.
func chooseOf(d demand, t *topology, free []int64, n int) []int {
	var fit []int
	for i, c := range t.cells {
		if c.cpus && free[i] >= api.Portion(d.pages, n, n-1) {
			fit = append(fit, i)
		}
	}
	if len(t.cells) > largeMachine {
		slices.SortStableFunc(fit, func(a, b int) int { return int(free[a] - free[b]) })
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
		if c := costOf(t, free, set); best == nil || c.less(bestCost) {
			best, bestCost = slices.Clone(set), c
		}
	})
	return best
}

// suffices looks at each part: the first cells may get one page more.
func suffices(d demand, free []int64, set []int) bool {
	for at, i := range set {
		if free[i] < api.Portion(d.pages, len(set), at) {
			return false
		}
	}
	return true
}

// cost orders sets of cells of one size.
type cost struct {
	free     int64 // before the VM; what is left differs by a constant
	distance int
}

func (c cost) less(other cost) bool {
	if c.free != other.free {
		return c.free < other.free
	}
	return c.distance < other.distance
}

func costOf(t *topology, free []int64, set []int) cost {
	var c cost
	for at, i := range set {
		c.free += free[i]
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
