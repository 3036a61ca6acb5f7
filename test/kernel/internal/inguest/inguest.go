// Package inguest says whether a test runs in a guest of this level.
package inguest

import (
	"os"
	"testing"

	"podvirt.dev/internal/require"
)

// Must skips a test outside a guest of test/kernel: it would change the machine or needs hardware that only the guest has.
func Must(t testing.TB) {
	t.Helper()
	require.Feature(t, os.Getenv("PODVIRT_KERNEL_TEST") == "1", "a guest of test/kernel (make test-kernel)")
}
