package device

import (
	"maps"
	"slices"
	"sync"
)

// Board holds the last discovery. Readers get a channel that is closed at the next change of what they read, so nobody
// polls and nobody is told what did not change.
type Board struct {
	mu        sync.Mutex
	resources map[string]*entry
	names     chan struct{} // closed when a resource appears or goes
}

type entry struct {
	resource Resource
	changed  chan struct{}
}

// NewBoard returns an empty board.
func NewBoard() *Board {
	return &Board{resources: map[string]*entry{}, names: make(chan struct{})}
}

// Publish replaces what is on the board and returns the difference. Readers of an unchanged resource are not woken.
// The caller must not change the resources afterwards.
func (b *Board) Publish(resources []Resource) Changes {
	b.mu.Lock()
	defer b.mu.Unlock()
	after := byName(resources)
	changes := Diff(b.all(), resources)
	for _, name := range changes.Added {
		b.resources[name] = &entry{after[name], make(chan struct{})}
	}
	for _, name := range changes.Changed {
		e := b.resources[name]
		close(e.changed)
		*e = entry{after[name], make(chan struct{})}
	}
	for _, name := range changes.Removed {
		close(b.resources[name].changed)
		delete(b.resources, name)
	}
	if len(changes.Added)+len(changes.Removed) > 0 {
		close(b.names)
		b.names = make(chan struct{})
	}
	return changes
}

// Resource returns a resource and a channel that is closed when it changes or goes; false if it is not on the board.
func (b *Board) Resource(name string) (Resource, <-chan struct{}, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, ok := b.resources[name]
	if !ok {
		return Resource{}, nil, false
	}
	return e.resource, e.changed, true
}

// Names returns the names on the board, sorted, and a channel that is closed when one is added or removed.
func (b *Board) Names() ([]string, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Sorted(maps.Keys(b.resources)), b.names
}

// All returns every resource, sorted by name.
func (b *Board) All() []Resource {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all()
}

func (b *Board) all() []Resource {
	resources := make([]Resource, 0, len(b.resources))
	for _, name := range slices.Sorted(maps.Keys(b.resources)) {
		resources = append(resources, b.resources[name].resource)
	}
	return resources
}
