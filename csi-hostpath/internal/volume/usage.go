package volume

import (
	"os"

	"golang.org/x/sys/unix"
)

// Usage are the bytes of a pool and of the file system it lies on.
type Usage struct {
	Total     int64 // of the file system
	Size      int64 // of the file system, without what only root may use
	Free      int64 // to an ordinary user, as df shows it
	Promised  int64 // the volumes of this pool may grow to this
	Allocated int64 // the volumes of this pool occupy this
	counted   map[string]bool
}

// Counts reports whether the volume made under the name is in Promised and Allocated.
func (u Usage) Counts(name string) bool { return u.counted[name] }

// Allocated returns the bytes the volume occupies in its pool.
func (v Volume) Allocated() int64 { return min(allocated(v.Data()), v.Promised) }

// Usage measures the pool.
func (s *Store) Usage() (Usage, error) {
	if err := s.Check(); err != nil {
		return Usage{}, err
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(s.opts.Path, &stat); err != nil {
		return Usage{}, &os.PathError{Op: "statfs", Path: s.opts.Path, Err: err}
	}
	kept := int64(stat.Bfree) - int64(stat.Bavail) // for root
	usage := Usage{
		Total: int64(stat.Blocks) * stat.Bsize, Size: (int64(stat.Blocks) - kept) * stat.Bsize, Free: int64(stat.Bavail) * stat.Bsize, counted: map[string]bool{},
	}
	for _, volume := range s.List() {
		usage.counted[volume.Name] = true
		usage.Promised += volume.Promised
		usage.Allocated += volume.Allocated()
	}
	return usage, nil
}
