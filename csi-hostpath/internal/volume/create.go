package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"podvirt.dev/csi-hostpath/internal/filesystem"
	"podvirt.dev/internal/atomicfile"
)

const (
	dataDir = "data"
	// sector is what sizes are rounded up to, in bytes (ST-016).
	sector = 4096
	// MinSize is the smallest volume in bytes (ST-027).
	MinSize = 16 << 20
	// launcherID is the user and group that open disks (storage.md 2.8).
	launcherID = 107
	// zeroChunk is the piece in which preallocation "full" writes zeros.
	zeroChunk = 1 << 20
)

// Request describes a volume to make. Names are unique within a pool.
type Request struct {
	Name          string
	Claim         Claim
	Size          int64 // bytes; rounded up to 4 KiB
	Content       Content
	Mode          Mode
	Preallocation Preallocation
	// FSType is the file system of the image that enforces the size; empty: no image (Block mode, or hardSize none).
	FSType     string
	DirectIO   string
	Parameters map[string]string
	// Origin is what the volume begins as; the zero value: blank. Its content, mode and file system are the volume's.
	Origin Origin
	// Copy forbids to share blocks with the origin, Share to do without.
	Copy, Share bool
	// Fill brings the content; nil: the origin has it, or there is none. The origin is of kind [OriginImport] then.
	Fill Fill
	// Hold is called around the moment at which the origin is read, when it is a volume in use; nil: nobody writes it.
	Hold Hold
}

// Round returns the size a volume really gets for a size asked for.
func Round(size int64) int64 { return (size + sector - 1) / sector * sector }

// Promise returns the bytes the pool promises with this volume: what its files may grow to.
func (r Request) Promise() int64 {
	size := Round(r.Size)
	if r.FSType != "" && r.Content == ContentDisk {
		return filesystem.SizeFor(r.FSType, size)
	}
	return size
}

// Find returns the volume that was made by an equal request, or [ErrNotFound]; [ErrIncompatible] where the name is
// taken by something else.
func (s *Store) Find(r Request) (Volume, error) {
	existing, ok := s.byName(s.volumes, r.Name)
	if !ok {
		return Volume{}, fmt.Errorf("%w: %s", ErrNotFound, r.Name)
	}
	same := existing.Size == Round(r.Size) && existing.Content == r.Content && existing.Mode == r.Mode && existing.begunAs(r.Origin)
	if !same || !maps.Equal(existing.Parameters, r.Parameters) {
		return Volume{}, fmt.Errorf("%w: %s has %d bytes, content %s, mode %s",
			ErrIncompatible, r.Name, existing.Size, existing.Content, existing.Mode)
	}
	return existing, nil
}

// Create makes a volume, or returns the one an equal request made before. It is whole and on disk when Create
// returns; when the process dies earlier there is nothing, or the whole volume under the same name.
func (s *Store) Create(ctx context.Context, r Request) (Volume, error) {
	if err := s.Check(); err != nil {
		return Volume{}, err
	}
	existing, err := s.Find(r)
	if !errors.Is(err, ErrNotFound) {
		return existing, err
	}
	meta := Meta{
		Format: Format, UUID: uuid.NewString(), Name: r.Name, Claim: r.Claim, Size: Round(r.Size), Promised: r.Promise(),
		Content: r.Content, Mode: r.Mode, Preallocation: r.Preallocation, FSType: r.FSType, DirectIO: r.DirectIO,
		Source: r.Origin.String(), Parameters: r.Parameters, State: StateReady, Created: time.Now().UTC().Truncate(time.Second),
	}
	if r.Fill != nil {
		return s.createFilled(ctx, meta, r)
	}
	data := func(dir string) error { return s.makeData(ctx, dir, meta) }
	if r.Origin != (Origin{}) {
		data = func(dir string) error { return s.cloneInto(ctx, dir, &meta, r) }
	}
	return s.make(ctx, making{step: "create", kind: volumesDir, into: s.volumes, meta: &meta, data: data})
}

// making is something that is about to exist in the pool. data makes its content in a directory and may complete meta.
type making struct {
	step string // of its life: the first word of its durable steps
	kind string // volumes/ or snapshots/
	into map[string]Volume
	meta *Meta
	data func(dir string) error
}

// make builds aside, syncs and puts into place.
func (s *Store) make(ctx context.Context, m making) (Volume, error) {
	building, dir := s.dir(tmpDir, m.meta.UUID), s.dir(m.kind, m.meta.UUID)
	if err := s.build(ctx, building, m); err != nil {
		return Volume{}, errors.Join(noSpace(err), s.abandon(building))
	}
	if err := s.place(building, dir, m); err != nil {
		return Volume{}, errors.Join(noSpace(err), s.abandon(building))
	}
	made := Volume{Meta: *m.meta, Dir: dir}
	s.mu.Lock()
	m.into[made.UUID] = made
	s.mu.Unlock()
	if err := s.opts.Fault.At(m.step + ".answer"); err != nil {
		return Volume{}, err
	}
	return made, nil
}

// build makes the whole volume in dir and syncs it.
func (s *Store) build(ctx context.Context, dir string, m making) error {
	steps := []struct {
		name string
		do   func() error
	}{
		{".mkdir", func() error { return os.Mkdir(dir, 0o700) }},
		{".data", func() error { return m.data(dir) }},
		{".meta", func() error { return m.meta.write(dir) }},
		{".sync", func() error { return errors.Join(atomicfile.SyncDir(dir), atomicfile.SyncDir(s.dir(tmpDir))) }},
	}
	for _, step := range steps {
		if err := errors.Join(s.opts.Fault.At(m.step+step.name), ctx.Err()); err != nil {
			return fmt.Errorf("%s%s: %w", m.step, step.name, err)
		}
		if err := step.do(); err != nil {
			return fmt.Errorf("%s%s: %w", m.step, step.name, err)
		}
	}
	return nil
}

// place is the moment at which the volume or snapshot begins to exist.
func (s *Store) place(from, to string, m making) error {
	if err := s.opts.Fault.At(m.step + ".rename"); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := s.opts.Fault.At(m.step + ".renamed"); err != nil {
		return errors.Join(err, os.Rename(to, from))
	}
	if err := errors.Join(atomicfile.SyncDir(s.dir(m.kind)), atomicfile.SyncDir(s.dir(tmpDir))); err != nil {
		return errors.Join(err, os.Rename(to, from))
	}
	return nil
}

func (s *Store) abandon(dir string) error { return os.RemoveAll(dir) }

func (s *Store) makeData(ctx context.Context, dir string, meta Meta) error {
	switch {
	case meta.FSType != "":
		return s.makeImage(ctx, dir, meta)
	case meta.Content == ContentDisk:
		return makeFile(ctx, filepath.Join(dir, diskFile), meta.Size, meta.Preallocation)
	default:
		return os.Mkdir(filepath.Join(dir, dataDir), 0o755)
	}
}

func (s *Store) makeImage(ctx context.Context, dir string, meta Meta) error {
	image := filepath.Join(dir, fsImageFile)
	if err := makeFile(ctx, image, meta.Promised, meta.Preallocation); err != nil {
		return err
	}
	if err := s.opts.Fault.At("create.mkfs"); err != nil {
		return err
	}
	oneFile := meta.Content == ContentDisk
	if err := filesystem.Make(ctx, meta.FSType, image, oneFile); err != nil {
		return err
	}
	if oneFile {
		if err := s.makeDiskInside(ctx, image, meta); err != nil {
			return err
		}
	}
	return syncFile(image)
}

// makeDiskInside puts disk.img into a new file-system image.
func (s *Store) makeDiskInside(ctx context.Context, image string, meta Meta) error {
	return s.mounted(Volume{Meta: meta, Dir: filepath.Dir(image)}, func(at string) error {
		if err := s.opts.Fault.At("create.disk"); err != nil {
			return err
		}
		room, err := filesystem.Room(at)
		if err != nil {
			return err
		}
		if room < meta.Size {
			return fmt.Errorf("an image of %d bytes has room for %d only, %d are needed", meta.Promised, room, meta.Size)
		}
		if err := makeFile(ctx, filepath.Join(at, diskFile), meta.Size, meta.Preallocation); err != nil {
			return err
		}
		return atomicfile.SyncDir(at)
	})
}

// makeFile makes a raw image of exactly size bytes for the launcher's user and syncs it.
func makeFile(ctx context.Context, name string, size int64, preallocation Preallocation) error {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o660)
	if err != nil {
		return err
	}
	err = errors.Join(f.Truncate(size), f.Chown(launcherID, launcherID), f.Chmod(0o660))
	if err == nil {
		err = preallocate(ctx, f, 0, size, preallocation)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// preallocate reserves the blocks of a file from an offset to its end.
func preallocate(ctx context.Context, f *os.File, from, size int64, how Preallocation) error {
	switch how {
	case PreallocateFalloc:
		if err := unix.Fallocate(int(f.Fd()), 0, from, size-from); err != nil {
			return fmt.Errorf("preallocating %d bytes: %w", size-from, err)
		}
	case PreallocateFull:
		zeros := make([]byte, zeroChunk)
		for at := from; at < size; at += zeroChunk {
			if err := ctx.Err(); err != nil {
				return err
			}
			if _, err := f.WriteAt(zeros[:min(zeroChunk, size-at)], at); err != nil {
				return fmt.Errorf("preallocating %d bytes: %w", size, err)
			}
		}
	case PreallocateNone:
	}
	return nil
}

func syncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// noSpace marks a full file system as [ErrNoSpace].
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}
