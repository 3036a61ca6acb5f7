package virtualmachine

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"podvirt.dev/api"
)

// fleet is what all Nodes together offer. It is made again when a Node's facts change, and holds one entry per kind of
// machine, not per Node.
type fleet struct {
	kinds    map[kind]*kindFacts
	maxVCPUs int // of any Node; 0: none says
}

// kind tells machines apart by what a CPU can be made of; lists are shared, so that equal ones are the same pointer.
type kind struct {
	accelerator      api.Accelerator
	model, adds      string
	models, features *words
}

type kindFacts struct {
	nodes int
	peers int // Nodes that can offer this kind's host model, its own included
}

func kindOf(f *facts) kind {
	return kind{accelerator: f.kind, model: f.model, adds: strings.Join(f.adds, " "), models: f.models, features: f.features}
}

// maxKinds bounds the comparison of every kind with every other. A fleet of more kinds is no fleet to migrate in: its
// nodes are all alike to a VM with the host's model.
const maxKinds = 256

func newFleet(nodes *catalog[facts]) *fleet {
	f := &fleet{kinds: map[kind]*kindFacts{}}
	nodes.each(func(have *facts) {
		if have.err != nil || have.kind == api.AcceleratorNone {
			return
		}
		f.maxVCPUs = max(f.maxVCPUs, have.maxVCPUs)
		k := kindOf(have)
		if f.kinds[k] == nil {
			f.kinds[k] = &kindFacts{}
		}
		f.kinds[k].nodes++
	})
	if len(f.kinds) > maxKinds {
		return f
	}
	for k, own := range f.kinds {
		for other, theirs := range f.kinds {
			if other.takesOver(k) {
				own.peers += theirs.nodes
			}
		}
	}
	return f
}

// takesOver says whether a machine of kind k can give a guest the CPU that host-model is on one of the other kind.
func (k kind) takesOver(other kind) bool {
	if k == other {
		return true
	}
	return k.accelerator == other.accelerator && k.models.Has(other.model) && k.features.HasAll(strings.Fields(other.adds)...)
}

// offers says whether any Node can give a guest the model.
func (f *fleet) offers(model string) bool {
	for k := range f.kinds {
		if k.models.Has(model) {
			return true
		}
	}
	return false
}

// nearest returns the model that a user may have meant, of all that are offered somewhere; "" for none.
func (f *fleet) nearest(model string) string {
	all := map[string]bool{}
	for k := range f.kinds {
		for offered := range k.models.Set {
			all[offered] = true
		}
	}
	offered := slices.Sorted(maps.Keys(all))
	if near := api.Nearest(model, offered); near != "" {
		return near
	}
	family, _, _ := strings.Cut(model, "-") // Haswell-noTSX-v3 is no typing error of Haswell, and yet the next best
	if i := slices.IndexFunc(offered, func(o string) bool { return o == family || strings.HasPrefix(o, family+"-") }); i >= 0 {
		return offered[i]
	}
	return ""
}

// peers is how many Nodes could take over a guest with the host's model from a Node.
func (f *fleet) peers(have *facts) int64 {
	if own := f.kinds[kindOf(have)]; own != nil {
		return int64(own.peers)
	}
	return 0
}

// fleetSource makes the fleet when it is asked for and a Node has changed.
type fleetSource struct {
	nodes *catalog[facts]

	mu      sync.Mutex
	version int
	current *fleet
}

func (s *fleetSource) get() *fleet {
	version := s.nodes.version()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil || s.version != version {
		s.current, s.version = newFleet(s.nodes), version
	}
	return s.current
}
