package rootfs_test

import (
	"os"
	"path/filepath"
	"testing"

	"podvirt.dev/images/internal/rootfs"
)

func key(t *testing.T, r rootfs.Recipe) string {
	t.Helper()
	k, err := r.Key()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeyFollowsTheRecipe(t *testing.T) {
	base := key(t, rootfs.Recipe{Name: "x", Suite: "trixie", Packages: []string{"a"}})
	if key(t, rootfs.Recipe{Name: "x", Suite: "trixie", Packages: []string{"a"}}) != base {
		t.Error("equal recipes have different keys")
	}
	others := map[string]rootfs.Recipe{
		"package": {Name: "x", Suite: "trixie", Packages: []string{"b"}},
		"purge":   {Name: "x", Suite: "trixie", Packages: []string{"a"}, Purge: []string{"c"}},
		"script":  {Name: "x", Suite: "trixie", Packages: []string{"a"}, Finish: "true"},
	}
	for what, other := range others {
		if key(t, other) == base {
			t.Errorf("another %s has the same key", what)
		}
	}
}

// TestKeyFollowsTheOverlay and not its place: two checkouts share what they build.
func TestKeyFollowsTheOverlay(t *testing.T) {
	overlay := func(content string) rootfs.Recipe {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return rootfs.Recipe{Name: "x", Overlay: dir}
	}
	first, again := key(t, overlay("one")), key(t, overlay("one"))
	if first != again {
		t.Error("equal overlays in two places have different keys")
	}
	if key(t, overlay("one")) == key(t, overlay("two")) {
		t.Error("different overlays have the same key")
	}
}
