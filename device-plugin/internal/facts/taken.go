package facts

import (
	"maps"
	"slices"
	"sync"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/allotment"
	"podvirt.dev/device-plugin/internal/device"
	"podvirt.dev/internal/sysfs"
)

// Taken puts together what the launcher wrote, which image it is, and what the kubelet and the device plugin know of the
// node's cells, which the launcher cannot know itself. The zero value knows nothing.
type Taken struct {
	mu      sync.Mutex
	files   Snapshot
	digest  string
	given   *allotment.Given // nil: the kubelet was not asked yet
	devices []device.Resource
}

// Files takes a new state of the files and returns what is known now.
func (t *Taken) Files(s Snapshot) Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.files = s
	return t.snapshot()
}

// Image takes the digest of the image, "" for not known, and returns what is known now.
func (t *Taken) Image(digest string) Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.digest = digest
	return t.snapshot()
}

// Given takes what the kubelet says, and returns what is known now.
func (t *Taken) Given(given allotment.Given) Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.given = &given
	return t.snapshot()
}

// Devices takes what is offered, and returns what is known now.
func (t *Taken) Devices(resources []device.Resource) Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.devices = resources
	return t.snapshot()
}

// snapshot holds the cells back until the kubelet was asked: a plugin that starts must not publish for a moment that
// nobody has CPUs of his own.
func (t *Taken) snapshot() Snapshot {
	s := t.files
	if s.CPU != nil {
		cpu := *s.CPU
		if cpu.Launcher == "" {
			cpu.Launcher = t.digest
		}
		if t.given != nil && t.given.Problem != "" && len(cpu.Problems) < api.MaxProblems {
			problem := t.given.Problem
			cpu.Problems = append(slices.Clone(cpu.Problems), problem[:min(len(problem), api.MaxProblem)])
		}
		s.CPU = &cpu
	}
	if s.NUMA != nil {
		s.NUMA = t.numa(*s.NUMA)
	}
	return s
}

func (t *Taken) numa(f api.NUMAFacts) *api.NUMAFacts {
	if t.given == nil {
		return nil
	}
	f.Kubelet = t.given.Kubelet
	f.Cells = slices.Clone(f.Cells)
	units := t.unitsByCell()
	for i := range f.Cells {
		cell := &f.Cells[i]
		cpus, err := sysfs.ParseList(cell.CPUs)
		if err != nil {
			continue // the launcher wrote it; the scheduler will say what is wrong
		}
		among := func(list []int, in bool) string {
			return sysfs.FormatList(slices.DeleteFunc(slices.Clone(cpus), func(cpu int) bool { return slices.Contains(list, cpu) != in }))
		}
		cell.Exclusive = among(t.given.Exclusive, true)
		if f.Kubelet != nil && f.Kubelet.CPU == api.CPUManagerStatic {
			cell.Reserved = among(t.given.Allocatable, false)
		}
		cell.MemoryPinned = t.given.Memory[cell.ID]
		cell.Devices = units[cell.ID]
	}
	return &f
}

// unitsByCell counts healthy units that belong to a cell, in all and those that no container has.
func (t *Taken) unitsByCell() map[int]map[string]api.DeviceUnits {
	cells := map[int]map[string]api.DeviceUnits{}
	for _, resource := range t.devices {
		for _, unit := range resource.Units {
			if !unit.Healthy() {
				continue
			}
			for _, id := range unit.Cells {
				if cells[id] == nil {
					cells[id] = map[string]api.DeviceUnits{}
				}
				count := cells[id][resource.Name]
				count.Total++
				if !slices.Contains(t.given.Units[resource.Name], unit.ID) {
					count.Free++
				}
				cells[id][resource.Name] = count
			}
		}
	}
	maps.DeleteFunc(cells, func(_ int, units map[string]api.DeviceUnits) bool { return len(units) == 0 })
	return cells
}
