// Package facts finds out what VMs can be on this node and prints it as the JSON of the node annotations podvirt.dev/cpu
// and podvirt.dev/numa (scheduling.md 2.1). The very QEMU and libvirt that will run the VMs are asked, and a guest is
// really run: no table claims what a host can do.
package facts

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/internal/sysfs"
)

// Hypervisor is what of libvirt's QEMU driver is asked. All texts are libvirt's XML.
type Hypervisor interface {
	// Version of libvirt and QEMU, each major*1000000 + minor*1000 + release.
	Version() (library, hypervisor uint32, err error)
	// Capabilities of the host.
	Capabilities() (string, error)
	// DomainCapabilities of QEMU for an architecture, a machine type and an accelerator ("kvm", "qemu").
	DomainCapabilities(arch, machine, accelerator string) (string, error)
	// ExpandCPU returns the CPU description with every feature written out that a guest with it would have.
	ExpandCPU(arch, machine, accelerator, cpu string) (string, error)
	Close() error
}

// Collector takes facts.
type Collector struct {
	Root     sysfs.FS // the root directory of the container, with the host's sys and proc
	Prober   Prober
	Wanted   []api.Accelerator                             // to try, best first
	Open     func(ctx context.Context) (Hypervisor, error) // libvirt
	Launcher string                                        // digest of the launcher image; "": not known
	Now      func() time.Time
}

// firmwareFiles are the files of the image behind each kind of firmware (Debian's seabios and ovmf): a kind is offered
// where one of its files is there.
func firmwareFiles(arch string) map[string][]string {
	if arch == "arm64" {
		return map[string][]string{"uefi": {"usr/share/AAVMF/AAVMF_CODE.fd"}}
	}
	return map[string][]string{
		"bios":             {"usr/share/seabios/bios-256k.bin", "usr/share/qemu/bios-256k.bin"},
		"uefi":             {"usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_CODE.fd"},
		"uefi-secure-boot": {"usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "usr/share/OVMF/OVMF_CODE_4M.ms.fd"},
	}
}

// CPU takes the facts of podvirt.dev/cpu. What cannot be found out is left out and stands in the problems; an error
// means that not even the boot is known. Where libvirt does not answer the accelerator is none: a list of models is
// never invented and never old.
func (c Collector) CPU(ctx context.Context) (api.CPUFacts, error) {
	boot, err := sysfs.BootID(c.Root)
	if err != nil {
		return api.CPUFacts{}, fmt.Errorf("boot ID: %w", err)
	}
	kernel, err := sysfs.KernelRelease(c.Root)
	if err != nil {
		return api.CPUFacts{}, fmt.Errorf("kernel release: %w", err)
	}
	f := api.CPUFacts{
		V: api.FactsVersion, Boot: boot, Observed: c.Now().UTC().Truncate(time.Second), Launcher: c.Launcher, Kernel: kernel,
		Arch: runtime.GOARCH, Realtime: sysfs.UnlimitedRealtime(c.Root), Firmware: c.firmware(),
	}
	accelerator, problems := c.Prober.Accelerator(ctx, c.Wanted)
	if accelerator != api.AcceleratorNone {
		asked := f
		if err := c.ask(ctx, &asked, accelerator); err != nil {
			problems = append(problems, "libvirt: "+err.Error())
			accelerator = api.AcceleratorNone
		} else {
			f = asked
		}
		if f.NICs, err = c.Prober.nics(ctx); err != nil {
			problems = append(problems, "NIC models: "+err.Error())
		}
	}
	f.Accelerator = accelerator
	f.Problems = bound(problems)
	return f, nil
}

// bound cuts problems to what the annotation holds.
func bound(problems []string) []string {
	out := make([]string, 0, api.MaxProblems)
	for _, problem := range problems {
		problem = strings.Join(strings.Fields(problem), " ")
		if len(problem) > api.MaxProblem {
			problem = strings.ToValidUTF8(problem[:api.MaxProblem], "")
		}
		if len(out) < api.MaxProblems {
			out = append(out, problem)
		}
	}
	return out
}

func (c Collector) firmware() []string {
	var kinds []string
	for kind, files := range firmwareFiles(runtime.GOARCH) {
		if slices.ContainsFunc(files, func(file string) bool { _, err := fs.Stat(c.Root, file); return err == nil }) {
			kinds = append(kinds, kind)
		}
	}
	slices.Sort(kinds)
	return kinds
}

// NUMA takes the facts of podvirt.dev/numa that the kernel knows. What the kubelet does with CPUs and memory, and the
// devices of each cell, are the device plugin's to add.
func (c Collector) NUMA() (api.NUMAFacts, error) {
	boot, err := sysfs.BootID(c.Root)
	if err != nil {
		return api.NUMAFacts{}, fmt.Errorf("boot ID: %w", err)
	}
	threads, err := sysfs.ThreadsPerCore(c.Root)
	if err != nil {
		return api.NUMAFacts{}, fmt.Errorf("CPUs: %w", err)
	}
	cells, err := sysfs.Cells(c.Root)
	if err != nil {
		return api.NUMAFacts{}, err
	}
	f := api.NUMAFacts{V: api.FactsVersion, Boot: boot, Observed: c.Now().UTC().Truncate(time.Second), ThreadsPerCore: threads}
	for _, cell := range cells {
		pages := make(map[string]api.Pages, len(cell.Hugepages))
		for _, pool := range cell.Hugepages {
			pages[pool.SizeName()] = api.Pages{Total: pool.Total, Free: pool.Free}
		}
		f.Cells = append(f.Cells, api.Cell{
			ID: cell.ID, CPUs: sysfs.FormatList(cell.CPUs), Memory: cell.Memory, Hugepages: pages, Distances: cell.Distances,
		})
	}
	return f, nil
}

// errNoCPU says that libvirt described no CPU that a guest could have.
var errNoCPU = errors.New("no host-model CPU")
