// Package pace says when something may be done again that must not be done too often.
package pace

import "time"

// Window allows at most a number of doings within any span, and none within a gap after another. The zero Window allows
// nothing.
type Window struct {
	Most int
	Span time.Duration
	Gap  time.Duration
	done []time.Time // the last Most of them, oldest first
}

// Wait returns how long to wait until Done may be called; 0 where that is now.
func (w *Window) Wait(now time.Time) time.Duration {
	if len(w.done) == 0 {
		return 0
	}
	wait := w.done[len(w.done)-1].Add(w.Gap).Sub(now)
	if len(w.done) >= w.Most {
		wait = max(wait, w.done[len(w.done)-w.Most].Add(w.Span).Sub(now))
	}
	return max(0, wait)
}

// Done notes that it was done at a time. Times may not go back.
func (w *Window) Done(at time.Time) {
	w.done = append(w.done, at)
	if over := len(w.done) - w.Most; over > 0 {
		w.done = append(w.done[:0], w.done[over:]...)
	}
}
