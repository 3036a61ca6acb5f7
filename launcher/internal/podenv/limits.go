package podenv

import (
	"io/fs"
	"strconv"
	"strings"

	"podvirt.dev/internal/sysfs"
)

// noLimit is what cgroup v1 shows as memory limit, or more, where there is none: the largest page-aligned number.
const noLimit = 1 << 60

// cgroupCPU are the places of a CPU quota and its period: cgroup v2 in a namespace of its own, then the v1 mounts that
// a container sees, under either name of the hierarchy.
func cgroupCPU(fsys fs.FS) (quota int64, known bool) {
	if text, err := sysfs.Text(fsys, "sys/fs/cgroup/cpu.max"); err == nil {
		q, p, _ := strings.Cut(text, " ")
		return milli(q, p), true
	}
	for _, dir := range []string{"cpu", "cpu,cpuacct", "cpuacct,cpu"} {
		q, err1 := sysfs.Text(fsys, "sys/fs/cgroup/"+dir+"/cpu.cfs_quota_us")
		p, err2 := sysfs.Text(fsys, "sys/fs/cgroup/"+dir+"/cpu.cfs_period_us")
		if err1 == nil && err2 == nil {
			return milli(q, p), true
		}
	}
	return 0, false
}

// milli returns quota per period in thousandths of a CPU, rounded up; 0 where the quota is "max" or negative.
func milli(quota, period string) int64 {
	q, err1 := strconv.ParseInt(quota, 10, 64)
	p, err2 := strconv.ParseInt(period, 10, 64)
	if err1 != nil || err2 != nil || q <= 0 || p <= 0 || q > noLimit/1000 {
		return 0
	}
	return (q*1000 + p - 1) / p
}

// wantedCPU decides which CPU limit the container has, in thousandths of a CPU; 0: none.
//
// The downward API shows the node's allocatable CPUs where there is no limit, so the cgroup decides whether there is
// one. How large it is the file says better: after an in-place resize it holds what is wanted, not what is there yet.
// Exclusive CPUs of the static CPU manager are limited by their cpuset and may have no quota.
func wantedCPU(fsys fs.FS, projected int64) int64 {
	quota, known := cgroupCPU(fsys)
	switch {
	case !known:
		return projected
	case quota > 0 && projected > 0:
		return projected
	case quota > 0:
		return quota
	case exclusive(fsys, projected):
		return projected
	default:
		return 0
	}
}

// exclusive reports whether the container runs on as many CPUs as projected, and fewer than the machine has.
func exclusive(fsys fs.FS, projected int64) bool {
	online, err := sysfs.OnlineCPUs(fsys)
	if err != nil {
		return false
	}
	for _, file := range []string{"cpuset.cpus.effective", "cpuset/cpuset.effective_cpus", "cpuset/cpuset.cpus"} {
		text, err := sysfs.Text(fsys, "sys/fs/cgroup/"+file)
		if err != nil {
			continue
		}
		cpus, err := sysfs.ParseList(text)
		return err == nil && len(cpus) < len(online) && int64(len(cpus))*1000 == projected
	}
	return false
}

// wantedMemory decides which memory limit the container has, in bytes; 0: none. The reasons are those of wantedCPU.
func wantedMemory(fsys fs.FS, projected int64) int64 {
	for _, file := range []string{"memory.max", "memory/memory.limit_in_bytes"} {
		text, err := sysfs.Text(fsys, "sys/fs/cgroup/"+file)
		if err != nil {
			continue
		}
		limit, err := strconv.ParseInt(text, 10, 64)
		switch {
		case err != nil || limit <= 0 || limit >= noLimit: // "max" is no number
			return 0
		case projected > 0:
			return projected
		default:
			return limit
		}
	}
	return projected
}
