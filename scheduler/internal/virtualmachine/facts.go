package virtualmachine

import (
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

// catalog remembers the facts of every Node, so that the annotation is parsed once per change and not once per Pod.
type catalog struct {
	mu    sync.RWMutex
	nodes map[string]*facts
}

func newCatalog() *catalog { return &catalog{nodes: map[string]*facts{}} }

// get returns the facts of a Node as the scheduler's snapshot has it, which may be older or newer than the last event.
func (c *catalog) get(node *corev1.Node) *facts {
	if known := c.known(node); known != nil {
		return known
	}
	return readFacts(node)
}

// known returns the remembered facts if they were read from the annotation that this Node has.
func (c *catalog) known(node *corev1.Node) *facts {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if f := c.nodes[node.Name]; f != nil && f.raw == node.Annotations[api.NodeCPU] {
		return f
	}
	return nil
}

func (c *catalog) onUpdate(obj any) {
	node, ok := obj.(*corev1.Node)
	if !ok || c.known(node) != nil {
		return
	}
	now := readFacts(node)
	c.mu.Lock()
	defer c.mu.Unlock()
	if now == nil {
		delete(c.nodes, node.Name)
		return
	}
	c.nodes[node.Name] = now
}

func (c *catalog) onDelete(obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	if node, ok := obj.(*corev1.Node); ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.nodes, node.Name)
	}
}
