package virt

import "time"

// Stats are the figures of a running domain. Durations are totals since the start of QEMU; sizes are bytes.
// What the hypervisor does not tell is zero.
type Stats struct {
	State  State
	CPU    CPUStats
	VCPUs  []VCPUStats
	Memory MemoryStats
	Disks  []DiskStats
	NICs   []NICStats
}

// CPUStats is the CPU time of the whole of QEMU.
type CPUStats struct{ Total, User, System time.Duration }

// VCPUStats is the CPU time of one vCPU thread; Wait is the time it was runnable and did not run, Delay the same as the
// kernel's scheduler statistics count it.
type VCPUStats struct{ Time, Wait, Delay time.Duration }

// MemoryStats as the balloon driver of the guest tells them; Resident is the host's figure for QEMU.
type MemoryStats struct {
	Actual, Maximum                   uint64 // balloon now, balloon at most
	Available, Unused, Usable, Cached uint64
	Resident                          uint64
	MajorFaults, MinorFaults          uint64
	SwapInBytes, SwapOutBytes         uint64
	LastUpdate                        time.Time
}

// DiskStats of one disk, by the name of its target ("vda") and its alias ("ua-root").
type DiskStats struct {
	Target, Path                       string
	ReadRequests, WriteRequests        uint64
	ReadBytes, WriteBytes              uint64
	ReadTime, WriteTime                time.Duration
	FlushRequests                      uint64
	FlushTime                          time.Duration
	Allocation, Capacity, PhysicalSize uint64
}

// NICStats of one NIC, seen from the host's end of the tap device.
type NICStats struct {
	Target                                string
	RxBytes, RxPackets, RxErrors, RxDrops uint64
	TxBytes, TxPackets, TxErrors, TxDrops uint64
}
