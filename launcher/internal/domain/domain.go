// Package domain turns a resolved VM and what was found on the node into libvirt's description of the domain. It is
// pure: it opens no file and asks nobody, so that its tests are pairs of a Pod and an XML file.
package domain

import (
	"errors"
	"fmt"

	"github.com/google/uuid"
	"libvirt.org/go/libvirtxml"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/hostdev"
)

// ErrUnsupported says that the VM asks for something that this launcher image cannot give. The text says what.
var ErrUnsupported = errors.New("not in this launcher image")

// Host is what the node, the container and the launcher's earlier steps add to the VM.
type Host struct {
	UUID      uuid.UUID
	Machine   string           // versioned machine type kept from an earlier start; "": the VM's word
	RunDir    string           // directory of the sockets, /run/podvirt
	Emulator  string           // path of QEMU
	Disks     []Disk           // every disk and CD-ROM in the order of their names; the seed is one of them
	NICs      []NIC            // in the order in which the guest shall see them
	Devices   []hostdev.Device // of the host, in the order of their resources
	Firmware  Firmware
	TPMDir    string // directory of what the TPM holds
	Kernel    Kernel
	Tables    []Table
	Cells     Cells
	Pins      Pins
	Addresses Layout // PCI addresses by device, from NewLayout
}

// Disk is one disk whose files are ready.
type Disk struct {
	Options  api.Disk
	Source   string // file or device node that QEMU opens
	Block    bool   // Source is a block device
	Format   string // raw or qcow2
	Backing  *Backing
	DirectIO bool // O_DIRECT works on Source
}

// Backing is the read-only layer below an overlay.
type Backing struct {
	Source string
	Block  bool
	Format string
}

// NIC is one guest NIC whose tap device is ready.
type NIC struct {
	Options    api.NIC
	Tap        string // name of the tap device in the Pod's network namespace
	MAC        string
	MTU        int  // 0: the default of the driver
	MultiQueue bool // the tap was made with IFF_MULTI_QUEUE
	Vhost      bool // /dev/vhost-net is in the container
}

// Kernel are the files of a direct kernel boot; all empty where firmware finds something to boot. Shim is what Secure Boot
// trusts to check the kernel.
type Kernel struct{ Image, Initrd, Shim string }

// Table is an ACPI table of the user's: slic or msdm.
type Table struct{ Kind, Path string }

// Firmware are the files of UEFI; all empty with BIOS.
type Firmware struct {
	Code     string // read-only code image
	Template string // variables of a new VM
	Vars     string // variables of this VM; libvirt copies the template there
}

// Names of files in Host.RunDir.
const (
	agentSocket = "agent.sock"
	vncSocket   = "vnc.sock"
)

// SerialPipes is what the file names of the two pipes of serial port n begin with; QEMU adds .in and .out.
func SerialPipes(n int) string { return fmt.Sprintf("serial%d", n) }

// archOf are QEMU's names of the architectures this image has a QEMU for.
var archOf = map[string]string{"amd64": "x86_64", "": "x86_64"} //nolint:gochecknoglobals // constant table

// Build describes the domain. The VM must have been resolved.
func Build(vm api.Machine, host Host) (*libvirtxml.Domain, error) {
	arch, ok := archOf[vm.CPU.Arch]
	if !ok {
		return nil, fmt.Errorf("%w: QEMU for %s", ErrUnsupported, vm.CPU.Arch)
	}
	if err := checkTopology(vm); err != nil {
		return nil, err
	}
	b := builder{vm: vm, host: host}
	d := &libvirtxml.Domain{
		Type:          b.accelerator(),
		Name:          b.name(),
		UUID:          host.UUID.String(),
		GenID:         b.generation(),
		Memory:        &libvirtxml.DomainMemory{Value: uint(vm.Memory.Guest), Unit: "MiB"},
		MemoryBacking: b.memoryBacking(),
		VCPU:          &libvirtxml.DomainVCPU{Placement: "static", Value: uint(vm.VCPUs)},
		IOThreads:     b.ioThreads(),
		SysInfo:       b.sysInfo(),
		OS:            b.os(arch),
		Features:      b.features(),
		CPU:           b.cpu(),
		Clock:         b.clock(),
		OnPoweroff:    "destroy",
		OnReboot:      "restart",
		// The launcher decides what follows a panic (on-crash), and may change its mind while the guest runs.
		OnCrash: "preserve",
		PM: &libvirtxml.DomainPM{
			SuspendToMem:  &libvirtxml.DomainPMPolicy{Enabled: "no"},
			SuspendToDisk: &libvirtxml.DomainPMPolicy{Enabled: "no"},
		},
	}
	b.bind(d)
	b.pin(d)
	devices, err := b.devices()
	if err != nil {
		return nil, err
	}
	d.Devices = devices
	return d, nil
}

type builder struct {
	vm   api.Machine
	host Host
}

func (b *builder) name() string { return b.vm.ID }

// generation is the VM generation ID. By itself it is a function of the UUID, so that a start changes nothing.
func (b *builder) generation() *libvirtxml.DomainGenID {
	switch id := b.vm.GenID; id {
	case "off":
		return nil
	case "", "auto":
		return &libvirtxml.DomainGenID{Value: uuid.NewSHA1(b.host.UUID, []byte("generation")).String()}
	default:
		return &libvirtxml.DomainGenID{Value: id}
	}
}

func (b *builder) accelerator() string {
	if b.vm.CPU.Accelerator == api.AcceleratorTCG {
		return "qemu"
	}
	return "kvm"
}

func (b *builder) memoryBacking() *libvirtxml.DomainMemoryBacking {
	if b.vm.Memory.Hugepages == "" {
		return nil
	}
	return &libvirtxml.DomainMemoryBacking{
		MemoryHugePages: &libvirtxml.DomainMemoryHugepages{
			Hugepages: []libvirtxml.DomainMemoryHugepage{{Size: uint(api.PageBytes(b.vm.Memory.Hugepages) >> 10), Unit: "KiB"}},
		},
		MemorySource: &libvirtxml.DomainMemorySource{Type: "memfd"},
		MemoryAccess: &libvirtxml.DomainMemoryAccess{Mode: "shared"},
	}
}

// ioThreads is one thread for all disks, unless none of them wants it.
func (b *builder) ioThreads() uint {
	for _, d := range b.host.Disks {
		if hasIOThread(d.Options) {
			return 1
		}
	}
	return 0
}

func (b *builder) os(arch string) *libvirtxml.DomainOS {
	machine := b.host.Machine
	if machine == "" {
		machine = b.vm.Machine
	}
	os := &libvirtxml.DomainOS{
		Type:   &libvirtxml.DomainOSType{Arch: arch, Machine: machine, Type: "hvm"},
		SMBios: &libvirtxml.DomainSMBios{Mode: "sysinfo"},
	}
	if k := b.host.Kernel; k.Image != "" {
		os.Kernel, os.Initrd, os.Shim, os.Cmdline = k.Image, k.Initrd, k.Shim, b.vm.Kernel.Args
	}
	for _, t := range b.host.Tables {
		if os.ACPI == nil {
			os.ACPI = &libvirtxml.DomainACPI{}
		}
		os.ACPI.Tables = append(os.ACPI.Tables, libvirtxml.DomainACPITable{Type: t.Kind, Path: t.Path})
	}
	fw := b.vm.Firmware
	if fw.Menu > 0 {
		os.BootMenu = &libvirtxml.DomainBootMenu{Enable: "yes", Timeout: fmt.Sprint(fw.Menu.Milliseconds())}
	}
	if fw.Kind == api.FirmwareUEFI {
		secure := ""
		if fw.SecureBoot {
			secure = "yes"
		}
		os.Loader = &libvirtxml.DomainLoader{
			Path: b.host.Firmware.Code, Readonly: "yes", Secure: secure, Type: "pflash", Format: "raw",
		}
		os.NVRam = &libvirtxml.DomainNVRam{
			NVRam: b.host.Firmware.Vars, Template: b.host.Firmware.Template, Format: "raw", TemplateFormat: "raw",
		}
		return os
	}
	if fw.Serial {
		os.BIOS = &libvirtxml.DomainBIOS{UseSerial: "yes"}
	}
	return os
}

func (b *builder) features() *libvirtxml.DomainFeatureList {
	f := &libvirtxml.DomainFeatureList{
		ACPI:       &libvirtxml.DomainFeature{},
		APIC:       &libvirtxml.DomainFeatureAPIC{},
		PAE:        &libvirtxml.DomainFeature{},
		VMCoreInfo: &libvirtxml.DomainFeatureState{State: "on"},
	}
	switch smm := b.vm.SMM; {
	case b.vm.Firmware.SecureBoot || smm != nil && *smm:
		f.SMM = &libvirtxml.DomainFeatureSMM{State: "on"}
	case smm != nil:
		f.SMM = &libvirtxml.DomainFeatureSMM{State: "off"}
	}
	return f
}

func (b *builder) clock() *libvirtxml.DomainClock {
	return &libvirtxml.DomainClock{
		Offset: "utc",
		Timer: []libvirtxml.DomainTimer{
			{Name: "rtc", TickPolicy: "catchup"}, {Name: "pit", TickPolicy: "delay"}, {Name: "hpet", Present: "no"},
		},
	}
}

func (b *builder) cpu() *libvirtxml.DomainCPU {
	t := b.vm.CPU.Topology
	cpu := &libvirtxml.DomainCPU{}
	switch b.vm.CPU.Model {
	case api.CPUHostPassthrough:
		cpu.Mode, cpu.Check = "host-passthrough", "none"
	case api.CPUMaximum:
		cpu.Mode, cpu.Check = "maximum", "none"
	case api.CPUHostModel, "":
		cpu.Mode, cpu.Check = "host-model", "partial"
	default:
		cpu.Mode, cpu.Match, cpu.Check = "custom", "exact", "partial"
		cpu.Model = &libvirtxml.DomainCPUModel{Fallback: "forbid", Value: b.vm.CPU.Model}
	}
	if t != nil {
		cpu.Topology = &libvirtxml.DomainCPUTopology{
			Sockets: t.Sockets, Dies: t.Dies, Clusters: t.Clusters, Cores: t.Cores, Threads: t.Threads,
		}
	}
	for _, f := range b.vm.CPU.Features {
		cpu.Features = append(cpu.Features, libvirtxml.DomainCPUFeature{Name: f.Name, Policy: string(f.Policy)})
	}
	return cpu
}
