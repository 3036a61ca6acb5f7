package installer

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"

	"podvirt.dev/internal/atomicfile"
)

// Apply writes what differs and returns the paths it changed; where it changed any, the runtime is made to reload.
func Apply(dir string, plan Plan) ([]string, error) {
	var changed []string
	names := make([]string, 0, len(plan.Write))
	for name := range plan.Write {
		names = append(names, name)
	}
	// A kept original is written before the file it is of.
	sort.Slice(names, func(i, j int) bool { return len(names[i]) > len(names[j]) })
	for _, name := range names {
		wrote, err := replace(filepath.Join(dir, name), plan.Write[name])
		if err != nil {
			return changed, err
		}
		if wrote {
			changed = append(changed, name)
		}
	}
	for _, name := range plan.Remove {
		if err := removeFile(dir, name); err != nil {
			return changed, err
		}
		changed = append(changed, name)
	}
	if len(changed) == 0 {
		return nil, nil
	}
	return changed, reload(dir)
}

func replace(path string, content []byte) (bool, error) {
	now, err := os.ReadFile(path)
	if err == nil && bytes.Equal(now, content) {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, fmt.Errorf("making the drop-in directory: %w", err)
	}
	return true, atomicfile.Write(path, content, 0o600)
}

// removeFile takes a file of ours away, and the drop-in directory with it where it is empty then.
func removeFile(dir, name string) error {
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing our configuration: %w", err)
	}
	if parent := filepath.Dir(name); parent != "." {
		_ = os.Remove(filepath.Join(dir, parent)) // fails where somebody else has a drop-in there, too
	}
	return nil
}

// reload makes the runtime read its configuration again: it watches the directory itself for renames and removals, and
// a drop-in is one level below.
func reload(dir string) error {
	from, to := filepath.Join(dir, ".podvirt-reload"), filepath.Join(dir, ".podvirt-reloaded")
	if err := os.WriteFile(from, nil, 0o600); err != nil {
		return fmt.Errorf("making the runtime reload: %w", err)
	}
	if err := errors.Join(os.Rename(from, to), os.Remove(to)); err != nil {
		return fmt.Errorf("making the runtime reload: %w", err)
	}
	return nil
}

// Remove takes everything of ours out of the configuration directory: drop-ins, the wrap, entries in lists. An edited
// list gets its original back byte for byte where nobody changed it since, else it only loses our entry.
func Remove(dir string) ([]string, error) {
	plan := Plan{Write: map[string][]byte{}}
	ours, err := ourFiles(dir)
	if err != nil {
		return nil, err
	}
	plan.Remove = ours
	lists, err := filepath.Glob(filepath.Join(dir, "*.conflist"))
	if err != nil {
		return nil, fmt.Errorf("looking for lists: %w", err)
	}
	for _, path := range lists {
		name := filepath.Base(path)
		list, data, err := readConf(dir, name)
		if name == wrapName || err != nil || !list.hasUs() {
			continue // not ours, or not even JSON
		}
		without, err := withStage(data, nil)
		if err != nil {
			return nil, err
		}
		plan.Write[name] = original(path+origSuffix, without)
	}
	originals, err := filepath.Glob(filepath.Join(dir, "*"+origSuffix))
	if err != nil {
		return nil, fmt.Errorf("looking for kept originals: %w", err)
	}
	for _, path := range originals {
		plan.Remove = append(plan.Remove, filepath.Base(path))
	}
	return Apply(dir, plan)
}

// original returns the kept file where it says the same as the list without us.
func original(path string, without []byte) []byte {
	kept, err := os.ReadFile(path)
	if err != nil {
		return without
	}
	same, err := withStage(kept, nil)
	if err != nil || !bytes.Equal(same, without) {
		return without
	}
	return kept
}
