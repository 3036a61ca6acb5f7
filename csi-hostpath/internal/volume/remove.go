package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"podvirt.dev/internal/atomicfile"
)

// Freeing a large file at once stalls the journal of its file system for everybody, so it shrinks in pieces (ST-026).
const (
	shrinkStep  = 1 << 30 // bytes
	shrinkPause = 20 * time.Millisecond
	// removeRetry is the pause after a removal that failed.
	removeRetry = 30 * time.Second
)

// Delete removes a volume. It is gone for good when Delete returns; its blocks are freed in the background by
// [Store.Run]. A volume that is not there is no error; a damaged one is refused with [ErrDamaged].
func (s *Store) Delete(id string) error { return s.remove(volumesDir, s.volumes, id, s.Get) }

// DeleteSnapshot is Delete for a snapshot.
func (s *Store) DeleteSnapshot(id string) error {
	return s.remove(snapsDir, s.snapshots, id, s.Snapshot)
}

func (s *Store) remove(kind string, from map[string]Volume, id string, get func(string) (Volume, error)) error {
	if err := s.Check(); err != nil {
		return err
	}
	volume, err := get(id)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case volume.Problem != nil:
		return fmt.Errorf("%s is kept: %w", volume.Dir, volume.Problem)
	}
	if err := s.opts.Fault.At("delete.rename"); err != nil {
		return err
	}
	if err := os.Rename(volume.Dir, s.dir(trashDir, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.mu.Lock()
	delete(from, id)
	s.mu.Unlock()
	if err := s.opts.Fault.At("delete.sync"); err != nil {
		return err
	}
	if err := errors.Join(atomicfile.SyncDir(s.dir(kind)), atomicfile.SyncDir(s.dir(trashDir))); err != nil {
		return err
	}
	s.wakeRemover()
	return s.opts.Fault.At("delete.answer")
}

// Run frees the blocks of deleted volumes until ctx ends.
func (s *Store) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.trashed:
		}
		if err := s.emptyTrash(ctx); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Removing deleted volumes; it will be tried again", "pool", s.opts.Path)
			wait(ctx, removeRetry)
			s.wakeRemover()
		}
	}
}

func (s *Store) wakeRemover() {
	select {
	case s.trashed <- struct{}{}:
	default: // it will look anyway
	}
}

func (s *Store) emptyTrash(ctx context.Context) error {
	if err := s.Check(); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.dir(trashDir))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		dir := s.dir(trashDir, entry.Name())
		for _, name := range []string{diskFile, fsImageFile} {
			if err := shrink(ctx, filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		if err := s.opts.Fault.At("delete.unlink"); err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// shrink frees a file's blocks piece by piece.
func shrink(ctx context.Context, name string) error {
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	for size := info.Size() - shrinkStep; size > 0; size -= shrinkStep {
		before := allocated(name)
		if err := os.Truncate(name, size); err != nil {
			return err
		}
		if allocated(name) == before {
			continue // a hole costs nothing
		}
		if !wait(ctx, shrinkPause) {
			return ctx.Err()
		}
	}
	return nil
}

// wait returns false when ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// allocated returns the bytes a file occupies; 0 where it cannot be read.
func allocated(name string) int64 {
	var stat unix.Stat_t
	if unix.Stat(name, &stat) != nil {
		return 0
	}
	return stat.Blocks * 512
}
