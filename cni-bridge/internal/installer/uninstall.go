package installer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"podvirt.dev/api"
	"podvirt.dev/cni-bridge/internal/journal"
)

// ErrInUse says that VM Pods of this node have their network from the plugin.
var ErrInUse = errors.New("VM Pods run on this node")

// Uninstalled says what an uninstallation did.
type Uninstalled struct {
	Removed []string // paths
	Kept    []string // lines about what is left, and why
}

// Uninstall takes the configuration away, then the binary. While VM Pods run it refuses with [ErrInUse]; forced, it
// leaves the binary and the journal, so that their DEL still works where a meta plugin calls it by cached configuration.
func Uninstall(o Options, force bool) (Uninstalled, error) {
	var done Uninstalled
	entries, err := journal.New(o.StateDir).All()
	if err != nil {
		return done, err
	}
	networks, err := journal.Networks(o.StateDir).All()
	if err != nil {
		return done, err
	}
	entries = append(entries, networks...)
	if len(entries) > 0 && !force {
		first := entries[0]
		return done, fmt.Errorf("%w: %s/%s and %d more; --force leaves them running", ErrInUse, first.Namespace, first.Pod, len(entries)-1)
	}
	removed, err := Remove(o.ConfDir)
	for _, name := range removed {
		done.Removed = append(done.Removed, filepath.Join(o.ConfDir, name))
	}
	if err != nil {
		return done, err
	}
	if len(entries) > 0 {
		done.Kept = append(done.Kept, fmt.Sprintf("%s and %s: %d VM Pods still run; run this again when they are gone",
			filepath.Join(o.BinDir, api.CNIType), o.StateDir, len(entries)))
		return done, nil
	}
	links, err := linkNames(o.BinDir, nil)
	done.Removed = append(done.Removed, links...)
	if err != nil {
		return done, err
	}
	binary := filepath.Join(o.BinDir, api.CNIType)
	if err := os.Remove(binary); err == nil {
		done.Removed = append(done.Removed, binary)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return done, fmt.Errorf("removing the plugin: %w", err)
	}
	if err := os.RemoveAll(o.StateDir); err != nil {
		return done, fmt.Errorf("removing the state: %w", err)
	}
	return done, nil
}
