package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"podvirt.dev/csi-hostpath/internal/filesystem"
	"podvirt.dev/csi-hostpath/internal/mounts"
)

// promise returns the bytes that a volume of this shape may grow to.
func (m Meta) promise() int64 {
	return Request{Size: m.Size, FSType: m.FSType, Content: m.Content}.Promise()
}

// Expand lets a volume grow to a size in bytes, rounded up to 4 KiB; a volume that is as large already is left alone.
// It is the same at rest and in use: mountedAt is where its file system is mounted, or "". The size is written down
// last, so that an interrupted call is repeated.
func (s *Store) Expand(ctx context.Context, id string, size int64, mountedAt string) (Volume, error) {
	if err := s.Check(); err != nil {
		return Volume{}, err
	}
	volume, err := s.Get(id)
	if err == nil && volume.Problem != nil {
		err = volume.Problem
	}
	if err != nil || volume.Size >= Round(size) {
		return volume, err
	}
	if err := s.grow(ctx, volume, mountedAt, Round(size)); err != nil {
		return Volume{}, noSpace(err)
	}
	if err := s.opts.Fault.At("expand.meta"); err != nil {
		return Volume{}, err
	}
	volume.Size = Round(size)
	volume.Promised = volume.promise()
	if err := volume.write(volume.Dir); err != nil {
		return Volume{}, noSpace(err)
	}
	s.mu.Lock()
	s.volumes[id] = volume
	s.mu.Unlock()
	return volume, s.opts.Fault.At("expand.answer")
}

// grow makes the files and file systems of a volume larger. Each step looks what is there, so that it can be repeated.
func (s *Store) grow(ctx context.Context, v Volume, mountedAt string, size int64) error {
	grown := v.Meta
	grown.Size = size
	switch {
	case size <= v.Size:
		return nil
	case v.FSType == "" && v.Content == ContentFiles:
		return nil // a directory without any limit
	case v.FSType == "":
		return enlarge(ctx, v.Data(), size, v.Preallocation)
	}
	if err := s.opts.Fault.At("expand.image"); err != nil {
		return err
	}
	if err := enlarge(ctx, v.Data(), grown.promise(), v.Preallocation); err != nil {
		return err
	}
	if err := s.opts.Fault.At("expand.fs"); err != nil {
		return err
	}
	if mountedAt != "" {
		if err := filesystem.Grow(ctx, v.FSType, v.Data(), mountedAt); err != nil {
			return err
		}
		return s.growInside(ctx, v, mountedAt, size)
	}
	done, err := filesystem.GrowAtRest(ctx, v.FSType, v.Data())
	if err != nil {
		return err
	}
	return s.mounted(v, func(at string) error {
		if !done {
			if err := filesystem.Grow(ctx, v.FSType, v.Data(), at); err != nil {
				return err
			}
		}
		return s.growInside(ctx, v, at, size)
	})
}

// growInside lets the disk in a file system grow that has the room by now.
func (s *Store) growInside(ctx context.Context, v Volume, at string, size int64) error {
	if v.Content != ContentDisk {
		return nil
	}
	if err := s.opts.Fault.At("expand.disk"); err != nil {
		return err
	}
	return enlarge(ctx, filepath.Join(at, diskFile), size, v.Preallocation)
}

// mounted mounts the file system of a volume at rest for as long as do runs.
func (s *Store) mounted(v Volume, do func(at string) error) (err error) {
	if err := os.MkdirAll(s.opts.Scratch, 0o700); err != nil {
		return err
	}
	at, err := os.MkdirTemp(s.opts.Scratch, "image.")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mounts.RemovePoint(at)) }()
	if err := filesystem.MountImage(v.Data(), at, filesystem.MountOptions{Type: v.FSType}); err != nil {
		return err
	}
	return do(at)
}

// enlarge makes a file larger, never smaller, and syncs it.
func enlarge(ctx context.Context, name string, size int64, preallocation Preallocation) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Size() < size {
		err = f.Truncate(size)
	}
	if err == nil && info.Size() < size {
		err = preallocate(ctx, f, info.Size(), size, preallocation)
	}
	return errors.Join(err, f.Sync(), f.Close())
}
