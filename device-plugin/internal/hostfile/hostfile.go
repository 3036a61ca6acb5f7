// Package hostfile keeps files of the host as they should be: it writes them, renamed into place, and puts back what
// somebody removed or changed.
package hostfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"

	"podvirt.dev/internal/atomicfile"
)

// retryInterval is the time between two attempts after a file could not be written.
const retryInterval = 30 * time.Second

// File is one file of the host.
type File struct {
	Path    string
	Content []byte
	Mode    fs.FileMode
}

// Keeper holds a set of files in place.
type Keeper struct {
	mu    sync.Mutex
	files []File
	dirs  []string
}

// NewKeeper returns a keeper of the files; it touches nothing yet.
func NewKeeper(files []File) *Keeper {
	seen := map[string]bool{}
	k := &Keeper{files: slices.Clone(files)}
	for _, f := range files {
		if dir := filepath.Dir(f.Path); !seen[dir] {
			seen[dir] = true
			k.dirs = append(k.dirs, dir)
		}
	}
	return k
}

// Put makes a file one of those that are held, or changes its content, and writes it at once. Its directory must be one
// of another file's.
func (k *Keeper) Put(file File) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.files = append(k.without(file.Path), file)
	return file.restore()
}

// Drop removes a file and holds it no more.
func (k *Keeper) Drop(path string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.files = k.without(path)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (k *Keeper) without(path string) []File {
	return slices.DeleteFunc(slices.Clone(k.files), func(f File) bool { return f.Path == path })
}

// Restore writes the files that differ and makes missing directories. It goes on after a file that cannot be written
// and returns all errors.
func (k *Keeper) Restore() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	for _, f := range k.files {
		errs = append(errs, f.restore())
	}
	return errors.Join(errs...)
}

// Run puts files back within a second until ctx ends. report hears the result of every restoration, nil when all files
// are in place. Run returns an error only when the kernel gives it no watch.
func (k *Keeper) Run(ctx context.Context, report func(error)) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching host files: %w", err)
	}
	defer watcher.Close()
	retry := time.NewTicker(retryInterval)
	defer retry.Stop()
	for {
		err := k.Restore()
		for _, dir := range k.dirs {
			err = errors.Join(err, watcher.Add(dir)) // again after each round: a directory may have been replaced
		}
		report(err)
		if err := k.awaitChange(ctx, watcher, retry.C); err != nil {
			return nil // the context ended, which is how Run is stopped
		}
	}
}

// awaitChange returns when one of the files may have changed, or the context's error.
func (k *Keeper) awaitChange(ctx context.Context, watcher *fsnotify.Watcher, retry <-chan time.Time) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-retry:
			return nil
		case err := <-watcher.Errors:
			klog.FromContext(ctx).Info("Watching host files", "err", err)
			return nil
		case event := <-watcher.Events:
			if k.concerns(event.Name) {
				return nil
			}
		}
	}
}

func (k *Keeper) concerns(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.files {
		if f.Path == name || filepath.Dir(f.Path) == name {
			return true
		}
	}
	return false
}

// restore replaces the file unless content and mode are right.
func (f File) restore() error {
	if info, err := os.Lstat(f.Path); err == nil && info.Mode() == f.Mode {
		if content, err := os.ReadFile(f.Path); err == nil && bytes.Equal(content, f.Content) {
			return nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(f.Path), 0o755); err != nil {
		return fmt.Errorf("installing %s: %w", f.Path, err)
	}
	return atomicfile.Write(f.Path, f.Content, f.Mode)
}
