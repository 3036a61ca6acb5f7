package api

import (
	"slices"
	"strings"
	"time"
)

// Config is what podvirt-config says (operations.md 2.2). A zero value means that the key is not set; [Resolve] then
// takes the built-in default. The launcher, which cannot see the ConfigMap, passes the zero Config.
type Config struct {
	// Visible says that podvirt-config was read; without it the cluster's policy is not judged.
	Visible bool

	Emulation         string // forbid, allow; see [Config.EmulationAllowed]
	ConsoleDefault    ConsoleMode
	MachineDefault    string
	LauncherImage     string
	RuntimeClass      string
	PortBase          int
	CPUDefaultModel   string
	CPUObsoleteModels []string // as written: a model, or -model to take one off the built-in list
	CPUMinModel       string
	CPULabels         string // none, models, features, all
	CPUAllocation     int    // cpu.allocation-ratio: vCPUs per requested CPU
	Memory            MemoryConfig
	Verbosity         map[string]int // by component, and node.NAME
	Network           NetworkConfig
	// DeviceCapacity is devices.capacity.RESOURCE, and RESOURCE.node.NODE, by what follows "devices.capacity.".
	DeviceCapacity map[string]int
	StartupTaint   bool          // nodes.startup-taint
	MinWrite       time.Duration // nodes.min-write-interval
	VsockCIDBase   uint32        // devices.vsock-cid-base
	MdevOff        bool          // devices.mdev: off
	UnsafeIRQs     bool          // devices.unsafe-interrupts: allow
	StoragePools   string        // storage.pools, YAML; read by the CSI driver
	DefaultClass   string        // storage.default-class
	Import         ImportConfig
}

// ImportConfig holds the keys storage.import.* that this version reads.
type ImportConfig struct {
	MaxPerNode      int   // 0: 4
	MaxPerNamespace int   // 0: 2
	Memory          int64 // bytes; 0: 256 MiB
	Bandwidth       int64 // bytes per second of one import; 0: unlimited
	Insecure        []string
	CA              string   // ConfigMap of podvirt-system with CAs for all imports
	Allow, Deny     []string // host patterns and CIDRs; Deny is added to what is always denied, a named Allow wins
	NoLandlock      bool     // require-landlock: off
}

// MemoryConfig holds the keys memory.*.
type MemoryConfig struct {
	OvercommitPercent int
	OverheadCounted   *bool // memory.guest-overhead: counted
	AutoLimits        *bool
	OverheadTenths    int // memory.overhead-factor in tenths: 10 is 1.0
	FreePageReporting *bool
	KSMNodes          string
	KSMFreePercent    int
	KSMPagesMin       int
	KSMPagesMax       int
	KSMSleep          time.Duration
}

// NetworkConfig holds the keys network.* that programs of this version read.
type NetworkConfig struct {
	DefaultBinding   Binding
	SecondaryBinding Binding
	AllowedBindings  []Binding
	V4CIDR, V6CIDR   string
	SpoofCheck       string // on, off, required
	MACPrefix        string
	MACSalt          string
	MaxNICs          int
	InstallMethod    string // auto, drop-in, wrap, edit, off
	CompatNames      []string
	ConfDir, BinDir  string
}

// EmulationAllowed says whether VMs may run without KVM; where the ConfigMap is not visible that is not judged here.
func (c Config) EmulationAllowed() bool { return !c.judged() || c.Emulation == "allow" }

// judged says whether the reader knows the cluster's policy.
func (c Config) judged() bool { return c.Visible || c.Emulation != "" }

// Obsolete says whether a CPU model is refused where a VM names it: the built-in list with what cpu.obsolete-models
// adds and takes off, each with its numbered forms.
func (c Config) Obsolete(model string) bool {
	base := model
	if i := strings.LastIndex(model, "-v"); i > 0 && isDigits(model[i+2:]) {
		base = model[:i]
	}
	listed := func(list []string, prefix string) bool {
		return slices.Contains(list, prefix+model) || slices.Contains(list, prefix+base)
	}
	switch {
	case listed(c.CPUObsoleteModels, "-"):
		return false
	case listed(c.CPUObsoleteModels, ""):
		return true
	}
	return slices.Contains(strings.Fields(obsoleteModels), base)
}

// ObsoleteModels returns the built-in list of models that VMs must not name.
func ObsoleteModels() []string { return strings.Fields(obsoleteModels) }
