package libvirt

import (
	"time"

	"libvirt.org/go/libvirt"

	"podvirt.dev/launcher/internal/virt"
)

// Stats asks for all figures in one call, so that a scrape costs one round trip to QEMU.
func (d *Domain) Stats() (virt.Stats, error) {
	types := libvirt.DOMAIN_STATS_STATE | libvirt.DOMAIN_STATS_CPU_TOTAL | libvirt.DOMAIN_STATS_BALLOON |
		libvirt.DOMAIN_STATS_VCPU | libvirt.DOMAIN_STATS_INTERFACE | libvirt.DOMAIN_STATS_BLOCK
	list, err := d.conn.GetAllDomainStats([]*libvirt.Domain{d.d}, types, 0)
	if err != nil {
		return virt.Stats{}, wrap(err)
	}
	if len(list) != 1 {
		return virt.Stats{}, virt.ErrDomainNotFound
	}
	defer func() { _ = list[0].Domain.Free() }()
	return statsOf(list[0]), nil
}

func statsOf(in libvirt.DomainStats) virt.Stats {
	var out virt.Stats
	if in.State != nil {
		out.State = stateOf(in.State.State)
	}
	if c := in.Cpu; c != nil {
		out.CPU = virt.CPUStats{Total: ns(c.Time), User: ns(c.User), System: ns(c.System)}
	}
	for _, v := range in.Vcpu {
		out.VCPUs = append(out.VCPUs, virt.VCPUStats{Time: ns(v.Time), Wait: ns(v.Wait), Delay: ns(v.Delay)})
	}
	if b := in.Balloon; b != nil {
		out.Memory = memoryStats(b)
	}
	for _, b := range in.Block {
		out.Disks = append(out.Disks, virt.DiskStats{
			Target: b.Name, Path: b.Path, ReadRequests: b.RdReqs, WriteRequests: b.WrReqs,
			ReadBytes: b.RdBytes, WriteBytes: b.WrBytes, ReadTime: ns(b.RdTimes), WriteTime: ns(b.WrTimes),
			FlushRequests: b.FlReqs, FlushTime: ns(b.FlTimes),
			Allocation: b.Allocation, Capacity: b.Capacity, PhysicalSize: b.Physical,
		})
	}
	for _, n := range in.Net {
		out.NICs = append(out.NICs, virt.NICStats{
			Target: n.Name, RxBytes: n.RxBytes, RxPackets: n.RxPkts, RxErrors: n.RxErrs, RxDrops: n.RxDrop,
			TxBytes: n.TxBytes, TxPackets: n.TxPkts, TxErrors: n.TxErrs, TxDrops: n.TxDrop,
		})
	}
	return out
}

// memoryStats: libvirt counts memory in KiB and swap traffic, against its documentation, in KiB as well.
func memoryStats(b *libvirt.DomainStatsBalloon) virt.MemoryStats {
	const kib = 1024
	out := virt.MemoryStats{
		Actual: b.Current * kib, Maximum: b.Maximum * kib, Available: b.Available * kib, Unused: b.Unused * kib,
		Usable: b.Usable * kib, Cached: b.DiskCaches * kib, Resident: b.Rss * kib,
		MajorFaults: b.MajorFault, MinorFaults: b.MinorFault,
		SwapInBytes: b.SwapIn * kib, SwapOutBytes: b.SwapOut * kib,
	}
	if b.LastUpdateSet {
		out.LastUpdate = time.Unix(int64(b.LastUpdate), 0) // seconds since 1970, far from overflow
	}
	return out
}

func ns(n uint64) time.Duration { return time.Duration(n) }
