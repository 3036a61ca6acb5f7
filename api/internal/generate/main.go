// Command generate writes what is derived from the tables of package api: the admission policies in manifests/admission
// and the reference pages in docs. "go generate ./api/..." runs it in folder api.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"podvirt.dev/api/internal/policy"
	"podvirt.dev/api/internal/reference"
)

func main() {
	if err := run(".."); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

// run writes all files below the root of the source tree.
func run(root string) error {
	files := map[string][]byte{
		"docs/annotations.md": []byte(reference.Annotations()),
		"docs/settings.md":    []byte(reference.Settings()),
	}
	for _, file := range policy.Files() {
		content, err := file.YAML()
		if err != nil {
			return err
		}
		files[filepath.Join("manifests/admission", file.Name)] = content
	}
	for path, content := range files {
		if err := os.WriteFile(filepath.Join(root, path), content, 0o644); err != nil { //nolint:gosec // source files are for all to read
			return fmt.Errorf("writing what is generated: %w", err)
		}
	}
	return nil
}
