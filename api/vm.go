package api

import "time"

// MiB is an amount of memory in mebibytes; what users write is rounded up to whole ones (VM-040).
type MiB int64

// Bytes returns the amount in bytes.
func (m MiB) Bytes() int64 { return int64(m) << 20 }

// VM is what the annotations of one Pod say, and no more: a zero value, nil or "" means that the user said nothing.
// [Resolve] fills in what then holds.
type VM struct {
	Name     string   // podvirt.dev/vm
	Identity Identity // podvirt.dev/identity
	UUID     string   // podvirt.dev/uuid, lower case
	Hostname string   // podvirt.dev/hostname
	GenID    string   // podvirt.dev/genid: auto, off or a UUID in lower case
	SMBIOS   SMBIOS   // podvirt.dev/smbios

	CPU       CPU
	Memory    Memory
	Machine   string // podvirt.dev/machine: a family (q35) or a versioned name (pc-q35-10.0)
	SMM       *bool  // option smm of podvirt.dev/features
	Firmware  Firmware
	Kernel    Kernel
	TPM       TPM
	Console   Console
	Virtio    string // podvirt.dev/virtio
	Serial    int    // podvirt.dev/serial: further serial ports, 0 to 3
	Agent     *bool  // podvirt.dev/agent
	Video     Video
	RNG       RNG
	Watchdog  Watchdog
	Lifecycle Lifecycle
	Guest     Guest

	// Disks, NICs, Shares, Configs and Devices have one entry per annotation KIND.NAME, sorted by name.
	Disks   []Disk
	NICs    []NIC
	Shares  []Share
	Configs []ConfigDisk
	Devices []Device

	Verbosity *int  // podvirt.dev/verbosity, 0 to 9
	Metrics   *bool // podvirt.dev/metrics
	TapOwner  *Owner

	// Placement is what the scheduler wrote inside the Binding.
	Placement Placement
}

// Identity says which name UUID, MACs, instance-id and guest host name are made from.
type Identity string

// The values of podvirt.dev/identity.
const (
	IdentityVM  Identity = "vm"  // the name in podvirt.dev/vm
	IdentityPod Identity = "pod" // the Pod's name: members of a pool
)

// Accelerator is what runs the guest's instructions.
type Accelerator string

// The values of podvirt.dev/accelerator; node facts also know [AcceleratorNone].
const (
	AcceleratorKVM  Accelerator = "kvm"
	AcceleratorTCG  Accelerator = "tcg"
	AcceleratorNone Accelerator = "none"
)

// CPU is everything about virtual CPUs.
type CPU struct {
	Accelerator Accelerator
	Arch        string // amd64, arm64, s390x, riscv64
	Model       string // host-model, host-passthrough, max or a named model, case-sensitive
	Features    []CPUFeature
	Topology    *Topology
	Max         int // podvirt.dev/cpu-max; 0: not given
	NUMA        NUMA
	Dedicated   bool           // podvirt.dev/cpu-dedicated: a CPU of the node for each vCPU, which nobody else uses
	Emulator    EmulatorThread // podvirt.dev/emulator-thread; "": shared
}

// EmulatorThread is podvirt.dev/emulator-thread: where QEMU's own threads run.
type EmulatorThread string

// Where QEMU's own threads run. Only the first goes without dedicated CPUs.
const (
	EmulatorShared       EmulatorThread = "shared"        // on the CPUs of the vCPUs
	EmulatorIsolated     EmulatorThread = "isolated"      // on one CPU more
	EmulatorIsolatedEven EmulatorThread = "isolated-even" // on as many more as make the sum even
)

// CPUs returns how many CPUs that many vCPUs need with a CPU each.
func (e EmulatorThread) CPUs(vcpus int) int {
	switch e {
	case EmulatorIsolated:
		return vcpus + 1
	case EmulatorIsolatedEven:
		return vcpus + 2 - vcpus%2
	default:
		return vcpus
	}
}

// VCPUs returns the most vCPUs that so many CPUs suffice for, at least 1.
func (e EmulatorThread) VCPUs(cpus int) int {
	vcpus := max(1, cpus)
	for vcpus > 1 && e.CPUs(vcpus) > cpus {
		vcpus--
	}
	return vcpus
}

// The values of podvirt.dev/cpu-model that are no model names.
const (
	CPUHostModel       = "host-model"
	CPUHostPassthrough = "host-passthrough"
	CPUMaximum         = "max"
)

// CPUFeature is one item of podvirt.dev/cpu-features.
type CPUFeature struct {
	Name   string
	Policy FeaturePolicy
}

// FeaturePolicy says what a CPU feature means for placement and guest (scheduling.md 2.4).
type FeaturePolicy string

// The policies of a CPU feature; require where none is written.
const (
	FeatureForce    FeaturePolicy = "force"
	FeatureRequire  FeaturePolicy = "require"
	FeatureOptional FeaturePolicy = "optional"
	FeatureDisable  FeaturePolicy = "disable"
	FeatureForbid   FeaturePolicy = "forbid"
)

// Topology is podvirt.dev/cpu-topology; each figure is 1 or more after parsing.
type Topology struct {
	Sockets, Dies, Clusters, Cores, Threads int
}

// VCPUs returns the product of all figures.
func (t Topology) VCPUs() int { return t.Sockets * t.Dies * t.Clusters * t.Cores * t.Threads }

// NUMA is podvirt.dev/numa.
type NUMA struct {
	Policy NUMAPolicy
	Cells  int // with NUMACells
}

// NUMAPolicy is the word of podvirt.dev/numa, or [NUMACells] for a number.
type NUMAPolicy string

// The NUMA policies.
const (
	NUMAAuto   NUMAPolicy = "auto" // one cell where that suffices, else the fewest; only what is not written is that
	NUMANone   NUMAPolicy = "none"
	NUMASingle NUMAPolicy = "single"
	NUMAMirror NUMAPolicy = "mirror"
	NUMACells  NUMAPolicy = "cells"
)

// Memory is everything about guest memory.
type Memory struct {
	Guest     MiB    // podvirt.dev/memory
	Overhead  MiB    // podvirt.dev/memory-overhead: what the user adds to the computed overhead
	Hugepages string // podvirt.dev/hugepages: the page size as Kubernetes writes it (2Mi, 1Gi)
}

// FirmwareKind is the main word of podvirt.dev/firmware.
type FirmwareKind string

// The kinds of firmware.
const (
	FirmwareBIOS FirmwareKind = "bios"
	FirmwareUEFI FirmwareKind = "uefi"
	FirmwareNone FirmwareKind = "none"
)

// Firmware is podvirt.dev/firmware.
type Firmware struct {
	Kind         FirmwareKind
	SecureBoot   bool
	EnrolledKeys *bool
	Serial       bool          // firmware output on the serial console
	Menu         time.Duration // boot menu for that long; 0: none
}

// VirtioTransitional is the value of podvirt.dev/virtio for guests that know virtio 0.9 only; the other one is modern.
const VirtioTransitional = "transitional"

// TPM is podvirt.dev/tpm, which a program of its own emulates.
type TPM struct {
	Version  string // 2.0, 1.2, off; "": not given
	Model    string // crb, tis
	Required bool   // its contents must be kept: persistent=required
}

// On says whether the guest has a TPM.
func (t TPM) On() bool { return t.Version != "" && t.Version != "off" }

// SMBIOS is what the firmware's tables say beside the UUID, by the option's name: manufacturer, board-serial, ….
type SMBIOS struct {
	Fields map[string]string
	OEM    []string // strings of type 11
}

// Kernel is podvirt.dev/kernel with podvirt.dev/kernel-args: QEMU loads the guest's kernel itself. Files are relative to
// /vm/kernel.
type Kernel struct {
	Path   string // "": firmware finds something to boot
	Initrd string
	Shim   string // what the firmware checks before it, under Secure Boot
	Args   string // command line
}

// ConsoleMode says where the first serial port goes.
type ConsoleMode string

// The main words of podvirt.dev/console.
const (
	ConsoleNone   ConsoleMode = "none"   // discarded
	ConsoleLog    ConsoleMode = "log"    // to the container's stdout
	ConsoleAttach ConsoleMode = "attach" // to stdout and from stdin
)

// ConsoleDevice is the kind of serial port that carries the console.
type ConsoleDevice string

// The devices of podvirt.dev/console.
const (
	ConsoleAuto   ConsoleDevice = "auto"
	ConsoleISA    ConsoleDevice = "isa"
	ConsolePCI    ConsoleDevice = "pci"
	ConsoleVirtio ConsoleDevice = "virtio"
)

// Console is podvirt.dev/console.
type Console struct {
	Mode   ConsoleMode
	Device ConsoleDevice
	Rate   int64 // bytes per second; 0: not given
}

// Video is podvirt.dev/video.
type Video struct {
	Model  string // auto, none, vga, virtio, bochs, cirrus, ramfb, qxl
	VRAM   MiB
	Heads  int
	Width  int // of resolution=WxH
	Height int
}

// VideoNone is the model of a headless VM.
const VideoNone = "none"

// VideoAuto stands for the model that suits the firmware.
const VideoAuto = "auto"

// RNG is podvirt.dev/rng.
type RNG struct {
	On   *bool
	Rate int64 // bytes per second; 0: no limit
}

// Watchdog is podvirt.dev/watchdog.
type Watchdog struct {
	Model  string // off, i6300esb, itco, diag288
	Action string // reset, poweroff, shutdown, pause, inject-nmi, dump, none
}

// WatchdogOff is the model of a VM without a watchdog.
const WatchdogOff = "off"

// ShutdownMeans is one way of asking a guest to shut down.
type ShutdownMeans string

// The main words of podvirt.dev/shutdown, joined with + and tried in order.
const (
	ShutdownAgent      ShutdownMeans = "agent"
	ShutdownACPI       ShutdownMeans = "acpi"
	ShutdownCtrlAltDel ShutdownMeans = "ctrl-alt-del"
)

// Lifecycle is what happens at the start and at the end of a guest.
type Lifecycle struct {
	StartPaused bool // podvirt.dev/start: paused

	Shutdown        []ShutdownMeans
	ShutdownTimeout time.Duration // 0: not given
	ShutdownThen    string        // off, wait

	OnPoweroff OnPoweroff
	OnReboot   OnReboot
	OnCrash    OnCrash
	CrashDump  bool // write /vm/dumps/crash first
}

// What follows a graceful shutdown that ran out of time.
const (
	ThenOff  = "off"
	ThenWait = "wait"
)

// OnPoweroff is podvirt.dev/on-poweroff.
type OnPoweroff string

// What happens when the guest powered itself off.
const (
	PoweroffExit    OnPoweroff = "exit"    // end the container, exit code 0
	PoweroffRestart OnPoweroff = "restart" // start again at once
	PoweroffHold    OnPoweroff = "hold"    // keep the Pod, VM off
)

// OnReboot is podvirt.dev/on-reboot.
type OnReboot string

// What happens when the guest asks for a reboot.
const (
	RebootReset   OnReboot = "reset"   // same QEMU
	RebootRestart OnReboot = "restart" // new QEMU with the annotations read again
	RebootExit    OnReboot = "exit"    // end the container, exit code 30
)

// OnCrash is the main word of podvirt.dev/on-crash.
type OnCrash string

// What happens after a panic of the guest.
const (
	CrashExit    OnCrash = "exit"
	CrashRestart OnCrash = "restart"
	CrashReset   OnCrash = "reset"
	CrashHold    OnCrash = "hold"
)

// Guest is how the guest is configured from outside.
type Guest struct {
	CloudInit  CloudInit
	InstanceID string // of podvirt.dev/cloud-init
	SeedBus    string // virtio, sata, scsi
	SSHKeys    SSHKeys
}

// CloudInit is the form of the seed.
type CloudInit string

// The main words of podvirt.dev/cloud-init.
const (
	CloudInitNoCloud     CloudInit = "nocloud"
	CloudInitConfigDrive CloudInit = "config-drive"
	CloudInitOff         CloudInit = "off"
)

// SSHKeys says when the keys of /vm/ssh-keys are applied.
type SSHKeys string

// The values of podvirt.dev/ssh-keys.
const (
	SSHKeysBoth    SSHKeys = "both"
	SSHKeysStatic  SSHKeys = "static"  // in the seed
	SSHKeysDynamic SSHKeys = "dynamic" // by the guest agent
	SSHKeysOff     SSHKeys = "off"
)

// DiskType is the kind of a disk device.
type DiskType string

// The values of option type.
const (
	DiskTypeDisk  DiskType = "disk"
	DiskTypeCDROM DiskType = "cdrom"
	DiskTypeLUN   DiskType = "lun"
)

// Disk is podvirt.dev/disk.NAME (vm.md 2.3); in a [Machine], one disk or CD-ROM that exists.
type Disk struct {
	Name string
	Type DiskType
	Bus  string // virtio, scsi, sata, usb, nvme
	Boot int    // 1 and up; 0: not numbered

	PVC      string // hot-plugged claim
	Image    string // hot-plugged image
	Optional bool
	Empty    int64  // bytes of a new throw-away disk; 0: none
	File     string // relative path inside the volume

	Overlay Overlay
	Format  string // raw, qcow2
	Cache   string // none, writethrough, writeback, directsync, unsafe
	IO      string // native, threads, io_uring

	Serial, WWN, Vendor, Product string

	ReadOnly, Shareable, Removable, ChangedBlocks *bool // readonly, shareable, removable, cbt

	Discard      string // unmap, ignore
	DetectZeroes string // off, on, unmap
	BlockSize    string // 512, 4096, 512/4096, match; a third figure is the discard granularity
	Rotational   *bool
	Error        string // stop, report, ignore, enospc
	IOThread     string // none, shared, dedicated, pool
	Queues       int    // 0: auto or not given
	Limits       IOLimits
	Reservation  *bool
	TrayOpen     bool
	PCI, Tag     string

	// Path is the mount point or device path below /vm; "" for a disk that an annotation makes. Only in a [Machine].
	Path string
	// Source says what is at Path, as far as the reader of the Pod could see it. Only in a [Machine].
	Source SourceKind
}

// Overlay is option overlay: whether writes go to a throw-away layer in /vm/scratch.
type Overlay string

// The values of option overlay.
const (
	OverlayOn    Overlay = "true"  // for the life of the Pod
	OverlayOff   Overlay = "false" // writes go to the volume
	OverlayStart Overlay = "start" // made anew at every start of the container
)

// IOLimits are the throttling options of a disk; 0 means no limit.
type IOLimits struct {
	IOPS, IOPSRead, IOPSWrite                            int64
	IOPSMax, IOPSReadMax, IOPSWriteMax                   int64
	IOPSMaxLength, IOPSReadMaxLength, IOPSWriteMaxLength time.Duration
	BPS, BPSRead, BPSWrite                               int64
	BPSMax, BPSReadMax, BPSWriteMax                      int64
	BPSMaxLength, BPSReadMaxLength, BPSWriteMaxLength    time.Duration
	IOPSSize                                             int64 // bytes that count as one operation
	Group                                                string
}

// Binding is how a Pod interface becomes a guest NIC (network.md 2.2).
type Binding string

// The bindings.
const (
	BindingMasquerade Binding = "masquerade"
	BindingWire       Binding = "wire"
	BindingBridge     Binding = "bridge"
	BindingPasst      Binding = "passt"
	BindingMacvtap    Binding = "macvtap"
	BindingSRIOV      Binding = "sriov"
	BindingVhostUser  Binding = "vhostuser"
	BindingVDPA       Binding = "vdpa"
	BindingNone       Binding = "none" // the interface stays with the Pod
)

// NIC is podvirt.dev/nic.NAME (network.md 2.2). Words and numbers that have a form "auto" or "none" hold "" or 0 for
// what was not given and the word itself where it was.
type NIC struct {
	Name    string // "default" is the pod network
	Binding Binding
	Network string // makes the interface itself from vm-network.NAME
	Model   string
	MAC     string // aa:bb:cc:dd:ee:ff in lower case, or vm, pod, cni
	Queues  int    // 0: auto or not given
	Vhost   string // auto, on, off
	RXRing  int
	TXRing  int
	MTU     int    // 0: auto or not given
	Link    string // up, down
	RateIn  int64  // bit/s; 0: none
	RateOut int64
	Boot    int
	ROM     string // auto, on, off
	Ports   []PortRange

	V4CIDR, V6CIDR string
	IPFamily       string // auto, 4, 6, 46
	DHCP, RA       string // auto, on, off
	DHCPDNS        []string
	DHCPSearch     []string
	DHCPNTP        []string
	DHCPTFTP       string
	DHCPBootfile   string
	DHCPPrivate    map[int]string // 224 to 254; text, or 0x… for bytes
	DefaultRoute   string         // auto, true, false
	Renew          *bool
	SpoofCheck     string // on, off

	PCI, Tag   string
	ACPIIndex  int
	Resource   string
	Failover   string
	Socket     string
	SocketMode string // client, server
}

// PortRange is one item of option ports.
type PortRange struct {
	First, Last int
	Protocol    string // tcp, udp, sctp
}

// Share is podvirt.dev/share.NAME: a virtiofs share.
type Share struct {
	Name                    string
	Cache                   string
	XAttr, ReadOnly, Squash *bool
	Threads, QueueSize      int
}

// ConfigDisk is podvirt.dev/config.NAME: a small read-only disk of files.
type ConfigDisk struct {
	Name, Label, Serial, FS string
}

// Device is podvirt.dev/device.NAME: how one host device appears in the guest (devices.md 2.4).
type Device struct {
	Name, Resource           string
	Index                    *int
	PCI, ROM, Display, RamFB string
	NUMA, Migrate, Tag       string
	Boot                     int
}

// Owner is podvirt.dev/tap-owner: who may open the taps that the CNI plugin makes.
type Owner struct {
	UID, GID int
}

// Placement is what the scheduler decided and wrote into the Binding (scheduling.md 2.3).
type Placement struct {
	Cells []int // podvirt.dev/numa-cell: one host cell per guest cell
	TSCHz int64 // podvirt.dev/tsc-hz
}
