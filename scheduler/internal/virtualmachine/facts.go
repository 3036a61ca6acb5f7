package virtualmachine

import (
	"maps"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/tools/cache"

	"podvirt.dev/api"
)

// facts are what one Node offers, ready to be asked.
type facts struct {
	raw      string // the annotation they were read from
	err      error  // why it cannot be read; nothing else is set then
	boot     string
	kind     api.Accelerator
	models   sets.Set[string]
	features sets.Set[string]
	maxVCPUs int
}

// readFacts reads the annotation of a Node; nil means that the Node has none.
func readFacts(node *corev1.Node) *facts {
	raw, ok := node.Annotations[api.NodeCPU]
	if !ok {
		return nil
	}
	cpu, err := api.DecodeCPUFacts(raw)
	if err != nil {
		return &facts{raw: raw, err: err}
	}
	return &facts{
		raw:      raw,
		boot:     cpu.Boot,
		kind:     cpu.Accelerator,
		models:   sets.New(cpu.Models...),
		features: sets.New(cpu.Features...),
		maxVCPUs: cpu.MaxVCPUs,
	}
}

// catalog remembers the facts of every Node, so that the annotation is parsed once per change and not once per Pod,
// and counts which names exist anywhere: the dictionary for spelling mistakes (SC-027).
type catalog struct {
	mu       sync.RWMutex
	nodes    map[string]*facts
	models   map[string]int // nodes that offer it
	features map[string]int
}

func newCatalog() *catalog {
	return &catalog{nodes: map[string]*facts{}, models: map[string]int{}, features: map[string]int{}}
}

// get returns the facts of a Node as the scheduler's snapshot has it, which may be older or newer than the last event.
func (c *catalog) get(node *corev1.Node) *facts {
	c.mu.RLock()
	known := c.nodes[node.Name]
	c.mu.RUnlock()
	if known != nil && known.raw == node.Annotations[api.NodeCPU] {
		return known
	}
	return readFacts(node)
}

// names returns the dictionaries of models and features, and how many Nodes have readable facts.
func (c *catalog) names() (models, features []string, nodes int) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, f := range c.nodes {
		if f.err == nil {
			nodes++
		}
	}
	return keys(c.models), keys(c.features), nodes
}

// offered says whether any Node offers the model and the feature.
func (c *catalog) offersModel(model string) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.models[model] > 0
}

func (c *catalog) offersFeature(feature string) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.features[feature] > 0
}

func (c *catalog) onUpdate(obj any) {
	node, ok := obj.(*corev1.Node)
	if !ok {
		return
	}
	c.mu.RLock()
	known := c.nodes[node.Name]
	c.mu.RUnlock()
	if known != nil && known.raw == node.Annotations[api.NodeCPU] {
		return
	}
	c.replace(node.Name, readFacts(node))
}

func (c *catalog) onDelete(obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	if node, ok := obj.(*corev1.Node); ok {
		c.replace(node.Name, nil)
	}
}

func (c *catalog) replace(name string, now *facts) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if before := c.nodes[name]; before != nil {
		count(c.models, before.models, -1)
		count(c.features, before.features, -1)
	}
	if now == nil {
		delete(c.nodes, name)
		return
	}
	c.nodes[name] = now
	count(c.models, now.models, 1)
	count(c.features, now.features, 1)
}

func count(counts map[string]int, names sets.Set[string], by int) {
	for name := range names {
		if counts[name] += by; counts[name] == 0 {
			delete(counts, name)
		}
	}
}

func keys(counts map[string]int) []string {
	list := make([]string, 0, len(counts))
	for name := range maps.Keys(counts) {
		list = append(list, name)
	}
	return list
}
