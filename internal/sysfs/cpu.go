package sysfs

import (
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

const cpuDir = "sys/devices/system/cpu"

// OnlineCPUs returns the numbers of the CPUs that run.
func OnlineCPUs(fsys fs.FS) ([]int, error) { return list(fsys, cpuDir+"/online") }

// ThreadsPerCore returns how many hardware threads share a core: the largest number of siblings of any online CPU,
// at least 1.
func ThreadsPerCore(fsys fs.FS) (int, error) {
	cpus, err := OnlineCPUs(fsys)
	if err != nil {
		return 0, err
	}
	threads := 1
	for _, cpu := range cpus {
		threads = max(threads, len(Siblings(fsys, cpu)))
	}
	return threads, nil
}

// Siblings returns the CPUs that share a core with a CPU, itself included, in order. Of a CPU that has just gone offline,
// and on architectures without topology, it is the CPU alone.
func Siblings(fsys fs.FS, cpu int) []int {
	siblings, err := list(fsys, cpuDir+"/cpu"+strconv.Itoa(cpu)+"/topology/thread_siblings_list")
	if err != nil || len(siblings) == 0 {
		return []int{cpu}
	}
	return siblings
}

// Processor is what /proc/cpuinfo says of the first CPU.
type Processor struct {
	Vendor    string // vendor_id: GenuineIntel, AuthenticAMD, …; "" where the architecture has none
	Model     string // model name
	Microcode string // revision; "" where the kernel does not say
	PhysBits  int    // physical address bits; 0: unknown
	Flags     []string
}

// Has reports whether the kernel lists the flag.
func (p Processor) Has(flag string) bool { return slices.Contains(p.Flags, flag) }

// FirstProcessor reads /proc/cpuinfo. Fields the architecture does not have stay empty.
func FirstProcessor(fsys fs.FS) (Processor, error) {
	text, err := Text(fsys, "proc/cpuinfo")
	if err != nil {
		return Processor{}, err
	}
	first, _, _ := strings.Cut(text, "\n\n")
	var p Processor
	for line := range strings.SplitSeq(first, "\n") {
		name, value, found := strings.Cut(line, ":")
		if !found {
			continue
		}
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(name) {
		case "vendor_id":
			p.Vendor = value
		case "model name":
			p.Model = value
		case "microcode":
			p.Microcode = value
		case "flags", "Features", "features":
			p.Flags = strings.Fields(value)
		case "address sizes":
			if _, err := fmt.Sscanf(value, "%d bits physical", &p.PhysBits); err != nil {
				return Processor{}, fmt.Errorf("proc/cpuinfo: address sizes: %w: %q", ErrFormat, value)
			}
		}
	}
	return p, nil
}

// BootID returns the identifier that the kernel made up at this boot.
func BootID(fsys fs.FS) (string, error) { return Text(fsys, "proc/sys/kernel/random/boot_id") }

// KernelRelease returns what uname -r prints.
func KernelRelease(fsys fs.FS) (string, error) { return Text(fsys, "proc/sys/kernel/osrelease") }

// UnlimitedRealtime reports whether real-time threads may use a CPU without pause
// (kernel.sched_rt_runtime_us is -1). A kernel without the file has no limit to lift: false.
func UnlimitedRealtime(fsys fs.FS) bool {
	runtime, err := Int(fsys, "proc/sys/kernel/sched_rt_runtime_us")
	return err == nil && runtime == -1
}

// StableTSC reports whether the kernel trusts the time stamp counter as a clock source.
func StableTSC(fsys fs.FS) bool {
	sources, err := Text(fsys, "sys/devices/system/clocksource/clocksource0/available_clocksource")
	return err == nil && slices.Contains(strings.Fields(sources), "tsc")
}
