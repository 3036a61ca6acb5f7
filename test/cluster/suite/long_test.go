package suite

import (
	"os"
	"testing"
)

// thorough says whether there is time for what takes longer: the make targets that run such tests set the variable.
func thorough() bool { return os.Getenv("PODVIRT_LONG") != "" }

// long leaves a test to a make target: make test has no time for it.
func long(t *testing.T, target string) {
	t.Helper()
	if !thorough() {
		t.Skip("make " + target + " runs this")
	}
}
