package api

// Prefix begins every key that podvirt judges; keys with another prefix are left alone.
const Prefix = "podvirt.dev/"

// Names every program needs (spec README 4).
const (
	// SystemNamespace holds the components of an installation.
	SystemNamespace = "podvirt-system"
	// ConfigName is the ConfigMap of the cluster's settings in [SystemNamespace].
	ConfigName = "podvirt-config"
	// StatusName is the ConfigMap in [SystemNamespace] that says which settings are in force.
	StatusName = "podvirt-status"
	// SchedulerName is the scheduler profile VM Pods ask for.
	SchedulerName = "podvirt"
	// SchedulerPlugin is the name of our plugin inside that profile.
	SchedulerPlugin = "VirtualMachine"
	// CSIDriver is the name of the CSI driver for disks in directories of a node.
	CSIDriver = "hostpath.csi.podvirt.dev"
	// CNIType is the type of our CNI plugin in a network configuration.
	CNIType = "cni-bridge"
	// ContainerName is the container of a VM Pod that is the VM; all others are ordinary sidecars.
	ContainerName = "vm"
	// AliasImage in a short manifest stands for launcher.image of podvirt-config.
	AliasImage = "podvirt.dev/launcher"
	// LauncherUID is the user, and the group, that launcher, QEMU and their children run as.
	LauncherUID = 107
	// RightsGroup is the API group of the rights virtualmachines/RIGHT, which exist in RBAC only.
	RightsGroup = "podvirt.dev"
	// RightsResource is the resource of those rights; the right itself is the sub-resource, the verb is "create".
	RightsResource = "virtualmachines"
	// LocalhostProfile is the seccomp profile of type Localhost for what RuntimeDefault blocks (vm.md 2.12).
	LocalhostProfile = "podvirt/launcher.json"
)

// Annotations of a VM Pod that hold for the whole VM (vm.md 2.2, network.md 2.3, migration.md 2.1).
const (
	KeyVM               = Prefix + "vm" // also a label: what makes a Pod a VM
	KeyIdentity         = Prefix + "identity"
	KeyUUID             = Prefix + "uuid"
	KeyHostname         = Prefix + "hostname"
	KeySMBIOS           = Prefix + "smbios"
	KeyGenID            = Prefix + "genid"
	KeyAccelerator      = Prefix + "accelerator"
	KeyArch             = Prefix + "arch"
	KeyCPUModel         = Prefix + "cpu-model"
	KeyCPUFeatures      = Prefix + "cpu-features"
	KeyCPUTopology      = Prefix + "cpu-topology"
	KeyCPUMax           = Prefix + "cpu-max"
	KeyCPUDedicated     = Prefix + "cpu-dedicated"
	KeyEmulatorThread   = Prefix + "emulator-thread"
	KeyRealtime         = Prefix + "realtime"
	KeyIOThreads        = Prefix + "iothreads"
	KeyNUMA             = Prefix + "numa"
	KeyMemory           = Prefix + "memory"
	KeyMemoryMax        = Prefix + "memory-max"
	KeyMemoryMin        = Prefix + "memory-min"
	KeyHugepages        = Prefix + "hugepages"
	KeyMemoryBacking    = Prefix + "memory-backing"
	KeyMemoryBalloon    = Prefix + "memory-balloon"
	KeyMemoryMerge      = Prefix + "memory-merge"
	KeyMemoryOverhead   = Prefix + "memory-overhead"
	KeyMachine          = Prefix + "machine"
	KeyFeatures         = Prefix + "features"
	KeyHyperV           = Prefix + "hyperv"
	KeyClock            = Prefix + "clock"
	KeyTimers           = Prefix + "timers"
	KeyFirmware         = Prefix + "firmware"
	KeyKernel           = Prefix + "kernel"
	KeyKernelArgs       = Prefix + "kernel-args"
	KeyTPM              = Prefix + "tpm"
	KeyLaunchSecurity   = Prefix + "launch-security"
	KeyDiskDefaults     = Prefix + "disk-defaults"
	KeyCDROMDefaults    = Prefix + "cdrom-defaults"
	KeyNICDefaults      = Prefix + "nic-defaults"
	KeyVideo            = Prefix + "video"
	KeyVNC              = Prefix + "vnc"
	KeyInputs           = Prefix + "inputs"
	KeySound            = Prefix + "sound"
	KeyUSB              = Prefix + "usb"
	KeyRNG              = Prefix + "rng"
	KeyWatchdog         = Prefix + "watchdog"
	KeyPanic            = Prefix + "panic"
	KeyVsock            = Prefix + "vsock"
	KeyConsole          = Prefix + "console"
	KeySerial           = Prefix + "serial"
	KeyAgent            = Prefix + "agent"
	KeyDownwardMetrics  = Prefix + "downward-metrics"
	KeyVMCoreInfo       = Prefix + "vmcoreinfo"
	KeyVirtio           = Prefix + "virtio"
	KeyHotplugPorts     = Prefix + "hotplug-ports"
	KeyStart            = Prefix + "start"
	KeyShutdown         = Prefix + "shutdown"
	KeyOnPoweroff       = Prefix + "on-poweroff"
	KeyOnReboot         = Prefix + "on-reboot"
	KeyOnCrash          = Prefix + "on-crash"
	KeyResume           = Prefix + "resume"
	KeyCloudInit        = Prefix + "cloud-init"
	KeySSHKeys          = Prefix + "ssh-keys"
	KeyInstanceType     = Prefix + "instance-type"
	KeyPreference       = Prefix + "preference"
	KeyRawLibvirt       = Prefix + "raw-libvirt"
	KeyRawQEMU          = Prefix + "raw-qemu"
	KeyVerbosity        = Prefix + "verbosity"
	KeyMetrics          = Prefix + "metrics"
	KeyTapOwner         = Prefix + "tap-owner"
	KeyEviction         = Prefix + "eviction"
	KeyMaintenance      = Prefix + "maintenance"
	KeyMigration        = Prefix + "migration"
	KeyMigrate          = Prefix + "migrate"
	KeyUpgrade          = Prefix + "upgrade"
	KeyFencing          = Prefix + "fencing"
	KeyRecreate         = Prefix + "recreate"
	KeyNUMACell         = Prefix + "numa-cell" // written by the scheduler inside the Binding
	KeyTSCHz            = Prefix + "tsc-hz"    // written by the scheduler inside the Binding
	KeyMigrationCPU     = Prefix + "migration-cpu"
	KeyIncoming         = Prefix + "incoming"
	KeyMigrationState   = Prefix + "migration-state"
	KeyMigrationHistory = Prefix + "migration-history"
	KeyFrozen           = Prefix + "frozen"
	KeyStatus           = Prefix + "status"
	KeyTypeResolved     = Prefix + "instance-type-resolved"
	KeyPrefResolved     = Prefix + "preference-resolved"
	KeyDefaultsVersion  = Prefix + "defaults-version"
)

// Beginnings of the annotations of one device each; the device's name follows (vm.md 2.3).
const (
	KeyDisk   = Prefix + "disk." // disks and CD-ROMs share one set of names
	KeyNIC    = Prefix + "nic."
	KeyShare  = Prefix + "share."
	KeyConfig = Prefix + "config."
	KeyDevice = Prefix + "device."
)

// PodNetwork is the NIC name of the pod network: podvirt.dev/nic.default (network.md 2.2).
const PodNetwork = "default"

// RootDisk is the disk that boots where no boot numbers are given (VM-056).
const RootDisk = "root"

// Labels of a VM Pod; the first is the user's, the rest is written by the controller (vm.md 2.2).
const (
	LabelVM            = Prefix + "vm"
	LabelProtected     = Prefix + "protected"
	LabelMigrationRole = Prefix + "migration-role"
	LabelOutdated      = Prefix + "outdated"
)

// Other marks of a VM Pod (vm.md 2.2).
const (
	FinalizerFence    = Prefix + "fence"
	GateImport        = Prefix + "import"
	EvictionResponder = Prefix + "migrate"
)

// Keys on Nodes (scheduling.md 2.2).
const (
	// NodeCPU is the annotation with [CPUFacts].
	NodeCPU = Prefix + "cpu"
	// NodeNUMA is the annotation with [NUMAFacts].
	NodeNUMA = Prefix + "numa"
	// NodeNetworks is the annotation with the node's bridges, bonds and VFs (network.md 2.3).
	NodeNetworks = Prefix + "networks"
	// NodePools is the annotation with the pools of the CSI driver (storage.md 2.7).
	NodePools = Prefix + "pools"
	// NodeSkip is the administrator's annotation that keeps the device plugin from writing facts.
	NodeSkip = Prefix + "skip-node"

	NodeLabelSchedulable = Prefix + "schedulable"
	NodeLabelCPUVendor   = Prefix + "cpu-vendor"
	NodeLabelCPUModel    = Prefix + "cpu-model"
	NodeLabelAccelerator = Prefix + "accelerator"

	// NodeLabelModelPrefix and NodeLabelFeaturePrefix begin the labels that cpu.labels of podvirt-config asks for.
	NodeLabelModelPrefix   = "cpu-model.podvirt.dev/"
	NodeLabelFeaturePrefix = "cpu-feature.podvirt.dev/"

	// TaintNotReady keeps Pods off a node whose facts are not there yet.
	TaintNotReady = Prefix + "not-ready"
	// TaintDrain asks for the VMs of a node to be moved away (migration.md 2.1).
	TaintDrain = Prefix + "drain"
	// NodeExclude is the administrator's label that keeps our node agents off a node (OP-104).
	NodeExclude = Prefix + "exclude"
)

// Extended resources (devices.md 2.1).
const (
	ResourceKVM         = Prefix + "kvm"
	ResourceTun         = Prefix + "tun"
	ResourceVhostNet    = Prefix + "vhost-net"
	ResourceVhostVsock  = Prefix + "vhost-vsock"
	ResourceUserfaultfd = Prefix + "userfaultfd"
	ResourceRealtime    = Prefix + "realtime"
	ResourceMemlock     = Prefix + "memlock"
	ResourceSEV         = Prefix + "sev"
	ResourceSEVES       = Prefix + "sev-es"
	ResourceSEVSNP      = Prefix + "sev-snp"
	ResourceTDX         = Prefix + "tdx"
	ResourcePRHelper    = Prefix + "pr-helper"

	// HugepagesPrefix begins the resource of huge pages of one size: hugepages-2Mi.
	HugepagesPrefix = "hugepages-"
)

// Environment of container vm, set by the kubelet from what the device plugin answers (devices.md 2.5). The first
// four are beginnings; the resource follows in upper case, every other character than letters and digits as "_".
const (
	EnvPCI      = "PCI_RESOURCE_"
	EnvMdev     = "MDEV_PCI_RESOURCE_"
	EnvUSB      = "USB_RESOURCE_"
	EnvChar     = "CHAR_RESOURCE_"
	EnvSRIOV    = "PCIDEVICE_" // of the SR-IOV network device plugin
	EnvVsockCID = "PODVIRT_VSOCK_CID"
)

// Paths in container vm (vm.md 2.4). Those that end in a slash have one entry per device, user or file set.
const (
	PathRoot          = "/vm"
	PathDisks         = "/vm/disks/"
	PathCDROMs        = "/vm/cdroms/"
	PathCloudInit     = "/vm/cloud-init"
	PathIgnition      = "/vm/ignition"
	PathSysprep       = "/vm/sysprep"
	PathConfig        = "/vm/config/"
	PathShares        = "/vm/shares/"
	PathState         = "/vm/state"
	PathStateTemplate = "/vm/state-template"
	PathSSHKeys       = "/vm/ssh-keys/"
	PathPasswords     = "/vm/passwords/"
	PathPod           = "/vm/pod"
	PathKernel        = "/vm/kernel"
	PathACPI          = "/vm/acpi"
	PathLaunch        = "/vm/launch"
	PathCredentials   = "/vm/credentials"
	PathDumps         = "/vm/dumps/"
	PathHotplug       = "/vm/hotplug"
	PathScratch       = "/vm/scratch"
	PathRun           = "/run/podvirt"
	ControlSocket     = PathRun + "/ctl.sock" // of the launcher; the driver asks it to freeze the guest
)

// Files of the downward API volume below [PathPod] (vm.md 1, 2.4).
const (
	PodFileName             = "name"
	PodFileNamespace        = "namespace"
	PodFileUID              = "uid"
	PodFileLabels           = "labels"
	PodFileAnnotations      = "annotations"
	PodFileLimitsCPU        = "limits.cpu"    // millicores; the node's CPUs where the container has no limit
	PodFileLimitsMemory     = "limits.memory" // bytes; the node's memory where the container has no limit
	PodFileLimitsEphemeral  = "limits.ephemeral-storage"
	PodFileHugepagesPrefix  = "limits.hugepages-"
	PodFileRequestsCPU      = "requests.cpu"
	PodFileRequestsMemory   = "requests.memory"
	MaxTerminationMessage   = 4096 // bytes that Kubernetes keeps
	MaxTerminationOneLine   = 512  // bytes of a message that is not a list of errors
	DefaultGracePeriod      = 180  // seconds; written by admission (vm.md 2.6)
	KubernetesGracePeriod   = 30   // seconds; where the Pod says nothing
	UnknownShutdownTimeout  = 20   // seconds; where the grace period cannot be seen
	ShutdownMarginOfGrace   = 10   // seconds of the grace period that are kept for the end of QEMU
	DefaultScratchSizeLimit = "1Gi"
	DefaultRunSizeLimit     = "4Mi"
)

// Ports of the launcher on the pod IP, under every binding; launcher.port-base moves them together (vm.md 2.8).
const (
	PortBase = 49152

	PortMigration   = PortBase     // the memory stream
	PortDiskMirror  = PortBase + 1 // NBD
	PortSpare       = PortBase + 2 // migration channels
	PortStatus      = PortBase + 3 // HTTP /metrics, /status, /probe/*
	PortsOfLauncher = 4
)

// ExitCode is the exit status of container vm (vm.md 2.9).
type ExitCode int

// The exit codes of container vm.
const (
	ExitOK              ExitCode = 0 // PoweredOff, Stopped, Hibernated, Migrated
	ExitBadConfig       ExitCode = 10
	ExitNodeLacks       ExitCode = 11
	ExitVolumeProblem   ExitCode = 12
	ExitStartFailed     ExitCode = 13
	ExitResumeRefused   ExitCode = 14
	ExitGuestPanic      ExitCode = 20
	ExitHypervisorCrash ExitCode = 21
	ExitOutOfMemory     ExitCode = 22
	ExitWatchdog        ExitCode = 23
	ExitForcedOff       ExitCode = 24
	ExitDestroyed       ExitCode = 25
	ExitMigrationLost   ExitCode = 26
	ExitGuestReboot     ExitCode = 30
	ExitInternal        ExitCode = 70
)

// Reason is the first word of the termination message of container vm: "Reason: sentence" (vm.md 2.9).
type Reason string

// The reasons why a VM ended or could not start.
const (
	ReasonPoweredOff      Reason = "PoweredOff"
	ReasonStopped         Reason = "Stopped"
	ReasonHibernated      Reason = "Hibernated"
	ReasonMigrated        Reason = "Migrated"
	ReasonBadConfig       Reason = "BadConfig"
	ReasonNodeLacks       Reason = "NodeLacks"
	ReasonVolumeProblem   Reason = "VolumeProblem"
	ReasonStartFailed     Reason = "StartFailed"
	ReasonResumeRefused   Reason = "ResumeRefused"
	ReasonGuestPanic      Reason = "GuestPanic"
	ReasonHypervisorCrash Reason = "HypervisorCrash"
	ReasonOutOfMemory     Reason = "OutOfMemory"
	ReasonWatchdog        Reason = "Watchdog"
	ReasonForcedOff       Reason = "ForcedOff"
	ReasonDestroyed       Reason = "Destroyed"
	ReasonMigrationLost   Reason = "MigrationLost"
	ReasonGuestReboot     Reason = "GuestReboot"
	ReasonInternal        Reason = "Internal"
	// ReasonKilled stands in the termination file before the guest starts, so that even a SIGKILL leaves a true line.
	ReasonKilled Reason = "Killed"
)

// MissedNetworkStage begins what a launcher says, after [ReasonNodeLacks], of a Pod whose network nobody of ours made
// (network.md NW-010). The controller has such a Pod made again.
const MissedNetworkStage = "the network stage of this node did not see this Pod"

// ExitCode returns the exit code that goes with the reason; an unknown reason is a bug and gives [ExitInternal].
func (r Reason) ExitCode() ExitCode {
	switch r {
	case ReasonPoweredOff, ReasonStopped, ReasonHibernated, ReasonMigrated:
		return ExitOK
	case ReasonBadConfig:
		return ExitBadConfig
	case ReasonNodeLacks:
		return ExitNodeLacks
	case ReasonVolumeProblem:
		return ExitVolumeProblem
	case ReasonStartFailed:
		return ExitStartFailed
	case ReasonResumeRefused:
		return ExitResumeRefused
	case ReasonGuestPanic:
		return ExitGuestPanic
	case ReasonHypervisorCrash:
		return ExitHypervisorCrash
	case ReasonOutOfMemory:
		return ExitOutOfMemory
	case ReasonWatchdog:
		return ExitWatchdog
	}
	return exitCodeOfForcedEnd(r)
}

func exitCodeOfForcedEnd(r Reason) ExitCode {
	switch r {
	case ReasonForcedOff:
		return ExitForcedOff
	case ReasonDestroyed:
		return ExitDestroyed
	case ReasonMigrationLost:
		return ExitMigrationLost
	case ReasonGuestReboot:
		return ExitGuestReboot
	default:
		return ExitInternal
	}
}

// Exit statuses of launcher ctl (vm.md 2.7).
const (
	CtlDone       = 0
	CtlRefused    = 1 // refused or failed, one line on stderr
	CtlUsage      = 2
	CtlWrongState = 3 // the VM is not in a state for the verb
	CtlTimedOut   = 4
)

// State is the state of a VM as the launcher tells it (vm.md 2.8).
type State string

// The states of a VM.
const (
	StateStarting   State = "starting"
	StateRunning    State = "running"
	StatePaused     State = "paused"
	StateStopping   State = "stopping"
	StateHeld       State = "held" // VM off, Pod kept
	StateIncoming   State = "incoming"
	StateMigrated   State = "migrated"
	StateHibernated State = "hibernated"
)

// Conditions on the VM Pod (vm.md 2.8).
const (
	ConditionGuestRunning    = Prefix + "GuestRunning"
	ConditionPaused          = Prefix + "Paused"
	ConditionAgentConnected  = Prefix + "AgentConnected"
	ConditionDiskError       = Prefix + "DiskError"
	ConditionRestartRequired = Prefix + "RestartRequired"
	ConditionResizeFollowed  = Prefix + "ResizeFollowed"
	ConditionStateEphemeral  = Prefix + "StateEphemeral"
	ConditionLiveMigratable  = Prefix + "LiveMigratable"
	ConditionMigrating       = Prefix + "Migrating"
)
