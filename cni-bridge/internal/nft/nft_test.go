package nft

import (
	"errors"
	"os"
	"testing"
	"time"

	"podvirt.dev/internal/require"
)

// TestNothingWaitsForEver asks with a deadline that is over: a kernel that never answers looks the same.
func TestNothingWaitsForEver(t *testing.T) {
	require.Root(t)
	conn, err := open(-time.Second)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := conn.ListTables()
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("ListTables = %v; want a deadline", err)
		}
	case <-time.After(patience):
		t.Error("still waiting")
	}
}
