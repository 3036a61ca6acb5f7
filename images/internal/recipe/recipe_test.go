package recipe_test

import (
	"path"
	"testing"

	"podvirt.dev/images/internal/recipe"
)

// TestTable checks what the builder relies on.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, image := range recipe.All() {
		if seen[image.Name] {
			t.Errorf("two images are called %s", image.Name)
		}
		seen[image.Name] = true
		if image.Root == nil && len(image.Files) == 0 {
			t.Errorf("image %s has nothing in it", image.Name)
		}
		for _, file := range image.Files {
			kinds := 0
			for _, is := range []bool{file.Program != nil, file.Disk != "", file.Dir, file.Link != ""} {
				if is {
					kinds++
				}
			}
			if kinds != 1 || !path.IsAbs(file.Path) {
				t.Errorf("image %s: %+v: want an absolute path and one kind", image.Name, file)
			}
		}
		if found, ok := recipe.Find(image.Name); !ok || found.Ref() != "localhost/podvirt/"+image.Name+":dev" {
			t.Errorf("Find(%s) = %v, %v", image.Name, found.Ref(), ok)
		}
	}
}
