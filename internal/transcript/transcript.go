// Package transcript keeps what programs and guests write while tests read it and wait for more.
package transcript

import (
	"bytes"
	"sync"
)

// Transcript is an [io.Writer] for any number of goroutines. Its zero value is empty.
type Transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{} // closed by the next Write; nil while nobody waits
}

// Write appends p. It never fails.
func (t *Transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.more != nil {
		close(t.more)
		t.more = nil
	}
	return t.text.Write(p)
}

// String returns all that was written.
func (t *Transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

// Follow returns all that was written, and a channel that the next Write closes.
func (t *Transcript) Follow() (text string, more <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.more == nil {
		t.more = make(chan struct{})
	}
	return t.text.String(), t.more
}
