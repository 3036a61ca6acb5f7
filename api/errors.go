package api

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Error is one mistake in what a user wrote: a line that names the key, the value, what is allowed and the nearest
// valid word (vm.md 2.1).
type Error struct {
	// Key is what the line is sorted by: the full annotation key, the mount path or the configuration key.
	Key string
	// Text is the whole line.
	Text string
}

// Error returns the line.
func (e Error) Error() string { return e.Text }

// Errors are all mistakes of one object, sorted by key. No mistake is nil.
type Errors []Error

// Error returns one line per mistake.
func (e Errors) Error() string { return e.join("\n") }

// Err returns e as an error, or nil where there is no mistake.
func (e Errors) Err() error {
	if len(e) == 0 {
		return nil
	}
	return e
}

// Join returns the mistakes of both, sorted.
func (e Errors) Join(more Errors) Errors { return slices.Concat(e, more).sorted() }

// sorted returns the mistakes by key and text, each line once.
func (e Errors) sorted() Errors {
	slices.SortFunc(e, func(a, b Error) int {
		return cmp.Or(strings.Compare(a.Key, b.Key), strings.Compare(a.Text, b.Text))
	})
	return slices.Compact(e)
}

// TerminationMessage returns the text of a container that ends with [ReasonBadConfig]: the reason and as many whole
// lines as fit in limit bytes (Kubernetes keeps 4096), then how many were left out and the command that shows them.
func (e Errors) TerminationMessage(pod string, limit int) string {
	var b strings.Builder
	b.WriteString(string(ReasonBadConfig) + ": ")
	for i, err := range e {
		line := err.Text
		if i > 0 {
			line = "\n" + line
		}
		room := limit
		if i+1 < len(e) {
			room -= len(leftOut(len(e)-i-1, pod))
		}
		if b.Len()+len(line) > room {
			b.WriteString(leftOut(len(e)-i, pod))
			break
		}
		b.WriteString(line)
	}
	return b.String()
}

func leftOut(n int, pod string) string {
	return fmt.Sprintf("\nand %d more: kubectl logs %s -c %s", n, pod, ContainerName)
}

func (e Errors) join(separator string) string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = err.Text
	}
	return strings.Join(lines, separator)
}
