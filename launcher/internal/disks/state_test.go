package disks

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestLockState: the state is one Pod's at a time, and the next one has it as soon as the first has let go (VM-053).
func TestLockState(t *testing.T) {
	dir := t.TempDir()
	first, err := LockState(t.Context(), dir, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LockState(t.Context(), dir, time.Millisecond); !errors.Is(err, ErrStateInUse) || err.Error() != dir+": another Pod of this VM uses it" {
		t.Errorf("a second one: %v", err)
	}
	waiting := make(chan error, 1)
	go func() {
		second, err := LockState(t.Context(), dir, time.Minute)
		if err == nil {
			err = second.Close()
		}
		waiting <- err
	}()
	if err := errors.Join(first.Close(), <-waiting); err != nil {
		t.Error(err)
	}
}

// TestVariables: variables of another size are never replaced (VM-053).
func TestVariables(t *testing.T) {
	dir := t.TempDir()
	template, path := filepath.Join(dir, "template"), filepath.Join(dir, "nvram.fd")
	if err := os.WriteFile(template, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Variables(path, template); err != nil {
		t.Errorf("new ones: %v", err)
	}
	for size, want := range map[int]string{
		4096: "", 1000: path + ": 1000 bytes, and variables of this firmware have 4096: restore the file, or remove it to begin with new ones",
	} {
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		got := ""
		if err := Variables(path, template); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%d bytes: %q; want %q", size, got, want)
		}
	}
}
