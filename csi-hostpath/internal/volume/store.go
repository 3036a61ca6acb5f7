// Package volume keeps the volumes of one pool: a directory tree in which every change is built aside, synced and
// renamed into place (storage.md 2.8), so that the process can be killed at any instruction. It knows no gRPC.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"podvirt.dev/csi-hostpath/internal/fault"
	"podvirt.dev/csi-hostpath/internal/loop"
	"podvirt.dev/internal/atomicfile"
)

// Options of a store.
type Options struct {
	Path string // of the pool
	Node string // name of this node
	// Scratch is a directory of this process on another file system; images are mounted below it while they are made.
	Scratch string
	Fault   fault.Hook
}

// Volume is a volume of the pool as it is on disk. Problem says why a damaged one cannot be used; damaged volumes are
// kept and never deleted by the driver (ST-023).
type Volume struct {
	Meta
	Dir     string
	Problem error
}

// Data returns the file or directory with the volume's content: disk.img, fs.img or data.
func (v Volume) Data() string {
	switch {
	case v.FSType != "":
		return filepath.Join(v.Dir, fsImageFile)
	case v.Content == ContentDisk:
		return filepath.Join(v.Dir, diskFile)
	default:
		return filepath.Join(v.Dir, dataDir)
	}
}

// Store is one open pool. It is safe for concurrent use; two creations of one name must not run at once.
type Store struct {
	opts       Options
	identity   Identity
	abilities  Abilities
	fileSystem string
	device     uint64 // st_dev: another number later means that something was mounted or unmounted at the path
	lock       *os.File
	trashed    chan struct{}

	mu        sync.Mutex
	volumes   map[string]Volume // by uuid
	snapshots map[string]Volume // by uuid
	filling   map[string]Volume // by uuid; not whole yet
}

// Open takes the pool at opts.Path: makes it one if it is an empty directory, locks it, measures what its file system
// can do, undoes what was unfinished and reads what is there. The caller closes it.
func Open(ctx context.Context, opts Options) (*Store, error) {
	var stat unix.Stat_t
	if err := unix.Stat(opts.Path, &stat); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrNotReady, opts.Path, err)
	}
	fileSystem, err := FileSystemID(opts.Path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	identity, err := ensureIdentity(opts.Path, opts.Node)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	if identity.Node != opts.Node {
		return nil, fmt.Errorf("%w: %s was made by node %s", ErrForeign, opts.Path, identity.Node)
	}
	lock, err := takeLock(opts.Path)
	if err != nil {
		return nil, err
	}
	store := &Store{
		opts: opts, identity: identity, fileSystem: fileSystem, device: stat.Dev, lock: lock,
		trashed: make(chan struct{}, 1), volumes: map[string]Volume{}, snapshots: map[string]Volume{}, filling: map[string]Volume{},
	}
	if err := store.load(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrNotReady, err), lock.Close())
	}
	return store, nil
}

// Close releases the pool.
func (s *Store) Close() error { return s.lock.Close() }

// Identity returns the pool's identity.
func (s *Store) Identity() Identity { return s.identity }

// Abilities returns what the pool's file system was seen to do.
func (s *Store) Abilities() Abilities { return s.abilities }

// Path returns the directory of the pool.
func (s *Store) Path() string { return s.opts.Path }

// FileSystem returns what tells the pool's file system from every other one.
func (s *Store) FileSystem() string { return s.fileSystem }

// Check says whether the directory still is the pool that was opened: a file system that went away underneath leaves
// another device at the path.
func (s *Store) Check() error {
	var stat unix.Stat_t
	if err := unix.Stat(s.opts.Path, &stat); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrNotReady, s.opts.Path, err)
	}
	if stat.Dev != s.device {
		return fmt.Errorf("%w: %s is another file system than the one that was opened", ErrNotReady, s.opts.Path)
	}
	return nil
}

// Get returns a volume by uuid, or [ErrNotFound].
func (s *Store) Get(id string) (Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	volume, ok := s.volumes[id]
	if !ok {
		return Volume{}, fmt.Errorf("%w: %s/%s", ErrNotFound, s.identity.ID, id)
	}
	return volume, nil
}

// List returns all volumes, damaged ones too, ordered by uuid.
func (s *Store) List() []Volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.volumes), byUUID)
}

// Snapshot returns a snapshot by uuid, or [ErrNotFound].
func (s *Store) Snapshot(id string) (Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	snapshot, ok := s.snapshots[id]
	if !ok {
		return Volume{}, fmt.Errorf("%w: snapshot %s/%s", ErrNotFound, s.identity.ID, id)
	}
	return snapshot, nil
}

// Snapshots returns all snapshots, damaged ones too, ordered by uuid.
func (s *Store) Snapshots() []Volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.snapshots), byUUID)
}

func byUUID(a, b Volume) int { return strings.Compare(a.UUID, b.UUID) }

// Empty reports whether the pool holds no volume, no snapshot and nothing that is being removed.
func (s *Store) Empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	trash, err := os.ReadDir(s.dir(trashDir))
	return err == nil && len(trash) == 0 && len(s.volumes) == 0 && len(s.snapshots) == 0 && len(s.filling) == 0
}

// HasVolumes reports whether a pool that is not open holds volumes or snapshots.
func HasVolumes(path string) (bool, error) {
	volumes, err := os.ReadDir(filepath.Join(path, volumesDir))
	if err != nil {
		return false, err
	}
	snapshots, err := os.ReadDir(filepath.Join(path, snapsDir))
	if errors.Is(err, fs.ErrNotExist) { // made by a version that knew none
		err = nil
	}
	return len(volumes)+len(snapshots) > 0, err
}

// byName returns what was made under a name, of volumes, of snapshots or of volumes that are being filled.
func (s *Store) byName(of map[string]Volume, name string) (Volume, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, volume := range of {
		if volume.Name == name && volume.Problem == nil {
			return volume, true
		}
	}
	return Volume{}, false
}

func (s *Store) dir(parts ...string) string {
	return filepath.Join(append([]string{s.opts.Path}, parts...)...)
}

// load makes the tree whole and reads it.
func (s *Store) load(ctx context.Context) error {
	for _, name := range []string{volumesDir, snapsDir, tmpDir, trashDir} {
		if err := os.MkdirAll(s.dir(name), 0o700); err != nil {
			return err
		}
	}
	if err := atomicfile.SyncDir(s.opts.Path); err != nil {
		return err
	}
	if err := s.emptyTmp(ctx); err != nil {
		return err
	}
	abilities, err := Measure(s.dir(tmpDir))
	if err != nil {
		return err
	}
	s.abilities = abilities
	for kind, found := range map[string]map[string]Volume{volumesDir: s.volumes, snapsDir: s.snapshots} {
		if err := s.readAll(ctx, kind, found); err != nil {
			return err
		}
	}
	s.wakeRemover()
	return nil
}

func (s *Store) readAll(ctx context.Context, kind string, found map[string]Volume) error {
	entries, err := os.ReadDir(s.dir(kind))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if uuid.Validate(entry.Name()) != nil {
			klog.FromContext(ctx).Info("Something that is no volume lies in a pool", "path", s.dir(kind, entry.Name()))
			continue
		}
		read := s.read(ctx, kind, entry.Name())
		if read.Problem == nil && read.State == StateFilling {
			s.filling[entry.Name()] = read
			continue
		}
		found[entry.Name()] = read
	}
	return nil
}

func (s *Store) read(ctx context.Context, kind, id string) Volume {
	dir := s.dir(kind, id)
	meta, err := readMeta(dir)
	volume := Volume{Meta: meta, Dir: dir, Problem: err}
	volume.UUID = id
	if err == nil && meta.State != StateReady && (meta.State != StateFilling || kind != volumesDir) {
		volume.Problem = fmt.Errorf("%w: its state is %s", ErrDamaged, meta.State)
	}
	if _, err := os.Stat(volume.Data()); err != nil && volume.Problem == nil {
		volume.Problem = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if volume.Problem != nil {
		klog.FromContext(ctx).Error(volume.Problem, "A volume is kept, but cannot be used", "dir", dir)
	}
	return volume
}

// emptyTmp removes what was being built when the last process ended.
func (s *Store) emptyTmp(ctx context.Context) error {
	entries, err := os.ReadDir(s.dir(tmpDir))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		dir := s.dir(tmpDir, entry.Name())
		klog.FromContext(ctx).Info("Removing what an earlier process left unfinished", "dir", dir)
		for _, name := range []string{diskFile, fsImageFile} {
			if err := loop.DetachFile(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
				return err
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return atomicfile.SyncDir(s.dir(tmpDir))
}
