package libvirt

import (
	"sync"
	"time"

	"podvirt.dev/launcher/internal/virt"
)

// queue hands events from libvirt's event loop, which must never wait, to a reader that may be slow. It has no bound:
// a lost "stopped" would leave the Pod of a dead VM running for ever, and a guest causes at most a few events a second.
type queue struct {
	out chan virt.Event

	mu      sync.Mutex
	waiting []virt.Event
	closed  bool
	wake    chan struct{}
}

func newQueue() *queue {
	q := &queue{out: make(chan virt.Event), wake: make(chan struct{}, 1)}
	go q.pump()
	return q
}

func (q *queue) put(e virt.Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	q.mu.Lock()
	q.waiting = append(q.waiting, e)
	q.mu.Unlock()
	q.signal()
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.signal()
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// pump ends, and closes out, when the queue is closed; what was not read by then is dropped.
func (q *queue) pump() {
	defer close(q.out)
	for range q.wake {
		for {
			q.mu.Lock()
			closed, batch := q.closed, q.waiting
			q.waiting = nil
			q.mu.Unlock()
			if closed {
				return
			}
			if len(batch) == 0 {
				break
			}
			if !q.deliver(batch) {
				return
			}
		}
	}
}

func (q *queue) deliver(batch []virt.Event) bool {
	for _, e := range batch {
		for sent := false; !sent; {
			select {
			case q.out <- e:
				sent = true
			case <-q.wake:
				q.mu.Lock()
				closed := q.closed
				q.mu.Unlock()
				if closed {
					return false
				}
			}
		}
	}
	return true
}
