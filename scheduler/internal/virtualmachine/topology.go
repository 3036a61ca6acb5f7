package virtualmachine

import (
	"slices"
	"time"

	"podvirt.dev/api"
)

// topology are the NUMA cells of one Node as its annotation has them.
type topology struct {
	err      error // why they cannot be read; nothing else is set then
	boot     string
	observed time.Time
	cells    []cell
}

// cell is one NUMA cell.
type cell struct {
	id        int
	cpus      bool // it has CPUs; a cell of memory alone takes no VM
	pages     map[string]api.Pages
	distances []int
}

func readTopology(raw string) *topology {
	if len(raw) > maxAnnotation {
		return &topology{err: errTooLong}
	}
	numa, err := api.DecodeNUMAFacts(raw)
	if err != nil {
		return &topology{err: err}
	}
	t := &topology{boot: numa.Boot, observed: numa.Observed}
	for _, c := range numa.Cells {
		t.cells = append(t.cells, cell{id: c.ID, cpus: c.CPUs != "", pages: c.Hugepages, distances: c.Distances})
	}
	return t
}

func newTopologyCatalog() *catalog[topology] { return newCatalog(api.NodeNUMA, readTopology) }

// index returns where the cell of that number is in the list, or -1.
func (t *topology) index(id int) int {
	return slices.IndexFunc(t.cells, func(c cell) bool { return c.id == id })
}

// total returns the pages of a size in every cell, free or not.
func (t *topology) total(size string) []int64 {
	pages := make([]int64, len(t.cells))
	for i, c := range t.cells {
		pages[i] = c.pages[size].Total
	}
	return pages
}

// pool says whether any cell has pages of a size, free or not.
func (t *topology) pool(size string) bool {
	return slices.ContainsFunc(t.cells, func(c cell) bool { return c.pages[size].Total > 0 })
}

// distance is that of cell i to cell j, both as positions in the list.
func (t *topology) distance(i, j int) int {
	if j < len(t.cells[i].distances) {
		return t.cells[i].distances[j]
	}
	return 0
}
