// Package require states what a test needs. A skip is a claim that the machine lacks it; where the level of tests
// promises the feature, PODVIRT_REQUIRE=1 turns the claim into a failure.
package require

import (
	"os"
	"testing"
)

// Root skips a test that needs uid 0.
func Root(t testing.TB) {
	t.Helper()
	Feature(t, os.Getuid() == 0, "root")
}

// Feature skips the test unless the machine has the feature; with PODVIRT_REQUIRE=1 it fails instead.
func Feature(t testing.TB, has bool, feature string) {
	t.Helper()
	switch {
	case has:
	case os.Getenv("PODVIRT_REQUIRE") == "1":
		t.Fatalf("this level of tests promises what is missing here: %s", feature)
	default:
		t.Skipf("needs %s", feature)
	}
}
