package domain

import (
	"slices"
	"strconv"

	"libvirt.org/go/libvirtxml"

	"podvirt.dev/api"
	"podvirt.dev/internal/sysfs"
)

// Cells are the NUMA cells of the node that a VM is bound to; the zero value binds it to none.
type Cells struct {
	List []Cell // one per guest cell
	// Memory says that the container may bind memory; without it pages come from where they are touched first.
	Memory bool
	// Flat leaves the guest with one cell, whatever the number of the node's.
	Flat bool
}

// Pins are CPUs of the VM's own; the zero value pins nothing.
type Pins struct {
	VCPUs    []int // one CPU of the node for each vCPU
	Emulator []int // where QEMU's other threads run
}

// Cell is one NUMA cell of the node.
type Cell struct {
	ID   int
	CPUs []int // those that this container may use
}

// bind binds vCPUs and memory to the cells, QEMU's own threads to all of them together. A VM in several cells gets as
// many cells of its own, so that its kernel keeps threads and memory together (scheduling.md SC-049, SC-055).
func (b *builder) bind(d *libvirtxml.Domain) {
	cells := b.host.Cells
	if len(cells.List) == 0 {
		return
	}
	var ids, cpus []int
	for _, c := range cells.List {
		ids, cpus = append(ids, c.ID), append(cpus, c.CPUs...)
	}
	d.VCPU.CPUSet = sysfs.FormatList(cpus)
	if cells.Memory {
		d.NUMATune = &libvirtxml.DomainNUMATune{Memory: &libvirtxml.DomainNUMATuneMemory{Mode: "strict", Nodeset: sysfs.FormatList(ids)}}
	}
	if len(cells.List) > 1 && !cells.Flat {
		b.guestCells(d)
	}
}

// pin gives every vCPU its CPU, and keeps QEMU's other threads on theirs (VM-024).
func (b *builder) pin(d *libvirtxml.Domain) {
	pins := b.host.Pins
	if len(pins.VCPUs) == 0 {
		return
	}
	others := sysfs.FormatList(pins.Emulator)
	d.VCPU.CPUSet = sysfs.FormatList(slices.Concat(pins.VCPUs, pins.Emulator))
	tune := &libvirtxml.DomainCPUTune{EmulatorPin: &libvirtxml.DomainCPUTuneEmulatorPin{CPUSet: others}}
	for v, cpu := range pins.VCPUs {
		tune.VCPUPin = append(tune.VCPUPin, libvirtxml.DomainCPUTuneVCPUPin{VCPU: uint(v), CPUSet: strconv.Itoa(cpu)})
	}
	for thread := range d.IOThreads {
		tune.IOThreadPin = append(tune.IOThreadPin, libvirtxml.DomainCPUTuneIOThreadPin{IOThread: thread + 1, CPUSet: others})
	}
	d.CPUTune = tune
}

// guestCells divides vCPUs and memory among the guest's cells, as the scheduler has counted them.
func (b *builder) guestCells(d *libvirtxml.Domain) {
	cells := b.host.Cells
	n := len(cells.List)
	unit := api.MiB(1)
	if b.vm.HugepagesBacked {
		unit = api.PageMiB(b.vm.Memory.Hugepages)
	}
	d.CPU.Numa = &libvirtxml.DomainNuma{}
	d.CPUTune = &libvirtxml.DomainCPUTune{}
	first := 0
	for i, host := range cells.List {
		vcpus := api.Portion(int64(b.vm.VCPUs), n, i)
		memory := api.Portion(int64(b.vm.Memory.Guest/unit), n, i) * int64(unit)
		own := make([]int, vcpus)
		for v := range own {
			own[v] = first + v
			d.CPUTune.VCPUPin = append(d.CPUTune.VCPUPin, libvirtxml.DomainCPUTuneVCPUPin{VCPU: uint(own[v]), CPUSet: sysfs.FormatList(host.CPUs)})
		}
		first += int(vcpus)
		access := ""
		if b.vm.HugepagesBacked {
			access = "shared"
		}
		d.CPU.Numa.Cell = append(d.CPU.Numa.Cell, libvirtxml.DomainCell{
			ID: new(uint(i)), CPUs: sysfs.FormatList(own), Memory: uint(memory), Unit: "MiB", MemAccess: access,
		})
		if cells.Memory {
			d.NUMATune.MemNodes = append(d.NUMATune.MemNodes, libvirtxml.DomainNUMATuneMemNode{
				CellID: uint(i), Mode: "strict", Nodeset: sysfs.FormatList([]int{host.ID}),
			})
		}
	}
}
