package sysfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

const nodeDir = "sys/devices/system/node"

// Cell is one NUMA cell.
type Cell struct {
	ID        int
	CPUs      []int // online; empty for a cell of memory only
	Memory    int64 // bytes of pages present, whatever a balloon has taken; 0 for a cell of CPUs only
	Hugepages []Hugepages
	Distances []int // to every cell, in order of their numbers
}

// Cells returns the machine's NUMA cells in order of their numbers. A kernel without NUMA is one cell, number 0.
func Cells(fsys fs.FS) ([]Cell, error) {
	ids, err := list(fsys, nodeDir+"/online")
	if errors.Is(err, fs.ErrNotExist) {
		return uniformCell(fsys)
	}
	if err != nil {
		return nil, err
	}
	present, err := presentMemory(fsys)
	if err != nil {
		return nil, err
	}
	cells := make([]Cell, 0, len(ids))
	for _, id := range ids {
		cell, err := readCell(fsys, id)
		if err != nil {
			return nil, fmt.Errorf("NUMA cell %d: %w", id, err)
		}
		if bytes, known := present[id]; known {
			cell.Memory = bytes
		}
		cells = append(cells, cell)
	}
	return cells, nil
}

func readCell(fsys fs.FS, id int) (Cell, error) {
	dir := nodeDir + "/node" + strconv.Itoa(id)
	cpus, err := list(fsys, dir+"/cpulist")
	if err != nil {
		return Cell{}, err
	}
	meminfo, err := Text(fsys, dir+"/meminfo")
	if err != nil {
		return Cell{}, err
	}
	memory, err := memTotal(meminfo)
	if err != nil {
		return Cell{}, fmt.Errorf("%s/meminfo: %w", dir, err)
	}
	distances, err := distances(fsys, dir+"/distance")
	if err != nil {
		return Cell{}, err
	}
	pages, err := readHugepages(fsys, dir+"/hugepages")
	if err != nil {
		return Cell{}, err
	}
	return Cell{ID: id, CPUs: cpus, Memory: memory, Hugepages: pages, Distances: distances}, nil
}

// uniformCell makes the one cell of a machine whose kernel knows no NUMA.
func uniformCell(fsys fs.FS) ([]Cell, error) {
	cpus, err := OnlineCPUs(fsys)
	if err != nil {
		return nil, err
	}
	meminfo, err := Text(fsys, "proc/meminfo")
	if err != nil {
		return nil, err
	}
	memory, err := memTotal(meminfo)
	if err != nil {
		return nil, fmt.Errorf("proc/meminfo: %w", err)
	}
	pages, err := readHugepages(fsys, "sys/kernel/mm/hugepages")
	if err != nil {
		return nil, err
	}
	return []Cell{{CPUs: cpus, Memory: memory, Hugepages: pages, Distances: []int{10}}}, nil
}

// presentMemory adds up the pages that /proc/zoneinfo calls present, per cell. MemTotal of a cell counts managed pages
// only: it shrinks and grows with every balloon that a hypervisor inflates in the host. Where the file is not there the
// map is empty.
func presentMemory(fsys fs.FS) (map[int]int64, error) {
	text, err := Text(fsys, "proc/zoneinfo")
	present := make(map[int]int64)
	if errors.Is(err, fs.ErrNotExist) {
		return present, nil
	}
	if err != nil {
		return nil, err
	}
	cell := 0
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) >= 4 && fields[0] == "Node" && fields[2] == "zone":
			cell, err = strconv.Atoi(strings.TrimSuffix(fields[1], ","))
		case len(fields) == 2 && fields[0] == "present":
			var pages int64
			pages, err = strconv.ParseInt(fields[1], 10, 50)
			present[cell] += pages * int64(os.Getpagesize())
		}
		if err != nil {
			return nil, fmt.Errorf("proc/zoneinfo: %w: %q", ErrFormat, strings.TrimSpace(line))
		}
	}
	return present, nil
}

// memTotal finds MemTotal in the text of a meminfo file, whose lines of a cell begin with "Node N".
func memTotal(meminfo string) (int64, error) {
	for line := range strings.SplitSeq(meminfo, "\n") {
		_, value, found := strings.Cut(line, "MemTotal:")
		if !found {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 53)
		if err != nil || kib < 0 {
			return 0, fmt.Errorf("%w: %q", ErrFormat, line)
		}
		return kib << 10, nil
	}
	return 0, fmt.Errorf("%w: no MemTotal", ErrFormat)
}

func distances(fsys fs.FS, path string) ([]int, error) {
	text, err := Text(fsys, path)
	if err != nil {
		return nil, err
	}
	var row []int
	for field := range strings.FieldsSeq(text) {
		n, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %q", path, ErrFormat, field)
		}
		row = append(row, n)
	}
	return row, nil
}
