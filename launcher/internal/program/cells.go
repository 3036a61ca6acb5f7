package program

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/internal/sysfs"
	"podvirt.dev/launcher/internal/domain"
)

// cells finds the NUMA cells that the scheduler chose, as this container may use them.
func (s *starter) cells(logger klog.Logger, p *plan) error {
	if len(s.vm.Placement.Cells) == 0 {
		if written := s.vm.CPU.NUMA.Policy; written == api.NUMASingle || written == api.NUMACells {
			logger.Info("numa is not applied: no scheduler has chosen cells; CPUs and memory are where the kubelet allows", "numa", written)
		}
		return nil
	}
	root := os.DirFS("/")
	own, err := ownPlaces()
	if err != nil {
		return fmt.Errorf("CPUs and memory of this container: %w", err)
	}
	all, err := sysfs.Cells(root)
	if err != nil {
		return err
	}
	chosen, moved := s.vm.Placement.Cells, false
	if s.vm.CPU.Dedicated {
		if chosen, moved, err = s.follow(logger, own, all); err != nil {
			return err
		}
	}
	list, err := own.cells(chosen, all)
	if err != nil {
		return err
	}
	p.host.Cells = domain.Cells{List: list, Memory: mayBindMemory(), Flat: moved}
	if p.host.Cells.Memory {
		return nil
	}
	if policy := s.vm.CPU.NUMA.Policy; policy != api.NUMAAuto {
		return &lackError{api.KeyNUMA + ": needs seccompProfile Localhost " + api.LocalhostProfile + ": this container may not bind memory"}
	}
	logger.Info("memory is not bound to the cells: that needs seccompProfile Localhost " + api.LocalhostProfile)
	return nil
}

// places are the CPUs and memory nodes that a container may use.
type places struct{ cpus, memory []int }

func ownPlaces() (places, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return places{}, err
	}
	var p places
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) {
			p.cpus = append(p.cpus, cpu)
		}
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return places{}, err
	}
	for line := range strings.Lines(string(status)) {
		if list, found := strings.CutPrefix(line, "Mems_allowed_list:"); found {
			p.memory, err = sysfs.ParseList(strings.TrimSpace(list))
		}
	}
	return p, err
}

// cells returns the cells of those numbers. The kubelet has the last word about a container's CPUs and memory: what it
// does not allow cannot be used, whatever the scheduler has chosen (scheduling.md SC-049).
func (p places) cells(ids []int, all []sysfs.Cell) ([]domain.Cell, error) {
	var list []domain.Cell
	for _, id := range ids {
		at := slices.IndexFunc(all, func(c sysfs.Cell) bool { return c.ID == id })
		if at < 0 {
			return nil, &lackError{fmt.Sprintf("%s: %d: this node has no such NUMA cell", api.KeyNUMACell, id)}
		}
		cell := domain.Cell{ID: id}
		for _, cpu := range all[at].CPUs {
			if slices.Contains(p.cpus, cpu) {
				cell.CPUs = append(cell.CPUs, cpu)
			}
		}
		switch {
		case len(cell.CPUs) == 0:
			return nil, &lackError{fmt.Sprintf("%s: %d: the cell has CPUs %s, this container may use %s",
				api.KeyNUMACell, id, sysfs.FormatList(all[at].CPUs), sysfs.FormatList(p.cpus))}
		case !slices.Contains(p.memory, id):
			return nil, &lackError{fmt.Sprintf("%s: %d: this container may use memory of cells %s", api.KeyNUMACell, id, sysfs.FormatList(p.memory))}
		}
		list = append(list, cell)
	}
	return list, nil
}

// mayBindMemory tries: the runtime's default profile forbids the calls to who lacks CAP_SYS_NICE. The policy that it
// sets is the one that holds anyway.
func mayBindMemory() bool {
	const defaultPolicy = 0 // MPOL_DEFAULT
	_, _, errno := unix.Syscall(unix.SYS_SET_MEMPOLICY, defaultPolicy, 0, 0)
	return !errors.Is(errno, unix.EPERM) && !errors.Is(errno, unix.ENOSYS)
}
