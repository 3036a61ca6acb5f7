package netconf

import (
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"podvirt.dev/cni-bridge/internal/fault"
)

// LAN holds the keys of the network modes, those of a NetworkAttachmentDefinition.
type LAN struct {
	Bridge string // of the node
	Create bool   // make it where it is missing
	Uplink string // taken in when the bridge is made

	VLAN         int       // of the access port; 0: none
	Trunk        []VLANSet // tags that pass
	ServiceTags  bool      // the bridge speaks 802.1ad
	KeepDefault  bool      // the port stays in the bridge's default VLAN as well
	MTU          int       // 0: that of the bridge or master
	SpoofCheck   bool
	Isolated     bool
	Hairpin      bool
	Promiscuous  bool
	AllMulticast bool
	STP          *bool // nil: not said
	Snooping     *bool

	Master  string // of a macvlan
	SubMode string

	MAC  net.HardwareAddr // asked for; nil: the kernel's
	IPs  []netip.Prefix   // asked for by runtimeConfig
	IPAM string           // type of the plugin; "": layer 2 only
}

// VLANSet is a range of VLANs, both ends included.
type VLANSet struct{ First, Last int }

// Filters says whether the network needs a bridge that keeps VLANs apart.
func (l LAN) Filters() bool { return l.VLAN != 0 || len(l.Trunk) > 0 || l.ServiceTags }

// IsLAN says whether the mode makes an interface of its own.
func (m Mode) IsLAN() bool { return m == ModeBridge || m == ModeMacvlan }

// Modes that this version does, for messages.
func Modes() string { return "pod, bridge, macvlan, tuning" }

func (d *decoder) lan(mode Mode, l *LAN) {
	d.interfaceName("bridge", &l.Bridge)
	d.interfaceName("uplink", &l.Uplink)
	d.interfaceName("master", &l.Master)
	l.Create = l.Uplink != ""
	d.value("create", &l.Create)
	switch {
	case mode == ModeBridge && l.Bridge == "" && l.Uplink == "":
		d.fail(fault.Config, "bridge: missing; say bridge or uplink")
	case mode == ModeBridge && l.Bridge == "":
		l.Bridge = "br-" + l.Uplink
		d.length("uplink", l.Bridge)
	case mode == ModeMacvlan && l.Master == "":
		d.fail(fault.Config, "master: missing")
	}
	d.vlans(l)
	if d.value("mtu", &l.MTU) && (l.MTU < 68 || l.MTU > 65535) {
		d.fail(fault.Config, "mtu %d: 68 to 65535", l.MTU)
	}
	for key, out := range map[string]*bool{
		"macspoofchk": &l.SpoofCheck, "portIsolation": &l.Isolated, "hairpinMode": &l.Hairpin, "promiscMode": &l.Promiscuous,
		"preserveDefaultVlan": &l.KeepDefault, "promisc": &l.Promiscuous, "allmulti": &l.AllMulticast,
	} {
		d.value(key, out)
	}
	if raw, ok := d.keys["mirrorTo"]; ok {
		d.fail(fault.Config, "mirrorTo=%s: not supported by this version", raw)
	}
	d.value("stp", &l.STP)
	d.value("multicastSnooping", &l.Snooping)
	l.SubMode = "bridge"
	d.word("submode", &l.SubMode, []string{"bridge", "private", "vepa", "passthru"})
	d.mac("mac", &l.MAC)
	d.asked(l)
	var ipam struct {
		Type string `json:"type"`
	}
	d.value("ipam", &ipam)
	l.IPAM = ipam.Type
}

func (d *decoder) interfaceName(key string, out *string) {
	if d.value(key, out) {
		d.length(key, *out)
	}
}

// length refuses what the kernel would (dev_valid_name, IFNAMSIZ).
func (d *decoder) length(key, name string) {
	if name == "" || len(name) > 15 || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n\x00%") {
		d.fail(fault.Config, "%s %q: not an interface name of at most 15 characters", key, name)
	}
}

const maxVLAN = 4094

func (d *decoder) vlans(l *LAN) {
	if d.value("vlan", &l.VLAN) && (l.VLAN < 0 || l.VLAN > maxVLAN) {
		d.fail(fault.Config, "vlan %d: 0 to %d", l.VLAN, maxVLAN)
	}
	var trunk []trunkItem
	d.value("vlanTrunk", &trunk)
	for i, item := range trunk {
		l.Trunk = append(l.Trunk, d.trunk("vlanTrunk["+strconv.Itoa(i)+"]", item))
	}
	proto := "802.1q"
	d.word("vlanProto", &proto, []string{"802.1q", "802.1ad"})
	l.ServiceTags = proto == "802.1ad"
	if l.ServiceTags && l.VLAN == 0 {
		d.fail(fault.Config, "vlanProto 802.1ad: vlan is the service tag; say one")
	}
}

// trunkItem is one element of vlanTrunk.
type trunkItem struct{ ID, MinID, MaxID *int }

func (d *decoder) trunk(key string, item trunkItem) VLANSet {
	var set VLANSet
	switch {
	case item.ID != nil && item.MinID == nil && item.MaxID == nil:
		set = VLANSet{*item.ID, *item.ID}
	case item.ID == nil && item.MinID != nil && item.MaxID != nil:
		set = VLANSet{*item.MinID, *item.MaxID}
	default:
		d.fail(fault.Config, `%s: say {"id": n} or {"minID": n, "maxID": m}`, key)
		return set
	}
	switch {
	case set.First > set.Last:
		d.fail(fault.Config, "%s: minID %d > maxID %d", key, set.First, set.Last)
	case set.First < 1 || set.Last > maxVLAN:
		d.fail(fault.Config, "%s: %d to %d: 1 to %d", key, set.First, set.Last, maxVLAN)
	}
	return set
}

// asked reads what Multus passes of an element of the networks annotation: capabilities mac and ips, else CNI_ARGS-like args.
func (d *decoder) asked(l *LAN) {
	var runtime struct {
		MAC string   `json:"mac"`
		IPs []string `json:"ips"`
	}
	if raw, ok := d.keys["runtimeConfig"]; ok && json.Unmarshal(raw, &runtime) != nil {
		d.fail(fault.Config, "runtimeConfig: mac is a text, ips are a list of texts")
		return
	}
	if runtime.MAC != "" {
		mac, err := net.ParseMAC(runtime.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			d.fail(fault.Config, "runtimeConfig mac %q: not a unicast MAC", runtime.MAC)
		}
		l.MAC = slices.Clone(mac)
	}
	for _, text := range runtime.IPs {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			address, addressErr := netip.ParseAddr(text)
			prefix, err = netip.PrefixFrom(address, address.BitLen()), addressErr
		}
		if err != nil {
			d.fail(fault.Config, "runtimeConfig ips %q: not an address", text)
		}
		l.IPs = append(l.IPs, prefix)
	}
}
