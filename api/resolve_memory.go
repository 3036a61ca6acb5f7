package api

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// MinMemory is the least that a guest is given (VM-040).
const MinMemory MiB = 16

func (r *resolver) memory() {
	r.hugepages()
	m := &r.m
	f := r.footprint()
	limit := MiB(r.pod.Limits.Memory >> 20)
	switch {
	case m.Memory.Guest > 0:
		f.Guest = m.Memory.Guest
	case m.HugepagesBacked:
		r.fail("memory", fmt.Sprintf("%s: not set, and container vm has no limit of hugepages-%s to take it from", KeyMemory, m.Memory.Hugepages))
	case limit > 0:
		m.Memory.Guest = f.Fit(limit)
		f.Guest = m.Memory.Guest
		if m.Memory.Guest < MinMemory {
			f.Guest = 0
			r.fail("memory", fmt.Sprintf("%s: limits.memory %s less %s overhead leaves less than 16Mi for the guest",
				KeyMemory, showBytes(r.pod.Limits.Memory), showMiB(f.Overhead())))
		}
	case r.values["memory"] == nil && r.pod.Annotations[KeyMemory] == "":
		r.fail("memory", KeyMemory+": not set, and container vm has no memory limit to take it from")
	}
	m.Overhead = f.Overhead()
	r.memoryLimit(limit)
}

// memoryLimit refuses a limit that guest memory, if it counts, and overhead do not fit in.
func (r *resolver) memoryLimit(limit MiB) {
	m := &r.m
	switch need := m.Memory.Guest + m.Overhead; {
	case limit <= 0:
	case m.HugepagesBacked:
		if m.Overhead > limit {
			r.fail("hugepages", fmt.Sprintf("%s: %s overhead exceeds limits.memory %s: raise the limit to %s",
				KeyHugepages, showMiB(m.Overhead), showBytes(r.pod.Limits.Memory), inMiB(m.Overhead)))
		}
	case r.word("memory") != "" && need > limit:
		r.value("memory", r.word("memory"), fmt.Sprintf(
			"%s + %s overhead = %s exceeds limits.memory %s: raise the limit to %s or lower memory to %s",
			showMiB(m.Memory.Guest), showMiB(m.Overhead), inMiB(need), showBytes(r.pod.Limits.Memory),
			inMiB(need), inMiB(max(0, limit-m.Overhead))))
	}
}

// PageMiB returns the size of a huge page as Kubernetes writes it, in MiB and at least 1: guest memory is whole MiB.
func PageMiB(size string) MiB { return max(1, toMiB(toBytes(size))) }

// hugepages takes page size and guest memory from the limit of huge pages, and wants the two to agree with what the
// annotations say (VM-041).
func (r *resolver) hugepages() {
	m := &r.m
	limits := maps.Clone(r.pod.Limits.Hugepages)
	maps.DeleteFunc(limits, func(_ string, amount int64) bool { return amount == 0 })
	sizes := slices.Sorted(maps.Keys(limits))
	fail := func(text string) { r.fail("hugepages", KeyHugepages+": "+text) }
	if len(sizes) > 1 {
		fail("limits.hugepages-" + strings.Join(sizes, ", limits.hugepages-") + ": two page sizes requested")
	}
	if m.Memory.Hugepages == "" && len(sizes) > 0 {
		m.Memory.Hugepages = sizes[0]
	}
	size := m.Memory.Hugepages
	if size == "" {
		return
	}
	m.HugepagesBacked = true
	pool := limits[size]
	asked := m.Memory.Guest
	if asked == 0 {
		m.Memory.Guest = MiB(pool >> 20)
	}
	visible := r.pod.Requests != nil || len(sizes) > 0
	switch {
	case m.Memory.Guest%PageMiB(size) != 0:
		fail(fmt.Sprintf("%s is not a multiple of %s", showMiB(m.Memory.Guest), size))
	case asked != 0 && visible && pool != asked.Bytes():
		fail(fmt.Sprintf("limits.hugepages-%s is %s, memory is %s: they must be equal", size, showBytes(pool), showMiB(asked)))
	}
}

// numa fills in the policy and refuses what cannot be divided, and what the Pod's seccomp profile forbids.
func (r *resolver) numa() {
	m := &r.m
	policy := &m.CPU.NUMA
	written := r.word("numa")
	if policy.Policy == "" {
		policy.Policy = NUMANone
		if m.HugepagesBacked || m.CPU.Dedicated {
			policy.Policy = NUMAAuto
		}
	}
	if written == "" || policy.Policy == NUMANone {
		return
	}
	if r.pod.Seccomp == "RuntimeDefault" {
		r.value("numa", written, "needs seccompProfile Localhost "+LocalhostProfile+"; the Pod says RuntimeDefault")
	}
	if policy.Policy != NUMACells {
		return
	}
	if m.VCPUs%policy.Cells != 0 {
		r.value("numa", written, fmt.Sprintf("%d vCPUs cannot be divided into %d cells", m.VCPUs, policy.Cells))
	}
	unit := MiB(1)
	switch {
	case m.HugepagesBacked:
		unit = PageMiB(m.Memory.Hugepages)
	case r.word("memory") == "":
		return // whatever the limit leaves is given to the cells as even as it goes
	}
	if m.Memory.Guest/unit%MiB(policy.Cells) != 0 {
		r.value("numa", written, fmt.Sprintf("%s cannot be divided into %d cells", showMiB(m.Memory.Guest), policy.Cells))
	}
}

// PageBytes returns the size of a huge page as Kubernetes writes it, in bytes; 0: it is no size.
func PageBytes(size string) int64 { return toBytes(size) }

// Portion is the part that cell i of n gets of pages or vCPUs: as even as it goes, the first cells get what is left.
// Scheduler and launcher divide alike.
func Portion(amount int64, n, i int) int64 {
	part := amount / int64(n)
	if int64(i) < amount%int64(n) {
		part++
	}
	return part
}
