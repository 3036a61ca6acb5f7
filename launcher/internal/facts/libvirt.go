package facts

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"libvirt.org/go/libvirtxml"

	"podvirt.dev/api"
	"podvirt.dev/internal/sysfs"
)

// words of libvirt for what Kubernetes and podvirt call otherwise.
func libvirtArch() string {
	switch runtime.GOARCH {
	case "arm64":
		return "aarch64"
	case "amd64":
		return "x86_64"
	}
	return runtime.GOARCH
}

func libvirtType(accelerator api.Accelerator) string {
	if accelerator == api.AcceleratorKVM {
		return "kvm"
	}
	return "qemu"
}

func defaultMachine() string {
	if runtime.GOARCH == "amd64" {
		return "q35"
	}
	return "virt"
}

// tcgPhysBits is what QEMU's emulated x86 CPUs have (TCG_PHYS_ADDR_BITS in target/i386/cpu.h).
const tcgPhysBits = 40

// ask fills in everything that libvirt knows.
func (c Collector) ask(ctx context.Context, f *api.CPUFacts, accelerator api.Accelerator) (err error) {
	hypervisor, err := c.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hypervisor.Close()) }()
	library, qemu, err := hypervisor.Version()
	if err != nil {
		return err
	}
	f.Libvirt, f.QEMU = version(library), version(qemu)
	text, err := hypervisor.Capabilities()
	if err != nil {
		return err
	}
	var host libvirtxml.Caps
	if err := host.Unmarshal(text); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	text, err = hypervisor.DomainCapabilities(libvirtArch(), defaultMachine(), libvirtType(accelerator))
	if err != nil {
		return err
	}
	var domain libvirtxml.DomainCaps
	if err := domain.Unmarshal(text); err != nil {
		return fmt.Errorf("domain capabilities: %w", err)
	}
	c.fromHost(f, host)
	c.fromDomain(f, domain, accelerator)
	return expand(f, hypervisor, domain, accelerator)
}

func version(n uint32) string { return fmt.Sprintf("%d.%d.%d", n/1000000, n/1000%1000, n%1000) }

// fromHost takes machine types and the time stamp counter.
func (c Collector) fromHost(f *api.CPUFacts, host libvirtxml.Caps) {
	for _, guest := range host.Guests {
		if guest.Arch.Name != libvirtArch() {
			continue
		}
		for _, machine := range guest.Arch.Machines {
			if machine.Canonical == "" { // no alias
				f.Machines = append(f.Machines, machine.Name)
			}
		}
	}
	f.Machines = sorted(f.Machines)
	if host.Host.CPU == nil {
		return
	}
	f.Vendor = host.Host.CPU.Vendor
	if counter := host.Host.CPU.Counter; counter != nil && counter.Name == "tsc" && counter.Frequency > 0 && sysfs.StableTSC(c.Root) {
		f.TSC = &api.TSC{Hz: int64(counter.Frequency), Scaling: counter.Scaling == "yes"}
	}
}

// fromDomain takes what guests can be made of.
func (c Collector) fromDomain(f *api.CPUFacts, domain libvirtxml.DomainCaps, accelerator api.Accelerator) {
	if domain.VCPU != nil {
		f.MaxVCPUs = int(domain.VCPU.Max)
	}
	if domain.CPU != nil {
		for _, mode := range domain.CPU.Modes {
			c.fromMode(f, mode)
		}
	}
	if f.PhysBits == 0 {
		f.PhysBits = tcgPhysBits
		if processor, err := sysfs.FirstProcessor(c.Root); err == nil && accelerator == api.AcceleratorKVM {
			f.PhysBits = processor.PhysBits
		}
	}
	if domain.Features == nil {
		return
	}
	if hyperv := domain.Features.HyperV; hyperv != nil && hyperv.Supported == "yes" {
		for _, enum := range hyperv.Enums {
			if enum.Name != "features" {
				continue
			}
			for _, word := range enum.Values {
				f.HyperV = append(f.HyperV, strings.ReplaceAll(word, "_", "-")) // vendor_id in libvirt, vendor-id here
			}
		}
		f.HyperV = sorted(f.HyperV)
	}
	f.Security = c.security(*domain.Features)
}

func (c Collector) fromMode(f *api.CPUFacts, mode libvirtxml.DomainCapsCPUMode) {
	if mode.Supported != "yes" {
		return
	}
	switch mode.Name {
	case "custom":
		for _, model := range mode.Models {
			if model.Usable == "yes" {
				f.Models = append(f.Models, model.Name)
			}
		}
		f.Models = sorted(f.Models)
	case "host-model":
		if len(mode.Models) > 0 {
			f.Model = mode.Models[0].Name
		}
		if mode.Vendor != "" {
			f.Vendor = mode.Vendor
		}
		if mode.MaxPhysAddr != nil {
			f.PhysBits = int(mode.MaxPhysAddr.Limit)
		}
		for _, feature := range mode.Features {
			if feature.Policy == "disable" {
				f.Removes = append(f.Removes, feature.Name)
			} else {
				f.Adds = append(f.Adds, feature.Name)
			}
		}
		f.Adds, f.Removes = sorted(f.Adds), sorted(f.Removes)
	}
}

// security takes the kinds of launch security that QEMU offers, and from the kernel's misc controller how many guests
// of each there may be (Documentation/admin-guide/cgroup-v2.rst, misc.capacity).
func (c Collector) security(features libvirtxml.DomainCapsFeatures) map[string]api.Security {
	capacity := make(map[string]int)
	for _, file := range []string{"sys/fs/cgroup/misc.capacity", "sys/fs/cgroup/misc/misc.capacity"} {
		text, err := sysfs.Text(c.Root, file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(text) {
			if fields := strings.Fields(line); len(fields) == 2 {
				if n, err := strconv.Atoi(fields[1]); err == nil {
					capacity[fields[0]] = n
				}
			}
		}
	}
	kinds := make(map[string]api.Security)
	if sev := features.SEV; sev != nil && sev.Supported == "yes" {
		kinds["sev"] = api.Security{Guests: max(int(sev.MaxGuests), capacity["sev"])}
		if es := max(int(sev.MaxESGuests), capacity["sev_es"]); es > 0 {
			kinds["sev-es"] = api.Security{Guests: es}
			if security := features.LaunchSecurity; security != nil && offers(security.Enums, "sectype", "sev-snp") {
				kinds["sev-snp"] = api.Security{Guests: es} // SNP guests use the identifiers of ES guests
			}
		}
	}
	if tdx := features.TDX; tdx != nil && tdx.Supported == "yes" {
		kinds["tdx"] = api.Security{Guests: capacity["tdx"]}
	}
	if len(kinds) == 0 {
		return nil
	}
	return kinds
}

func offers(enums []libvirtxml.DomainCapsEnum, name, value string) bool {
	return slices.ContainsFunc(enums, func(e libvirtxml.DomainCapsEnum) bool {
		return e.Name == name && slices.Contains(e.Values, value)
	})
}

// expand asks for every feature of the host model: those that libvirt names, and those the hypervisor adds.
func expand(f *api.CPUFacts, hypervisor Hypervisor, domain libvirtxml.DomainCaps, accelerator api.Accelerator) error {
	if f.Model == "" {
		return errNoCPU
	}
	cpu := libvirtxml.DomainCPU{Mode: "custom", Match: "exact", Model: &libvirtxml.DomainCPUModel{Value: f.Model, Fallback: "forbid"}}
	for _, name := range f.Adds {
		cpu.Features = append(cpu.Features, libvirtxml.DomainCPUFeature{Policy: "require", Name: name})
	}
	for _, name := range f.Removes {
		cpu.Features = append(cpu.Features, libvirtxml.DomainCPUFeature{Policy: "disable", Name: name})
	}
	text, err := cpu.Marshal()
	if err != nil {
		return err
	}
	text, err = hypervisor.ExpandCPU(libvirtArch(), domain.Machine, libvirtType(accelerator), text)
	if err != nil {
		return fmt.Errorf("features of %s: %w", f.Model, err)
	}
	var expanded libvirtxml.DomainCPU
	if err := expanded.Unmarshal(text); err != nil {
		return fmt.Errorf("features of %s: %w", f.Model, err)
	}
	for _, feature := range expanded.Features {
		if feature.Policy != "disable" && feature.Policy != "forbid" {
			f.Features = append(f.Features, feature.Name)
		}
	}
	f.Features = sorted(f.Features)
	return nil
}

// sorted returns a list in order and without doubles.
func sorted(list []string) []string { return slices.Compact(slices.Sorted(slices.Values(list))) }
