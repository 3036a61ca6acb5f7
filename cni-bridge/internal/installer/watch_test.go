package installer

import (
	"testing"

	"github.com/fsnotify/fsnotify"
)

// watchRenames reports renames and removals directly in dir, which is what containerd's reload acts upon.
func watchRenames(t *testing.T, dir string) <-chan struct{} {
	t.Helper()
	watcher, err := fsnotify.NewWatcher()
	must(t, err)
	must(t, watcher.Add(dir))
	t.Cleanup(func() { _ = watcher.Close() })
	seen := make(chan struct{}, 16)
	go func() {
		for event := range watcher.Events {
			if event.Has(fsnotify.Rename) || event.Has(fsnotify.Remove) {
				seen <- struct{}{}
			}
		}
	}()
	return seen
}
