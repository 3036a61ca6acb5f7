package api

import "time"

// Config is what podvirt-config says (operations.md 2.2). A zero value means that the key is not set; [Resolve] then
// takes the built-in default. The launcher, which cannot see the ConfigMap, passes the zero Config.
type Config struct {
	// Visible says that podvirt-config was read; without it the cluster's policy is not judged.
	Visible bool

	Emulation         string // emulation: forbid, allow; "": not visible, not judged
	ConsoleDefault    ConsoleMode
	MachineDefault    string
	LauncherImage     string
	PortBase          int
	CPUDefaultModel   string
	CPUObsoleteModels []string // as written: a model, or -model to take one off the built-in list
	CPUAllocation     int      // cpu.allocation-ratio: vCPUs per requested CPU
	Memory            MemoryConfig
	Verbosity         map[string]int // by component, and node.NAME
	Network           NetworkConfig
	// DeviceCapacity is devices.capacity.RESOURCE, and RESOURCE.node.NODE, by what follows "devices.capacity.".
	DeviceCapacity map[string]int
	StoragePools   []Pool
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
	InstallMethod    string // auto, drop-in, wrap, edit, off
	ConfDir, BinDir  string
}

// Pool is one entry of storage.pools (storage.md 2.5).
type Pool struct {
	Name         string            `json:"name"`
	Path         string            `json:"path,omitempty"`
	Device       string            `json:"device,omitempty"`
	PVCTemplate  map[string]any    `json:"pvcTemplate,omitempty"`
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`
	Format       string            `json:"format,omitempty"`
	Overcommit   float64           `json:"overcommit,omitempty"`
	Reserve      string            `json:"reserve,omitempty"`
	HardSize     string            `json:"hardSize,omitempty"`
	AllowShared  bool              `json:"allowShared,omitempty"`
	CacheSize    string            `json:"cacheSize,omitempty"`
	Default      bool              `json:"default,omitempty"`
}

// ParseConfig reads the data of ConfigMap podvirt-config, strictly: an unknown key and a bad value are errors, all of
// them are returned at once, and with any error the Config is not to be applied.
func ParseConfig(data map[string]string) (Config, Errors) {
	return Config{}, nil
}

// Obsolete says whether a CPU model is refused where a VM names it (cpu.obsolete-models).
func (c Config) Obsolete(model string) bool { return false }
