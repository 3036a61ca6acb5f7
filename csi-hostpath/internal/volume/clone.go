package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"podvirt.dev/csi-hostpath/internal/filesystem"
)

// OriginKind says what an [Origin] is.
type OriginKind string

// Kinds of origins.
const (
	OriginVolume   OriginKind = "volume"
	OriginSnapshot OriginKind = "snapshot"
)

// Origin is a volume or snapshot of the same pool that something new begins as. The zero value stands for none.
type Origin struct {
	Kind OriginKind
	UUID string
}

// String is how meta.json names it: KIND:UUID, or "blank".
func (o Origin) String() string {
	if o == (Origin{}) {
		return "blank"
	}
	return string(o.Kind) + ":" + o.UUID
}

// begunAs reports whether the volume began as the origin. Of one that was filled it does not matter any more from what:
// the claim may say something else by now.
func (m Meta) begunAs(o Origin) bool {
	if o.Kind == OriginImport {
		return strings.HasPrefix(m.Source, string(OriginImport)+":")
	}
	return m.Source == o.String()
}

// Hold makes a volume stand still that is in use; release lets it go on and must be called whatever happens. It is
// called only where blocks can be shared, so that it lasts for the blink of an eye.
type Hold func(ctx context.Context) (release func() error, err error)

// Origin returns the volume or snapshot behind an origin. A damaged one is refused with [ErrDamaged].
func (s *Store) Origin(o Origin) (Volume, error) {
	get := s.Get
	if o.Kind == OriginSnapshot {
		get = s.Snapshot
	}
	found, err := get(o.UUID)
	if err == nil && found.Problem != nil {
		err = found.Problem
	}
	return found, err
}

// SnapshotRequest describes a snapshot to take. Names are unique among the snapshots of a pool.
type SnapshotRequest struct {
	Name   string
	Volume string // uuid
	Hold   Hold
}

// FindSnapshot returns the snapshot that was taken by an equal request, or [ErrNotFound]; [ErrIncompatible] where the
// name is taken by a snapshot of something else.
func (s *Store) FindSnapshot(r SnapshotRequest) (Volume, error) {
	existing, ok := s.byName(s.snapshots, r.Name)
	if !ok {
		return Volume{}, fmt.Errorf("%w: snapshot %s", ErrNotFound, r.Name)
	}
	if want := (Origin{Kind: OriginVolume, UUID: r.Volume}).String(); existing.Source != want {
		return Volume{}, fmt.Errorf("%w: snapshot %s is of %s", ErrIncompatible, r.Name, existing.Source)
	}
	return existing, nil
}

// TakeSnapshot keeps a volume as it is at one moment, or returns what an equal request kept before. Where blocks cannot
// be shared it copies, which takes as long as the volume has data; nobody may write the volume meanwhile.
func (s *Store) TakeSnapshot(ctx context.Context, r SnapshotRequest) (Volume, error) {
	if err := s.Check(); err != nil {
		return Volume{}, err
	}
	existing, err := s.FindSnapshot(r)
	if !errors.Is(err, ErrNotFound) {
		return existing, err
	}
	origin := Origin{Kind: OriginVolume, UUID: r.Volume}
	from, err := s.Origin(origin)
	if err != nil {
		return Volume{}, err
	}
	meta := from.Meta
	meta.UUID, meta.Name, meta.Source, meta.Created = uuid.NewString(), r.Name, origin.String(), time.Now().UTC().Truncate(time.Second)
	data := func(dir string) error {
		if err := s.copyData(ctx, copying{from: from, dir: dir, share: s.abilities.Reflink, hold: r.Hold}, &meta); err != nil {
			return err
		}
		meta.Promised = allocated(Volume{Meta: meta, Dir: dir}.Data()) // nobody writes it any more
		return nil
	}
	return s.make(ctx, making{step: "snapshot", kind: snapsDir, into: s.snapshots, meta: &meta, data: data})
}

// cloneInto makes the content of a new volume from its origin and lets it grow to its size.
func (s *Store) cloneInto(ctx context.Context, dir string, meta *Meta, r Request) error {
	from, err := s.Origin(r.Origin)
	if err != nil {
		return err
	}
	share := s.abilities.Reflink && !r.Copy && r.Preallocation == PreallocateNone
	if r.Share && !share {
		return fmt.Errorf("%w: clone: reflink is impossible: the pool or the volume cannot share blocks", ErrInvalid)
	}
	if err := s.copyData(ctx, copying{from: from, dir: dir, share: share, hold: r.Hold}, meta); err != nil {
		return err
	}
	clone := Volume{Meta: *meta, Dir: dir}
	if err := filesystem.NewIdentity(ctx, meta.FSType, clone.Data()); err != nil {
		return err
	}
	if err := s.opts.Fault.At("create.cloned"); err != nil {
		return err
	}
	clone.Size, clone.Promised = from.Size, from.promise()
	if err := s.grow(ctx, clone, "", meta.Size); err != nil || meta.Preallocation == PreallocateNone {
		return err
	}
	clone.Meta = *meta
	return s.reserveAll(ctx, clone)
}

// reserveAll preallocates a volume that has content already.
func (s *Store) reserveAll(ctx context.Context, v Volume) error {
	if v.FSType == "" && v.Content == ContentFiles {
		return nil
	}
	if err := reserve(ctx, v.Data(), v.Preallocation); err != nil || v.FSType == "" || v.Content != ContentDisk {
		return err
	}
	return s.mounted(v, func(at string) error { return reserve(ctx, filepath.Join(at, diskFile), v.Preallocation) })
}

// reserve fills the holes of a file, as the preallocation says, and keeps its data.
func reserve(ctx context.Context, name string, how Preallocation) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && how == PreallocateFalloc {
		err = preallocate(ctx, f, 0, info.Size(), how)
	}
	for at := int64(0); err == nil && how == PreallocateFull && at < info.Size(); {
		var hole, data int64
		if hole, err = f.Seek(at, unix.SEEK_HOLE); err != nil || hole >= info.Size() {
			break
		}
		if data, err = f.Seek(hole, unix.SEEK_DATA); errors.Is(err, unix.ENXIO) {
			data, err = info.Size(), nil
		}
		if err == nil {
			err = preallocate(ctx, f, hole, data, how)
		}
		at = data
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// copying is one copy of a volume's content.
type copying struct {
	from  Volume
	dir   string
	share bool
	hold  Hold
}

// copyData makes the same content in another directory and notes in meta what is shared.
func (s *Store) copyData(ctx context.Context, c copying, meta *Meta) (err error) {
	meta.FSType = c.from.FSType
	to := Volume{Meta: *meta, Dir: c.dir}.Data()
	if c.share {
		meta.Family, meta.Shared = c.from.family(), allocated(c.from.Data())
		if c.hold != nil {
			release, err := c.hold(ctx)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, release()) }()
		}
	}
	info, err := os.Stat(c.from.Data())
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return filesystem.CopyTree(ctx, c.from.Data(), to, c.share)
	case c.share:
		return reflink(c.from.Data(), to)
	default:
		return copySparse(ctx, c.from.Data(), to)
	}
}

// reflink makes a file that shares all blocks with another (FICLONE, ioctl_ficlone(2)).
func reflink(from, to string) error {
	return withFiles(from, to, func(source, target *os.File) error {
		if err := unix.IoctlFileClone(int(target.Fd()), int(source.Fd())); err != nil {
			return &os.PathError{Op: "FICLONE", Path: from, Err: err}
		}
		return nil
	})
}

// copySparse copies what a file holds; holes stay holes.
func copySparse(ctx context.Context, from, to string) error {
	return withFiles(from, to, func(source, target *os.File) error {
		info, err := source.Stat()
		if err != nil {
			return err
		}
		if err := target.Truncate(info.Size()); err != nil {
			return err
		}
		for at := int64(0); at < info.Size(); {
			begin, err := source.Seek(at, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) {
				return nil // nothing but a hole to the end
			}
			if err != nil {
				return err
			}
			end, err := source.Seek(begin, unix.SEEK_HOLE)
			if err != nil {
				return err
			}
			if err := copyRange(ctx, source, target, begin, end); err != nil {
				return err
			}
			at = end
		}
		return nil
	})
}

// copyPiece is how much is copied between two looks at the context, in bytes.
const copyPiece = 16 << 20

func copyRange(ctx context.Context, source, target *os.File, begin, end int64) error {
	for at := begin; at < end; at += copyPiece {
		if err := ctx.Err(); err != nil {
			return err
		}
		piece := io.NewSectionReader(source, at, min(copyPiece, end-at))
		if _, err := io.Copy(io.NewOffsetWriter(target, at), piece); err != nil {
			return fmt.Errorf("copying at offset %d: %w", at, err)
		}
	}
	return nil
}

// withFiles opens a source and a new target of the launcher's user, and syncs the target.
func withFiles(from, to string, do func(source, target *os.File) error) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	target, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o660)
	if err != nil {
		return errors.Join(err, source.Close())
	}
	err = errors.Join(target.Chown(launcherID, launcherID), target.Chmod(0o660))
	if err == nil {
		err = do(source, target)
	}
	return errors.Join(err, target.Sync(), target.Close(), source.Close())
}
