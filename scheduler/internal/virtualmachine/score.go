package virtualmachine

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"

	"podvirt.dev/api"
)

// missingOptional outweighs every surplus: a node that has an optional feature comes before all that lack it
// (scheduling.md 2.4).
const missingOptional = 1 << 20

// largePages are those that a cluster has few of: they cannot be made once memory is in use.
const largePages = "1Gi"

// costs are what the parts of the score look at; less is better.
type costs struct {
	cpu  int64 // surplus of the CPU, or how many Nodes could not take the guest over
	left int64 // pages or CPUs left in the cells that the VM would get
}

// scoreState is what PreScore found out about all Nodes that fit.
type scoreState struct {
	parts     []part
	low, high costs
}

// Clone returns the state itself: it is read-only once written.
func (s *scoreState) Clone() fwk.StateData { return s }

// part is one part of the score of this VM: 0 to 100, better first, with its weight.
type part struct {
	weight int64
	of     func(info fwk.NodeInfo, c costs, s *scoreState) int64
}

const scoreKey = fwk.StateKey("PreScore" + Name)

// PreScore invoked at the prescore extension point: it looks at every Node that fits, so that Score can compare.
func (pl *Plugin) PreScore(_ context.Context, state fwk.CycleState, pod *corev1.Pod, nodes []fwk.NodeInfo) *fwk.Status {
	if !isVM(pod) {
		return fwk.NewStatus(fwk.Skip)
	}
	want, err := getRequest(state)
	if err != nil {
		return fwk.AsStatus(err)
	}
	s := &scoreState{parts: pl.parts(want)}
	if len(s.parts) == 0 || len(nodes) < 2 {
		return fwk.NewStatus(fwk.Skip)
	}
	for i, info := range nodes {
		c := pl.costs(want, info)
		if i == 0 {
			s.low, s.high = c, c
		}
		s.low = costs{min(s.low.cpu, c.cpu), min(s.low.left, c.left)}
		s.high = costs{max(s.high.cpu, c.cpu), max(s.high.left, c.left)}
	}
	state.Write(scoreKey, s)
	return nil
}

// Score invoked at the score extension point: the weighted mean of the parts that say anything about this VM.
func (pl *Plugin) Score(_ context.Context, state fwk.CycleState, _ *corev1.Pod, info fwk.NodeInfo) (int64, *fwk.Status) {
	want, err := getRequest(state)
	if err != nil {
		return 0, fwk.AsStatus(err)
	}
	data, err := state.Read(scoreKey)
	if err != nil {
		return 0, fwk.AsStatus(err)
	}
	s, ok := data.(*scoreState)
	if !ok {
		return 0, fwk.NewStatus(fwk.Error, "unexpected state of the score")
	}
	c := pl.costs(want, info)
	var sum, weights int64
	for _, p := range s.parts {
		sum += p.weight * p.of(info, c, s)
		weights += p.weight
	}
	return sum / weights, nil
}

// ScoreExtensions returns nil: the parts are normalized already.
func (pl *Plugin) ScoreExtensions() fwk.ScoreExtensions { return nil }

// parts are those that apply to a VM and have a weight.
func (pl *Plugin) parts(want *request) []part {
	var parts []part
	add := func(name string, of func(fwk.NodeInfo, costs, *scoreState) int64) {
		if weight := int64(pl.args.Score[name]); weight > 0 {
			parts = append(parts, part{weight, of})
		}
	}
	add(scoreCPUFit, func(_ fwk.NodeInfo, c costs, s *scoreState) int64 { return turned(c.cpu, s.low.cpu, s.high.cpu) })
	if want.cells.placed() {
		add(scoreCellPacking, func(_ fwk.NodeInfo, c costs, s *scoreState) int64 { return turned(c.left, s.low.left, s.high.left) })
	}
	if want.cells.size != largePages {
		add(scoreKeepLargePages, func(info fwk.NodeInfo, _ costs, _ *scoreState) int64 { return pl.withoutLargePages(info) })
	}
	return parts
}

// turned maps costs to scores: the lowest to the maximum, the highest to 0, equal ones to the maximum.
func turned(value, low, high int64) int64 {
	if low == high {
		return fwk.MaxScore
	}
	return fwk.MaxScore * (high - value) / (high - low)
}

func (pl *Plugin) costs(want *request, info fwk.NodeInfo) costs {
	have := pl.nodes.get(info.Node())
	c := costs{cpu: surplus(want, have)}
	if want.model == api.CPUHostModel && have != nil && have.err == nil {
		c.cpu -= pl.fleet.get().peers(have)
	}
	if t := pl.cells.get(info.Node()); want.cells.placed() && t != nil && t.err == nil {
		c.left = leftover(want.cells, t, pl.room(t, want.cells.size, info))
	}
	return c
}

// leftover is how many pages would be left in the cells that the VM would get, or CPUs if it needs those alone
// (scheduling.md SC-045).
func leftover(want demand, t *topology, free room) int64 {
	of, left := free.pages, -want.pages
	if want.pages == 0 {
		of, left = free.cpus, -want.cpus
	}
	for _, i := range choose(want, t, free) {
		left += of[i]
	}
	return left
}

// withoutLargePages keeps Nodes with a pool of large pages for VMs that ask for them (scheduling.md SC-061).
func (pl *Plugin) withoutLargePages(info fwk.NodeInfo) int64 {
	t := pl.cells.get(info.Node())
	if t != nil && t.pool(largePages) {
		return 0
	}
	return fwk.MaxScore
}

// surplus is how much more than the VM needs a node offers, counted in CPU features; lower is better (scheduling.md
// SC-077). For a VM that names no model every node has as much as another.
func surplus(want *request, have *facts) int64 {
	if have == nil || have.err != nil {
		return 0
	}
	var cost int64
	for _, feature := range want.features {
		if feature.Policy == api.FeatureOptional && !have.features.Has(feature.Name) {
			cost += missingOptional
		}
	}
	if want.named() {
		cost += int64(have.features.Len())
	}
	return cost
}
