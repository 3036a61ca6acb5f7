// Package netconf reads the network configuration that the runtime passes on stdin (network.md 2.4): strictly, so that
// a key with a typo is an error with the key, its value and the nearest one, and never silently nothing.
package netconf

import (
	"encoding/json"
	"net"
	"net/netip"
	"time"

	"podvirt.dev/api"
)

// Annotations is the capability by which containerd and CRI-O hand the Pod's annotations to a plugin.
const Annotations = "io.kubernetes.cri.pod-annotations"

// DefaultStateDir holds the journal, the locks and the stamps of a node.
const DefaultStateDir = "/run/podvirt/cni"

// Mode says which job the plugin has.
type Mode string

// The modes.
const (
	ModePod     Mode = "pod"
	ModeBridge  Mode = "bridge"
	ModeMacvlan Mode = "macvlan"
	ModeMacvtap Mode = "macvtap"
	ModeSRIOV   Mode = "sriov"
	ModeTuning  Mode = "tuning"
)

// Attachment names one attachment of a container.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// Config is a network configuration with every default filled in.
type Config struct {
	CNIVersion string
	Name       string
	Mode       Mode

	// Previous is prevResult exactly as it came in; nil: none.
	Previous json.RawMessage
	// Annotations of the Pod; nil where the runtime passed none, as Multus does for its delegates.
	Annotations map[string]string
	// Valid are the attachments that GC keeps.
	Valid []Attachment

	StateDir    string
	LogFile     string
	LogLevel    string
	LockTimeout time.Duration
	MACPrefix   net.HardwareAddr // 1 to 3 octets
	MACSalt     string

	Pod Pod
	LAN LAN

	// Raw is the configuration as it came in, for the plugin that ipam names.
	Raw json.RawMessage
}

// Pod holds the keys of mode pod.
type Pod struct {
	Owner            api.Owner
	DefaultBinding   api.Binding
	SecondaryBinding api.Binding
	AllowedBindings  []api.Binding
	V4CIDR, V6CIDR   netip.Prefix
	GatewayMAC       net.HardwareAddr
	Reserved         []api.PortRange // of the launcher; the first one begins with its port base
	MaxNICs          int
}

// PortBase is the first of the launcher's ports.
func (p Pod) PortBase() uint16 { return uint16(p.Reserved[0].First) }

// bindings are all of them, passt last: it is not allowed unless the cluster's configuration says so.
func bindings() []api.Binding {
	return []api.Binding{
		api.BindingMasquerade, api.BindingWire, api.BindingBridge, api.BindingMacvtap, api.BindingSRIOV, api.BindingVhostUser,
		api.BindingVDPA, api.BindingNone, api.BindingPasst,
	}
}

func defaults() Config {
	all := bindings()
	return Config{
		StateDir: DefaultStateDir, LogLevel: "info", LockTimeout: 20 * time.Second, MACPrefix: net.HardwareAddr{0x02},
		Pod: Pod{
			Owner:          api.Owner{UID: api.LauncherUID, GID: api.LauncherUID},
			DefaultBinding: api.BindingMasquerade, SecondaryBinding: api.BindingWire, AllowedBindings: all[:len(all)-1],
			V4CIDR: netip.MustParsePrefix("10.0.2.0/24"), V6CIDR: netip.MustParsePrefix("fd10:0:2::/120"),
			GatewayMAC: net.HardwareAddr{0x02, 0, 0, 0, 0, 0},
			Reserved:   []api.PortRange{{First: 49152, Last: 49155, Protocol: "tcp"}},
			MaxNICs:    32,
		},
	}
}

// Defaults is a configuration of mode pod in which nothing is set but the state directory.
func Defaults(stateDir string) Config {
	c := defaults()
	c.Mode, c.StateDir = ModePod, stateDir
	return c
}
