package api

// Footprint is what the overhead of a VM is computed from (vm.md 2.5).
type Footprint struct {
	Guest          MiB // guest memory
	VCPUs          int // at start
	IOThreads      int
	Devices        int // disks, CD-ROMs, seed, config disks, NICs; one more per 16 queue pairs of a NIC beyond the first 16
	Video          bool
	VideoRAM       MiB // 16 where less
	TPM            bool
	Shares         int // virtiofs
	VFIO           int // devices passed through
	LaunchSecurity bool
	TCG            bool
	TCGCache       MiB // 0: the default of 128
	Extra          MiB // podvirt.dev/memory-overhead
	FactorTenths   int // memory.overhead-factor; 0 is 10
}

// The terms of the overhead in MiB. They are the first table of vm.md 2.5; measurement may only lower them.
const (
	OverheadLauncher       = 32
	OverheadQEMU           = 36
	OverheadCtl            = 16
	OverheadSlack          = 6
	OverheadMigration      = 16
	OverheadPageTables     = 512 // MiB of guest memory per MiB
	OverheadVCPU           = 3
	OverheadIOThread       = 1
	OverheadDevice         = 2
	OverheadVideo          = 16
	OverheadTPM            = 12
	OverheadShare          = 12
	OverheadVFIO           = 64
	OverheadVFIODevice     = 8
	OverheadLaunchSecurity = 256
	OverheadTCG            = 128

	// OverheadFixed is what every VM has.
	OverheadFixed = OverheadLauncher + OverheadQEMU + OverheadCtl + OverheadSlack + OverheadMigration
)

// Overhead returns what the cgroup of container vm must hold beyond guest memory, in integer MiB arithmetic so that
// launcher, policies and documentation give one number: limits.memory = guest memory + overhead.
func (f Footprint) Overhead() MiB {
	factor := MiB(max(10, f.FactorTenths))
	return ceilDiv((f.fixed()+ceilDiv(f.Guest, OverheadPageTables))*factor, 10)
}

// fixed is the part that does not depend on guest memory.
func (f Footprint) fixed() MiB {
	sum := MiB(OverheadFixed + OverheadVCPU*f.VCPUs + OverheadIOThread*f.IOThreads + OverheadDevice*f.Devices + OverheadShare*f.Shares)
	if f.Video {
		sum += max(OverheadVideo, f.VideoRAM)
	}
	if f.TPM {
		sum += OverheadTPM
	}
	if f.VFIO > 0 {
		sum += OverheadVFIO + MiB(OverheadVFIODevice*f.VFIO)
	}
	if f.LaunchSecurity {
		sum += OverheadLaunchSecurity
	}
	if f.TCG {
		sum += f.tcgCache()
	}
	return sum + f.Extra
}

func (f Footprint) tcgCache() MiB {
	if f.TCGCache > 0 {
		return f.TCGCache
	}
	return OverheadTCG
}

// Fit returns the most guest memory that a limit holds together with its overhead; 0 or less: none. Guest of f is not
// looked at.
func (f Footprint) Fit(limit MiB) MiB {
	low, high := MiB(0), limit
	for low < high {
		middle := low + (high-low+1)/2
		f.Guest = middle
		if middle+f.Overhead() <= limit {
			low = middle
		} else {
			high = middle - 1
		}
	}
	return low
}

func ceilDiv(a, b MiB) MiB { return (a + b - 1) / b }
