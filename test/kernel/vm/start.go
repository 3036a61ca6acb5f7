package vm

import (
	"bytes"
	"sync"
	"testing"
)

// StartT starts a machine for a test. What the guest writes to its first serial port, which is the machine's own, goes to
// the test's log line by line. A test that fails says how the machine is run by hand; one that does not call Wait fails.
func StartT(t testing.TB, options ...Option) *Machine {
	t.Helper()
	log := &lineLogger{t: t}
	m, err := New(append([]Option{Serial(log)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !m.waited {
			t.Error("the machine was not waited for")
		}
		if t.Failed() {
			t.Logf("to run the machine by hand: %s", m.CommandLine())
		}
	})
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

// lineLogger writes whole lines to the log of a test.
type lineLogger struct {
	t    testing.TB
	mu   sync.Mutex
	rest []byte
}

// Write implements io.Writer.
func (l *lineLogger) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		line, rest, found := bytes.Cut(l.rest, []byte("\n"))
		if !found {
			return len(p), nil
		}
		l.t.Logf("console: %s", bytes.TrimRight(line, "\r"))
		l.rest = rest
	}
}
