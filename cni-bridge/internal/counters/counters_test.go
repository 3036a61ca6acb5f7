package counters

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestCallsAreSummed adds from many sides at once, as plugins of a busy node do.
func TestCallsAreSummed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if c, err := Read(dir); err != nil || len(c.Operations) != 0 {
		t.Fatalf("Read of nothing = %+v, %v", c, err)
	}
	add, refused := Operation{"ADD", "pod", 0}, Operation{"ADD", "pod", 100}
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for range 10 {
				if err := Add(dir, add, 20*time.Millisecond); err != nil {
					t.Error(err)
				}
			}
			if err := Add(dir, refused, 2*time.Second); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if err := AddLeaks(dir, 3); err != nil {
		t.Fatal(err)
	}
	got, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if n, m := got.operation(add).N, got.operation(refused).N; n != 80 || m != 8 || got.Leaks != 3 {
		t.Errorf("%d good, %d refused, %d leaks; want 80, 8, 3", n, m, got.Leaks)
	}
	if diff := cmp.Diff([bounds]uint64{0, 0, 80, 80, 80, 80, 80, 80, 88, 88}, got.Seconds["ADD"].Below); diff != "" {
		t.Errorf("buckets (-want,+got)\n%s", diff)
	}
}

func TestBrokenFileCountsAnew(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, file), []byte(`{"Operations":[{"Verb":"ADD"`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Add(dir, Operation{Verb: "DEL"}, 0); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(dir); err != nil || len(got.Operations) != 1 || got.Operations[0].N != 1 {
		t.Errorf("Read = %+v, %v; want one DEL", got, err)
	}
}
