package driver

import (
	"context"
	"slices"
	"sync"
)

// turns lets a bounded number of imports run: so many on the node, and so many of each namespace. Whose namespace has the
// fewest goes first, so that no tenant waits for another's queue (ST-060). The zero value is ready to use.
type turns struct {
	mu      sync.Mutex
	active  map[string]int // by namespace
	total   int
	waiting []*turn
}

// turn is one import's.
type turn struct {
	namespace           string
	onNode, ofNamespace int // how many may run
	granted             chan struct{}
	holds               bool
}

// enter waits until it is the turn of an import.
func (t *turns) enter(ctx context.Context, n *turn) error {
	t.mu.Lock()
	n.granted = make(chan struct{})
	t.waiting = append(t.waiting, n)
	t.grant()
	t.mu.Unlock()
	select {
	case <-n.granted:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting = slices.DeleteFunc(t.waiting, func(other *turn) bool { return other == n })
	t.release(n) // it may have been granted meanwhile
	return context.Cause(ctx)
}

// leave ends a turn; that of one who has none is no error.
func (t *turns) leave(n *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.release(n)
}

// retake gives a turn to an import that paused, even beyond the bounds: others began while it did.
func (t *turns) retake(n *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !n.holds {
		t.take(n)
	}
}

func (t *turns) take(n *turn) {
	if t.active == nil {
		t.active = map[string]int{}
	}
	n.holds = true
	t.active[n.namespace]++
	t.total++
}

func (t *turns) release(n *turn) {
	if !n.holds {
		return
	}
	n.holds = false
	t.total--
	if t.active[n.namespace]--; t.active[n.namespace] == 0 {
		delete(t.active, n.namespace)
	}
	t.grant()
}

// grant lets those go on for whom there is room.
func (t *turns) grant() {
	for {
		best := -1
		for i, n := range t.waiting {
			free := t.total < n.onNode && t.active[n.namespace] < n.ofNamespace
			if free && (best < 0 || t.active[n.namespace] < t.active[t.waiting[best].namespace]) {
				best = i
			}
		}
		if best < 0 {
			return
		}
		next := t.waiting[best]
		t.waiting = slices.Delete(t.waiting, best, best+1)
		t.take(next)
		close(next.granted)
	}
}
