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
	"time"

	"podvirt.dev/internal/atomicfile"
)

// OriginImport marks what is filled from outside; the UUID of such an [Origin] is a digest of what was asked for.
const OriginImport OriginKind = "import"

// ErrRejected is wrapped by what a [Fill] returns when its volume can never be filled: the volume is then removed.
var ErrRejected = errors.New("the volume cannot be filled")

// journalFile says how far the filling of a volume is (storage.md 2.8).
const journalFile = "fill.json"

// Fill brings the content of a new volume of content [ContentDisk]. Where it fails, or the process dies, the next
// creation under the same name calls it again with what is there already, unless its error wraps [ErrRejected].
type Fill func(ctx context.Context, f Filling) error

// Filling is a volume that is being filled. Nobody can use it yet.
type Filling struct {
	Disk  *os.File // exactly Size bytes
	Size  int64
	Since time.Time
	dir   string
	hook  func(step string) error
}

// Journal returns what was noted last, nil where nothing was.
func (f Filling) Journal() ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(f.dir, journalFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// Note replaces the journal. What it says of the disk must be synced already.
func (f Filling) Note(data []byte) error {
	if err := f.hook("fill.note"); err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(f.dir, journalFile), data, 0o600)
}

// Reset makes the disk read as zeros again and forgets the journal. Who begins without a journal must call it: what an
// attempt that died wrote may be of another version of the source.
func (f Filling) Reset() error {
	if err := os.Remove(filepath.Join(f.dir, journalFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := atomicfile.SyncDir(f.dir); err != nil {
		return err
	}
	if err := f.hook("fill.reset"); err != nil {
		return err
	}
	return errors.Join(f.Disk.Truncate(0), f.Disk.Truncate(f.Size), f.Disk.Sync())
}

// createFilled makes a volume in two steps: an empty one that only this store knows, then its content. The volume exists
// for everybody else when its meta.json says that it is ready.
func (s *Store) createFilled(ctx context.Context, meta Meta, r Request) (Volume, error) {
	begun, found := s.byName(s.filling, r.Name)
	if found && (begun.Size != meta.Size || begun.Mode != meta.Mode || begun.Source != meta.Source || !maps.Equal(begun.Parameters, meta.Parameters)) {
		if err := s.Discard(begun.UUID); err != nil {
			return Volume{}, err
		}
		found = false
	}
	if !found {
		meta.State = StateFilling
		var err error
		empty := meta
		empty.Preallocation = PreallocateNone // what remains is reserved when it is filled
		data := func(dir string) error { return s.makeData(ctx, dir, empty) }
		if begun, err = s.make(ctx, making{step: "create", kind: volumesDir, into: s.filling, meta: &meta, data: data}); err != nil {
			return Volume{}, err
		}
	}
	if err := s.pour(ctx, begun, r.Fill); err != nil {
		if errors.Is(err, ErrRejected) {
			return Volume{}, errors.Join(err, s.Discard(begun.UUID))
		}
		return Volume{}, noSpace(err)
	}
	return s.finish(begun)
}

// pour lets the content in and syncs it.
func (s *Store) pour(ctx context.Context, v Volume, fill Fill) error {
	if err := s.opts.Fault.At("fill.begin"); err != nil {
		return err
	}
	into := func(name string) error {
		disk, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		filling := Filling{Disk: disk, Size: v.Size, Since: v.Created, dir: v.Dir, hook: s.opts.Fault.At}
		if err := fill(ctx, filling); err != nil {
			return errors.Join(err, disk.Close())
		}
		info, err := disk.Stat()
		if err == nil && info.Size() != v.Size {
			err = fmt.Errorf("%s has %d bytes after it was filled, %d before", name, info.Size(), v.Size)
		}
		return errors.Join(err, s.opts.Fault.At("fill.sync"), disk.Sync(), disk.Close())
	}
	var err error
	if v.FSType == "" {
		err = into(v.Data())
	} else {
		err = s.mounted(v, func(at string) error { return into(filepath.Join(at, diskFile)) })
	}
	if err != nil || v.Preallocation == PreallocateNone {
		return err
	}
	return s.reserveAll(ctx, v)
}

// finish makes a filled volume one that exists.
func (s *Store) finish(v Volume) (Volume, error) {
	if v.FSType != "" {
		if err := syncFile(v.Data()); err != nil {
			return Volume{}, err
		}
	}
	if err := s.opts.Fault.At("fill.ready"); err != nil {
		return Volume{}, err
	}
	v.State = StateReady
	if err := v.write(v.Dir); err != nil {
		return Volume{}, err
	}
	s.mu.Lock()
	delete(s.filling, v.UUID)
	s.volumes[v.UUID] = v
	s.mu.Unlock()
	if err := s.opts.Fault.At("fill.answer"); err != nil {
		return Volume{}, err
	}
	if err := os.Remove(filepath.Join(v.Dir, journalFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Volume{}, err
	}
	return v, nil
}

// Filling returns the volumes that are not whole yet, ordered by uuid.
func (s *Store) Filling() []Volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.filling), byUUID)
}

// Begun reports whether the volume of a name is being filled.
func (s *Store) Begun(name string) bool {
	_, found := s.byName(s.filling, name)
	return found
}

// Discard removes a volume that is not whole. Nobody may be filling it.
func (s *Store) Discard(id string) error {
	return s.remove(volumesDir, s.filling, id, func(id string) (Volume, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		v, ok := s.filling[id]
		if !ok {
			return Volume{}, ErrNotFound
		}
		return v, nil
	})
}
