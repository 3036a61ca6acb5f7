package driver

import (
	"context"
	"fmt"
	"sync"
)

// locks is one lock per key. The zero value is ready to use.
type locks struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when the holder is done
}

// lock waits for the key until ctx ends; then the error wraps errPending.
func (l *locks) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		wait := l.try(key)
		if wait == nil {
			return func() { l.release(key) }, nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %s: %w", errPending, key, ctx.Err())
		}
	}
}

// try takes the key, or returns what to wait for.
func (l *locks) try(key string) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if wait, taken := l.held[key]; taken {
		return wait
	}
	if l.held == nil {
		l.held = map[string]chan struct{}{}
	}
	l.held[key] = make(chan struct{})
	return nil
}

func (l *locks) release(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.held[key])
	delete(l.held, key)
}
