package installer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"podvirt.dev/api"
)

// linkNames makes the binary callable under these names and under no others (network.compat-names): networks of another
// product work as they are. It returns the paths that it changed. A program of somebody else is left alone.
func linkNames(dir string, names []string) (changed []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("further names of the plugin: %w", err)
	}
	there := map[string]bool{} // by name; true: a link of ours
	for _, entry := range entries {
		target, _ := os.Readlink(filepath.Join(dir, entry.Name())) // empty for all but links
		there[entry.Name()] = target == api.CNIType
	}
	for name, ours := range there {
		if !ours || slices.Contains(names, name) {
			continue
		}
		path := filepath.Join(dir, name)
		if removeErr := os.Remove(path); removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("further names of the plugin: %w", removeErr))
			continue
		}
		changed = append(changed, path)
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		ours, taken := there[name]
		switch {
		case ours, name == api.CNIType:
		case taken:
			err = errors.Join(err, fmt.Errorf("network.compat-names: %s is there already and is not ours", path))
		default:
			if linkErr := os.Symlink(api.CNIType, path); linkErr != nil {
				err = errors.Join(err, fmt.Errorf("further names of the plugin: %w", linkErr))
				continue
			}
			changed = append(changed, path)
		}
	}
	slices.Sort(changed)
	return changed, err
}
