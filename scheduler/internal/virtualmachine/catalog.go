package virtualmachine

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
)

// catalog remembers what one annotation of every Node says, so that it is parsed once per change and not once per Pod.
type catalog[T any] struct {
	key  string              // of the annotation
	read func(raw string) *T // never returns nil

	mu      sync.RWMutex
	nodes   map[string]entry[T]
	changes int // how often anything was learned or forgotten
}

type entry[T any] struct {
	raw   string // the annotation as it was read
	value *T
}

func newCatalog[T any](key string, read func(string) *T) *catalog[T] {
	return &catalog[T]{key: key, read: read, nodes: map[string]entry[T]{}}
}

// get returns what a Node says as the scheduler's snapshot has it, which may be older or newer than the last event; nil
// means that the Node has no such annotation.
func (c *catalog[T]) get(node *corev1.Node) *T {
	raw, ok := node.Annotations[c.key]
	if !ok {
		return nil
	}
	if value := c.known(node.Name, raw); value != nil {
		return value
	}
	return c.read(raw)
}

// known returns the remembered value if it was read from this text.
func (c *catalog[T]) known(name, raw string) *T {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if e, ok := c.nodes[name]; ok && e.raw == raw {
		return e.value
	}
	return nil
}

// version changes whenever a Node says something new.
func (c *catalog[T]) version() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.changes
}

// each calls f with every known value.
func (c *catalog[T]) each(f func(*T)) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, e := range c.nodes {
		f(e.value)
	}
}

func (c *catalog[T]) onUpdate(obj any) {
	node, ok := obj.(*corev1.Node)
	if !ok {
		return
	}
	raw, has := node.Annotations[c.key]
	if !has {
		c.forget(node.Name)
		return
	}
	if c.known(node.Name, raw) != nil {
		return
	}
	value := c.read(raw)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[node.Name] = entry[T]{raw: raw, value: value}
	c.changes++
}

func (c *catalog[T]) onDelete(obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	if node, ok := obj.(*corev1.Node); ok {
		c.forget(node.Name)
	}
}

func (c *catalog[T]) forget(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.nodes[name]; known {
		delete(c.nodes, name)
		c.changes++
	}
}

// handler follows Nodes.
func (c *catalog[T]) handler() cache.ResourceEventHandlerFuncs {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    c.onUpdate,
		UpdateFunc: func(_, obj any) { c.onUpdate(obj) },
		DeleteFunc: c.onDelete,
	}
}
