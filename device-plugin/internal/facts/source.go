package facts

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"
)

// BootID returns the id of this boot from procfs, mounted at proc.
func BootID(proc string) (string, error) {
	id, err := os.ReadFile(filepath.Join(proc, "sys/kernel/random/boot_id"))
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// Follow reads the files in dir and reads them again whenever one was replaced, until ctx ends.
func Follow(ctx context.Context, dir, boot string, set func(Snapshot)) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching facts: %w", err)
	}
	defer watcher.Close()
	if err := watcher.Add(dir); err != nil {
		return fmt.Errorf("watching facts in %s: %w", dir, err)
	}
	for {
		set(Read(dir, boot))
		if !awaitFile(ctx, watcher) {
			return nil
		}
	}
}

// awaitFile returns true when one of the files changed, false when ctx ended.
func awaitFile(ctx context.Context, watcher *fsnotify.Watcher) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case err := <-watcher.Errors:
			klog.FromContext(ctx).Info("Watching facts", "err", err)
			return true
		case event := <-watcher.Events:
			if name := filepath.Base(event.Name); name == CPUFile || name == NUMAFile {
				return true
			}
		}
	}
}
