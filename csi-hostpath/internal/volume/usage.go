package volume

import (
	"cmp"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Usage are the bytes of a pool and of the file system it lies on.
type Usage struct {
	Total     int64 // of the file system
	Size      int64 // of the file system, without what only root may use
	Free      int64 // to an ordinary user, as df shows it
	Promised  int64 // the volumes of this pool may grow to this
	Allocated int64 // the volumes of this pool occupy at least this, shared blocks counted once
	counted   map[string]bool
}

// Counts reports whether the volume made under the name is in Promised and Allocated.
func (u Usage) Counts(name string) bool { return u.counted[name] }

// Allocated returns the bytes the volume occupies in its pool, shared ones too.
func (v Volume) Allocated() int64 { return min(allocated(v.Data()), v.Promised) }

// family is the uuid of the first of those that may share blocks with the volume.
func (v Volume) family() string { return cmp.Or(v.Family, v.UUID) }

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
	all := slices.Concat(s.List(), s.Snapshots(), s.Filling())
	for _, volume := range all {
		usage.counted[volume.Name] = true
		usage.Promised += volume.Promised
	}
	usage.Allocated = allocatedOnce(all)
	return usage, nil
}

// allocatedOnce sums up what volumes and snapshots occupy, counting blocks once that several share: of a family the
// eldest counts whole, the others what they have beyond what they began with. Blocks that an origin has replaced
// meanwhile are missing in the sum, never counted twice: the pool then promises too little, and never too much.
func allocatedOnce(all []Volume) int64 {
	slices.SortFunc(all, func(a, b Volume) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Shared, b.Shared), strings.Compare(a.UUID, b.UUID))
	})
	sum, eldest := int64(0), map[string]bool{}
	for _, volume := range all {
		own := volume.Allocated()
		if volume.Family != "" && eldest[volume.Family] {
			own = max(0, own-volume.Shared)
		}
		eldest[volume.family()] = true
		sum += own
	}
	return sum
}
