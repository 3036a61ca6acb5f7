package sysfs

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

// Hugepages is the pool of one page size. Surplus pages, which the kernel makes and drops by itself, are not counted in
// Total.
type Hugepages struct {
	Size  int64 // bytes
	Total int64 // pages
	Free  int64 // pages
}

// SizeName writes a page size as Kubernetes does: 2Mi, 1Gi, 64Ki.
func (h Hugepages) SizeName() string {
	for _, unit := range []struct {
		shift uint
		name  string
	}{{30, "Gi"}, {20, "Mi"}, {10, "Ki"}} {
		if h.Size >= 1<<unit.shift && h.Size%(1<<unit.shift) == 0 {
			return strconv.FormatInt(h.Size>>unit.shift, 10) + unit.name
		}
	}
	return strconv.FormatInt(h.Size, 10)
}

// readHugepages reads the pools of a directory with entries hugepages-<N>kB (of the machine or of one cell), smallest
// pages first. A kernel without huge pages has none.
func readHugepages(fsys fs.FS, dir string) ([]Hugepages, error) {
	entries, err := fs.ReadDir(fsys, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pools []Hugepages
	for _, entry := range entries {
		kib, ok := strings.CutPrefix(entry.Name(), "hugepages-")
		if !ok {
			continue
		}
		size, err := strconv.ParseInt(strings.TrimSuffix(kib, "kB"), 10, 50)
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %q", dir, ErrFormat, entry.Name())
		}
		pool, err := readPool(fsys, dir+"/"+entry.Name())
		if err != nil {
			return nil, err
		}
		pool.Size = size << 10
		pools = append(pools, pool)
	}
	slices.SortFunc(pools, func(a, b Hugepages) int { return int(a.Size - b.Size) })
	return pools, nil
}

func readPool(fsys fs.FS, dir string) (Hugepages, error) {
	total, err := Int(fsys, dir+"/nr_hugepages")
	if err != nil {
		return Hugepages{}, err
	}
	free, err := Int(fsys, dir+"/free_hugepages")
	if err != nil {
		return Hugepages{}, err
	}
	surplus, err := Int(fsys, dir+"/surplus_hugepages")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // gigantic pages have no surplus on some kernels
		return Hugepages{}, err
	}
	return Hugepages{Total: total - surplus, Free: free}, nil
}
