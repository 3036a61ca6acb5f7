package reference

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestUpToDate: the pages in docs are those that the tables give.
func TestUpToDate(t *testing.T) {
	for path, want := range map[string]string{"annotations.md": Annotations(), "settings.md": Settings()} {
		got, err := os.ReadFile("../../../docs/" + path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("docs/%s: run go generate ./api/... (-want,+got):\n%s", path, diff)
		}
	}
}
