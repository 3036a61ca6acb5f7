package virtualmachine

import (
	"math/rand/v2"
	"testing"

	"podvirt.dev/api"
)

// single is the demand of a VM that has to be in one cell.
func single(pages int64) demand { return demand{size: size, pages: pages, policy: api.NUMASingle} }

func emptyCells(n int, each int64) *topology {
	t := &topology{}
	for id := range n {
		t.cells = append(t.cells, cell{id: id, cpus: true, pages: map[string]api.Pages{size: {Total: each, Free: each}}})
	}
	return t
}

// TestPacking compares, on a thousand random mixes for one Node, the pages that are placed one VM after the other with
// those that a search over all assignments places, and with first fit (scheduling.md 4.12). Of VMs whose sizes are spread
// evenly from one page to a whole cell, nobody who must decide without knowing the next one places as much: the bound
// is lower there.
func TestPacking(t *testing.T) {
	usual := []int64{1, 2, 2, 3, 4, 4, 4, 6, 8, 8, 8, 12, 16, 16, 24, 32}
	for name, tt := range map[string]struct {
		size  func(random *rand.Rand, most int64) int64
		ratio float64
	}{
		"usual sizes": {func(random *rand.Rand, most int64) int64 { return min(most, usual[random.IntN(len(usual))]) }, 0.95},
		"any size":    {func(random *rand.Rand, most int64) int64 { return 1 + random.Int64N(most) }, 0.92},
	} {
		t.Run(name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(7, 11)) //nolint:gosec // the same mixes every time
			var placed, possible, firstFit int64
			for range 1000 {
				node := emptyCells(2+random.IntN(2), int64(16+random.IntN(49)))
				var vms []int64
				for range 4 + random.IntN(4) {
					vms = append(vms, tt.size(random, node.cells[0].pages[size].Total))
				}
				free := node.total(size)
				for _, pages := range vms {
					if best := choose(single(pages), node, room{pages: free}); best != nil {
						free[best[0]] -= pages
						placed += pages
					}
				}
				possible += exact(vms, node.total(size))
				firstFit += first(vms, node.total(size))
			}
			ratio := float64(placed) / float64(possible)
			t.Logf("%d pages placed, %d by search (%.3f), %d by first fit", placed, possible, ratio, firstFit)
			if ratio < tt.ratio || placed < firstFit {
				t.Errorf("placed %.3f of what is possible, %d by first fit; want at least %.2f, and not below first fit", ratio, firstFit, tt.ratio)
			}
		})
	}
}

// exact tries every assignment of VMs to cells.
func exact(vms, free []int64) int64 {
	if len(vms) == 0 {
		return 0
	}
	best := exact(vms[1:], free)
	tried := map[int64]bool{}
	for i := range free {
		if free[i] < vms[0] || tried[free[i]] {
			continue
		}
		tried[free[i]] = true
		free[i] -= vms[0]
		best = max(best, vms[0]+exact(vms[1:], free))
		free[i] += vms[0]
	}
	return best
}

func first(vms, free []int64) int64 {
	var sum int64
	for _, pages := range vms {
		for i := range free {
			if free[i] >= pages {
				free[i] -= pages
				sum += pages
				break
			}
		}
	}
	return sum
}

// packer chooses Node and cell for a VM among what is free; ok is false where it gives up.
type packer func(pages int64, free [][]int64) (node, cell int, ok bool)

const (
	simNodes = 100
	simPages = 64 // of 1Gi in each of two cells
	simWarm  = 10000
)

// byScore is what Filter, Score and Reserve do: the Node whose best cell is left with least, and that cell.
func byScore(topology *topology) packer {
	return func(pages int64, free [][]int64) (node, cell int, ok bool) {
		least := int64(1) << 62
		for n := range free {
			best := choose(single(pages), topology, room{pages: free[n]})
			if best == nil {
				continue
			}
			if left := leftover(single(pages), topology, room{pages: free[n]}); left < least {
				least, node, cell, ok = left, n, best[0], true
			}
		}
		return node, cell, ok
	}
}

func byFirstFit(pages int64, free [][]int64) (node, cell int, ok bool) {
	for n := range free {
		for c := range free[n] {
			if free[n][c] >= pages {
				return n, c, true
			}
		}
	}
	return 0, 0, false
}

// byDefault is kube-scheduler, which knows the pages of Nodes and not of cells and takes the Node with most of them; the
// kubelet takes the first cell that does, or refuses the Pod.
func byDefault(pages int64, free [][]int64) (node, cell int, ok bool) {
	most := int64(-1)
	for n := range free {
		if sum := free[n][0] + free[n][1]; sum > most {
			most, node = sum, n
		}
	}
	for c := range free[node] {
		if free[node][c] >= pages {
			return node, c, true
		}
	}
	return 0, 0, false
}

// arrival is a VM that comes and, in the first part of a trace, goes.
type arrival struct {
	pages int64
	stays int // arrivals
}

// trace has VMs of 1 to 48 pages, small ones more often, that stay for an exponentially distributed time.
func trace(random *rand.Rand) []arrival {
	sizes := []int64{1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 6, 6, 8, 8, 12, 16, 20, 24, 40, 48}
	list := make([]arrival, 2*simWarm)
	for i := range list {
		list[i].pages = sizes[random.IntN(len(sizes))]
		list[i].stays = 1 + int(random.ExpFloat64()*850) // about 0.7 of all pages are in use
	}
	return list
}

// play lets VMs come and go, then only come, until one is refused; it returns how many came in the second part, and the
// share of pages in use then.
func play(pack packer, arrivals []arrival) (count int, used float64, early int) {
	free := make([][]int64, simNodes)
	for n := range free {
		free[n] = []int64{simPages, simPages}
	}
	type leaving struct {
		node, cell int
		pages      int64
	}
	departures := map[int][]leaving{}
	for i, a := range arrivals {
		for _, gone := range departures[i] {
			free[gone.node][gone.cell] += gone.pages
		}
		delete(departures, i)
		node, cell, ok := pack(a.pages, free)
		switch {
		case ok:
			free[node][cell] -= a.pages
		case i >= simWarm:
			var left int64
			for n := range free {
				left += free[n][0] + free[n][1]
			}
			return i - simWarm, 1 - float64(left)/float64(simNodes*2*simPages), early
		default:
			early++
			continue
		}
		if end := i + a.stays; end < simWarm {
			departures[end] = append(departures[end], leaving{node, cell, a.pages})
		}
	}
	return len(arrivals) - simWarm, 1, early
}

// BenchmarkFragmentation prints how many VMs fit after a long time of coming and going, for three ways to place them.
func BenchmarkFragmentation(b *testing.B) {
	const traces = 10
	for _, way := range []struct {
		name string
		pack packer
	}{{"ours", byScore(emptyCells(2, simPages))}, {"first-fit", byFirstFit}, {"default", byDefault}} {
		b.Run(way.name, func(b *testing.B) {
			for b.Loop() {
				var count, early int
				var used float64
				for seed := range uint64(traces) {
					n, u, e := play(way.pack, trace(rand.New(rand.NewPCG(seed, 1)))) //nolint:gosec // the same traces every time
					count, used, early = count+n, used+u, early+e
				}
				b.ReportMetric(float64(count)/traces, "VMs")
				b.ReportMetric(100*used/traces, "%used")
				b.ReportMetric(float64(early)/traces, "refused-before")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}
