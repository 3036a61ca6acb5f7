package driver

import (
	"context"
	"errors"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestImportsWait: no more run at once than the settings allow, and one that waits can be cancelled (ST-060).
func TestImportsWait(t *testing.T) {
	var all turns
	one := func() *turn { return &turn{namespace: "shop", onNode: 2, ofNamespace: 2} }
	first := one()
	for _, n := range []*turn{first, one()} {
		if err := all.enter(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errClaimGone)
	if err := all.enter(ctx, one()); !errors.Is(err, errClaimGone) {
		t.Errorf("error = %v; want %v", err, errClaimGone)
	}
	entered := make(chan error, 1)
	go func() { entered <- all.enter(t.Context(), one()) }()
	select {
	case err := <-entered:
		t.Errorf("a third one runs: %v", err)
	default:
	}
	all.leave(first)
	all.leave(first) // again: it has none
	if err := <-entered; err != nil {
		t.Error(err)
	}
	if all.total != 2 || all.active["shop"] != 2 {
		t.Errorf("%d are counted, %v", all.total, all.active)
	}
}

// arrive lets an import of a namespace wait, or run; at most four on the node, two of a namespace.
func (t *turns) arrive(ctx context.Context, namespace string) (*turn, chan error) {
	n, done := &turn{namespace: namespace, onNode: 4, ofNamespace: 2}, make(chan error, 1)
	known := func() int {
		t.mu.Lock()
		defer t.mu.Unlock()
		return len(t.waiting) + t.total
	}
	before := known()
	go func() { done <- t.enter(ctx, n) }()
	for known() == before {
		runtime.Gosched()
	}
	return n, done
}

// expectActive compares how many run of each namespace.
func (t *turns) expectActive(tb testing.TB, want map[string]int) {
	tb.Helper()
	t.mu.Lock()
	defer t.mu.Unlock()
	total := 0
	for _, n := range want {
		total += n
	}
	if diff := cmp.Diff(want, t.active); diff != "" || t.total != total {
		tb.Errorf("%d run (-want,+got):\n%s", t.total, diff)
	}
}

// TestImportsAreFair: of twenty of one tenant two run, and the one of another does not wait for them; where the node is
// full, the tenant with the fewest is next (ST-060).
func TestImportsAreFair(t *testing.T) {
	var all turns
	var many []*turn
	for range 20 {
		n, _ := all.arrive(t.Context(), "many")
		many = append(many, n)
	}
	all.expectActive(t, map[string]int{"many": 2})
	_, _ = all.arrive(t.Context(), "one")
	_, _ = all.arrive(t.Context(), "other")
	_, _ = all.arrive(t.Context(), "other") // the node is full
	_, third := all.arrive(t.Context(), "new")
	all.expectActive(t, map[string]int{"many": 2, "one": 1, "other": 1})
	all.leave(many[0])
	if err := <-third; err != nil {
		t.Error(err)
	}
	all.expectActive(t, map[string]int{"many": 1, "one": 1, "other": 1, "new": 1})
	all.leave(many[1]) // now the many have none, and their next comes before the other's second
	all.expectActive(t, map[string]int{"many": 1, "one": 1, "other": 1, "new": 1})
	all.retake(many[1]) // one that paused does not wait again
	all.retake(many[1])
	all.expectActive(t, map[string]int{"many": 2, "one": 1, "other": 1, "new": 1})
}
