// Package latest holds a value of which only the newest state counts. Writers never wait, readers learn that there is
// something new without polling, and what nobody read in time is forgotten.
package latest

import "sync"

// Value is one such value; [New] makes it.
type Value[T any] struct {
	mu      sync.Mutex
	value   T
	changed chan struct{}
}

// New returns a value that holds v.
func New[T any](v T) *Value[T] {
	return &Value[T]{value: v, changed: make(chan struct{})}
}

// Set replaces the value and wakes all who wait.
func (v *Value[T]) Set(value T) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.value = value
	close(v.changed)
	v.changed = make(chan struct{})
}

// Get returns the value and a channel that is closed at the next Set.
func (v *Value[T]) Get() (T, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.value, v.changed
}
