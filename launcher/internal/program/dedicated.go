package program

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/internal/sysfs"
	"podvirt.dev/launcher/internal/domain"
)

// dedicated gives each vCPU one of the CPUs that the kubelet's static CPU manager set aside for this container (VM-024).
// A container without CPUs of its own may use all that are shared, and those do not number what it has asked for.
func (s *starter) dedicated(p *plan) error {
	if !s.vm.CPU.Dedicated {
		return nil
	}
	own, err := ownPlaces()
	if err != nil {
		return fmt.Errorf("CPUs of this container: %w", err)
	}
	if len(own.cpus) != s.vm.CPUs {
		return &lackError{fmt.Sprintf("%s: \"true\": the node gave %d shared CPUs instead of %d exclusive ones: its kubelet has no static CPU manager",
			api.KeyCPUDedicated, len(own.cpus), s.vm.CPUs)}
	}
	cells := [][]int{own.cpus}
	if list := p.host.Cells.List; len(list) > 1 && !p.host.Cells.Flat {
		cells = nil
		for _, c := range list {
			cells = append(cells, c.CPUs)
		}
	}
	p.host.Pins = pins(os.DirFS("/"), s.vm, cells)
	return nil
}

// pins takes the CPUs of each guest cell in the order of the node's cores, so that guest threads of one core are threads
// of one core. What is left is for QEMU's own threads; where they share, all of the VM's CPUs are.
func pins(root fs.FS, vm api.Machine, cells [][]int) domain.Pins {
	var p domain.Pins
	var left, all []int
	taken := map[int]bool{}
	for i, cpus := range cells {
		cpus = slices.Clone(cpus)
		slices.SortFunc(cpus, func(a, b int) int { return cmp.Or(sysfs.Siblings(root, a)[0]-sysfs.Siblings(root, b)[0], a-b) })
		need := int(api.Portion(int64(vm.VCPUs), len(cells), i))
		for _, cpu := range cpus {
			switch {
			case taken[cpu]: // two guest cells in one of the node's
			case need > 0:
				p.VCPUs, need = append(p.VCPUs, cpu), need-1
				taken[cpu] = true
			case !slices.Contains(left, cpu):
				left = append(left, cpu)
			}
		}
		all = append(all, cpus...)
	}
	left = slices.DeleteFunc(left, func(cpu int) bool { return taken[cpu] })
	p.Emulator = left
	if vm.CPU.Emulator == api.EmulatorShared {
		p.Emulator = all
	}
	slices.Sort(p.Emulator)
	p.Emulator = slices.Compact(p.Emulator)
	return p
}

// follow returns the cells to use: those that the scheduler chose, unless the kubelet's CPU manager gave CPUs elsewhere.
// CPUs cannot be moved, memory can be taken beside them if the pages are there (scheduling.md SC-050).
func (s *starter) follow(logger klog.Logger, own places, all []sysfs.Cell) (cells []int, moved bool, err error) {
	chosen := s.vm.Placement.Cells
	if own.suffice(chosen, all, s.vm.VCPUs) {
		return chosen, false, nil
	}
	var free int64
	for _, c := range all {
		if !slices.ContainsFunc(c.CPUs, func(cpu int) bool { return slices.Contains(own.cpus, cpu) }) {
			continue
		}
		cells = append(cells, c.ID)
		for _, pool := range c.Hugepages {
			if pool.SizeName() == s.vm.Memory.Hugepages {
				free += pool.Free
			}
		}
	}
	told := fmt.Sprintf("%s: %s: the kubelet gave CPUs %s of cells %s", api.KeyNUMACell, sysfs.FormatList(chosen), sysfs.FormatList(own.cpus),
		sysfs.FormatList(cells))
	if size := s.vm.Memory.Hugepages; size != "" && free < s.vm.Memory.Guest.Bytes()/api.PageBytes(size) {
		return nil, false, &lackError{fmt.Sprintf("%s, which have %d free %s pages", told, free, size)}
	}
	s.warn(logger, told+"; memory is taken there")
	return cells, true, nil
}

// suffice says whether each of the chosen cells has CPUs enough for its part of the vCPUs.
func (p places) suffice(chosen []int, all []sysfs.Cell, vcpus int) bool {
	need := map[int]int{}
	for i, id := range chosen {
		need[id] += int(api.Portion(int64(vcpus), len(chosen), i))
	}
	for _, c := range all {
		for _, cpu := range c.CPUs {
			if slices.Contains(p.cpus, cpu) {
				need[c.ID]--
			}
		}
	}
	for _, id := range chosen {
		if need[id] > 0 {
			return false
		}
	}
	return true
}
