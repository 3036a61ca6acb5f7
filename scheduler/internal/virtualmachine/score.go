package virtualmachine

import (
	fwk "k8s.io/kube-scheduler/framework"

	"podvirt.dev/api"
)

// missingOptional outweighs every surplus: a node that has an optional feature comes before all that lack it
// (scheduling.md 2.4).
const missingOptional = 1 << 20

// surplus is how much more than the VM needs a node offers, counted in CPU features; lower is better. For a VM that
// names no model every node is as good as another.
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

// normalize maps costs to scores: the lowest to the maximum, the highest to 0, equal ones to the maximum.
func normalize(scores fwk.NodeScoreList) {
	if len(scores) == 0 {
		return
	}
	low, high := scores[0].Score, scores[0].Score
	for _, s := range scores {
		low, high = min(low, s.Score), max(high, s.Score)
	}
	for i := range scores {
		if low == high {
			scores[i].Score = fwk.MaxScore
			continue
		}
		scores[i].Score = fwk.MaxScore * (high - scores[i].Score) / (high - low)
	}
}
