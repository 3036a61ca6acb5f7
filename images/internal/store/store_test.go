package store_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"podvirt.dev/images/internal/store"
)

func open(t *testing.T, o store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// writer is a build function that writes a text and counts how often it was called.
func writer(text string, calls *atomic.Int32) func(context.Context, string) error {
	return func(_ context.Context, path string) error {
		calls.Add(1)
		return os.WriteFile(path, []byte(text), 0o600)
	}
}

func TestEnsureBuildsOnceAndReplaces(t *testing.T) {
	s := open(t, store.Options{})
	var calls atomic.Int32
	for range 2 {
		if _, err := s.Ensure(t.Context(), store.Artefact{Base: "x", Key: "aaaa", Ext: ".tar"}, writer("old", &calls)); err != nil {
			t.Fatal(err)
		}
	}
	if calls.Load() != 1 {
		t.Errorf("built %d times; want once", calls.Load())
	}
	old := s.Path("x-aaaa.tar")
	if _, err := s.Ensure(t.Context(), store.Artefact{Base: "x", Key: "bbbb", Ext: ".tar"}, writer("new", &calls)); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(s.Path("x.tar")); err != nil || string(got) != "new" {
		t.Errorf("by its stable name: %q, %v; want the new one", got, err)
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old one: %v; want none", err)
	}
}

func TestEnsureLeavesNothingOfAFailedBuild(t *testing.T) {
	s := open(t, store.Options{})
	failed := errors.New("failed")
	_, err := s.Ensure(t.Context(), store.Artefact{Base: "x", Key: "aaaa"}, func(_ context.Context, path string) error {
		return errors.Join(os.MkdirAll(filepath.Join(path, "half"), 0o700), failed)
	})
	if !errors.Is(err, failed) {
		t.Fatalf("Ensure = %v; want %v", err, failed)
	}
	if left, err := filepath.Glob(s.Path("[^.]*")); err != nil || len(left) != 0 {
		t.Errorf("left = %v, %v; want nothing", left, err)
	}
}

func TestEnsureBuildsOnceForManyCallers(t *testing.T) {
	s := open(t, store.Options{})
	var calls atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := s.Ensure(t.Context(), store.Artefact{Base: "x", Key: "aaaa"}, writer("", &calls)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if calls.Load() != 1 {
		t.Errorf("built %d times; want once", calls.Load())
	}
}

func TestFreshBuildsAgainOnce(t *testing.T) {
	dir := t.TempDir()
	var calls atomic.Int32
	for _, fresh := range []bool{false, true} {
		s, err := store.Open(dir, store.Options{Fresh: fresh})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := s.Ensure(t.Context(), store.Artefact{Base: "x", Key: "aaaa"}, writer("", &calls)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if calls.Load() != 2 {
		t.Errorf("built %d times; want twice", calls.Load())
	}
}

func TestSumTreeSeesNamesModesAndContents(t *testing.T) {
	sum := func(name, content string, mode os.FileMode) string {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		got, err := store.SumTree(dir)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	base := sum("a", "x", 0o600)
	if sum("a", "x", 0o600) != base {
		t.Error("equal trees have different sums")
	}
	for what, other := range map[string]string{"name": sum("b", "x", 0o600), "content": sum("a", "y", 0o600), "mode": sum("a", "x", 0o700)} {
		if other == base {
			t.Errorf("another %s has the same sum", what)
		}
	}
}
