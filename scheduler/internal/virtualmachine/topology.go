package virtualmachine

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/internal/sysfs"
)

// topology are the NUMA cells of one Node as its annotation has them.
type topology struct {
	err      error // why they cannot be read; nothing else is set then
	boot     string
	observed time.Time
	kubelet  api.Kubelet // empty: not known
	threads  int         // of a core
	cells    []cell
}

// cell is one NUMA cell.
type cell struct {
	id        int
	cpus      bool  // it has CPUs; a cell of memory alone takes no VM
	whole     int64 // CPUs that containers may have for themselves
	exclusive int64 // those that containers have
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
	t := &topology{boot: numa.Boot, observed: numa.Observed, threads: max(1, numa.ThreadsPerCore)}
	if numa.Kubelet != nil {
		t.kubelet = *numa.Kubelet
	}
	for _, c := range numa.Cells {
		all, err1 := sysfs.ParseList(c.CPUs)
		reserved, err2 := sysfs.ParseList(c.Reserved)
		exclusive, err3 := sysfs.ParseList(c.Exclusive)
		if err := errors.Join(err1, err2, err3); err != nil {
			return &topology{err: fmt.Errorf("%w: annotation %s: cell %d: %w", api.ErrFacts, api.NodeNUMA, c.ID, err)}
		}
		t.cells = append(t.cells, cell{
			id: c.ID, cpus: c.CPUs != "", whole: int64(len(all) - len(reserved)), exclusive: int64(len(exclusive)),
			pages: c.Hugepages, distances: c.Distances,
		})
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

// empty is the room that would be if no Pod had anything of the cells.
func (t *topology) empty(size string) room {
	r := room{pages: t.total(size), cpus: make([]int64, len(t.cells))}
	for i, c := range t.cells {
		r.cpus[i] = t.usable(c.whole)
	}
	return r
}

// usable is how many of so many free CPUs the kubelet gives out: only whole cores, if it is told so.
func (t *topology) usable(cpus int64) int64 {
	if slices.Contains(t.kubelet.CPUOptions, api.FullPhysicalCPUsOnly) {
		return cpus - cpus%int64(t.threads)
	}
	return cpus
}

// aligns says whether the kubelet's topology manager chooses the cells of containers with CPUs of their own.
func (t *topology) aligns() bool {
	return !slices.Contains([]string{"", api.TopologyNone}, t.kubelet.Topology)
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
