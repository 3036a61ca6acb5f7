package nl

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	rt "github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Bridge is what podvirt reads and sets of a Linux bridge.
type Bridge struct {
	VLANFiltering     bool
	VLANProtocol      uint16 // ETH_P_8021Q or ETH_P_8021AD
	DefaultPVID       uint16 // of new ports; 0: none
	STP               bool
	MulticastSnooping bool
}

// MakeBridge makes a bridge that has these settings from its first moment on.
func (h *Handle) MakeBridge(name string, b Bridge) error {
	req := h.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(rt.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(rt.NewRtAttr(unix.IFLA_IFNAME, rt.ZeroTerminated(name)))
	info := rt.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(rt.IFLA_INFO_KIND, rt.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(rt.IFLA_INFO_DATA, nil)
	stp := uint32(0)
	if b.STP {
		stp = 1
	}
	data.AddRtAttr(rt.IFLA_BR_STP_STATE, rt.Uint32Attr(stp))
	data.AddRtAttr(rt.IFLA_BR_MCAST_SNOOPING, flag(b.MulticastSnooping))
	if b.VLANFiltering { // a kernel without it refuses even the wish to have none
		data.AddRtAttr(rt.IFLA_BR_VLAN_PROTOCOL, binary.BigEndian.AppendUint16(nil, b.VLANProtocol))
		data.AddRtAttr(rt.IFLA_BR_VLAN_FILTERING, flag(true))
		data.AddRtAttr(rt.IFLA_BR_VLAN_DEFAULT_PVID, rt.Uint16Attr(b.DefaultPVID))
	}
	req.AddData(info)
	if err := do(func() error { _, err := req.Execute(unix.NETLINK_ROUTE, 0); return err }); err != nil {
		return fmt.Errorf("making bridge %s: %w", name, err)
	}
	return nil
}

// BridgeOf reads the settings of a bridge.
func (h *Handle) BridgeOf(index int) (Bridge, error) {
	req := h.request(unix.RTM_GETLINK, 0)
	message := rt.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = int32(index)
	req.AddData(message)
	answers, err := dump(func() ([][]byte, error) { return req.Execute(unix.NETLINK_ROUTE, 0) })
	if err == nil && len(answers) != 1 {
		err = ErrNotFound
	}
	var b Bridge
	if err == nil {
		b, err = parseBridge(answers[0])
	}
	if err != nil {
		return Bridge{}, fmt.Errorf("reading bridge %d: %w", index, orNotFound(err))
	}
	return b, nil
}

// errNoBridge says that an interface is something else.
var errNoBridge = errors.New("not a bridge")

func parseBridge(answer []byte) (Bridge, error) {
	data, err := nested(answer[unix.SizeofIfInfomsg:], unix.IFLA_LINKINFO, rt.IFLA_INFO_DATA)
	if err != nil {
		return Bridge{}, err
	}
	attrs, err := rt.ParseRouteAttr(data)
	if err != nil {
		return Bridge{}, err
	}
	var b Bridge
	for _, a := range attrs {
		switch {
		case a.Attr.Type == rt.IFLA_BR_VLAN_FILTERING && len(a.Value) > 0:
			b.VLANFiltering = a.Value[0] != 0
		case a.Attr.Type == rt.IFLA_BR_VLAN_PROTOCOL && len(a.Value) > 1:
			b.VLANProtocol = binary.BigEndian.Uint16(a.Value)
		case a.Attr.Type == rt.IFLA_BR_VLAN_DEFAULT_PVID && len(a.Value) > 1:
			b.DefaultPVID = binary.NativeEndian.Uint16(a.Value)
		case a.Attr.Type == rt.IFLA_BR_STP_STATE && len(a.Value) > 3:
			b.STP = binary.NativeEndian.Uint32(a.Value) != 0
		case a.Attr.Type == rt.IFLA_BR_MCAST_SNOOPING && len(a.Value) > 0:
			b.MulticastSnooping = a.Value[0] != 0
		}
	}
	return b, nil
}

// typeMask takes the flags off an attribute type (NLA_TYPE_MASK of linux/netlink.h).
const typeMask = 0x3fff

// nested returns the value of an attribute inside another one.
func nested(data []byte, path ...uint16) ([]byte, error) {
	for _, want := range path {
		attrs, err := rt.ParseRouteAttr(data)
		if err != nil {
			return nil, err
		}
		data = nil
		for _, a := range attrs {
			if a.Attr.Type&typeMask == want {
				data = a.Value
			}
		}
		if data == nil {
			return nil, errNoBridge
		}
	}
	return data, nil
}

// PortVLANs lets a range of VLANs through a bridge port, tagged outside. AddPortVLAN is for an access port.
func (h *Handle) PortVLANs(port int, first, last uint16) error {
	add := func() error { return h.raw.BridgeVlanAddRange(byIndex(port), first, last, false, false, false, true) }
	if first == last { // the kernel refuses a range of one
		add = func() error { return h.raw.BridgeVlanAdd(byIndex(port), first, false, false, false, true) }
	}
	err := do(add)
	if err != nil {
		return fmt.Errorf("letting VLANs %d to %d through bridge port %d: %w", first, last, port, orNotFound(err))
	}
	return nil
}

// DeletePortVLAN takes a VLAN off a bridge port.
func (h *Handle) DeletePortVLAN(port int, id uint16) error {
	if err := do(func() error { return h.raw.BridgeVlanDel(byIndex(port), id, false, false, false, true) }); err != nil {
		return fmt.Errorf("taking VLAN %d off bridge port %d: %w", id, port, orNotFound(err))
	}
	return nil
}

// VLAN is one that a bridge port lets through.
type VLAN struct {
	ID     uint16
	Access bool // untagged outside, and what comes untagged belongs to it
}

// VLANsOf returns the VLANs of a bridge port in their order; none where the bridge does not filter.
func (h *Handle) VLANsOf(port int) ([]VLAN, error) {
	all, err := dump(h.raw.BridgeVlanList)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // a kernel without VLAN filtering
	}
	if err != nil {
		return nil, fmt.Errorf("reading the VLANs of bridge port %d: %w", port, err)
	}
	var out []VLAN
	for _, info := range all[int32(port)] {
		out = append(out, VLAN{ID: info.Vid, Access: info.Flags&rt.BRIDGE_VLAN_INFO_PVID != 0})
	}
	return out, nil
}

// Port holds settings of a bridge port.
type Port struct {
	Isolated bool // frames pass to and from ports that are not isolated only
	Hairpin  bool // frames may leave by the port they came in by
}

// SetPort sets them.
func (h *Handle) SetPort(port int, p Port) error {
	link := byIndex(port)
	if err := do(func() error { return h.raw.LinkSetIsolated(link, p.Isolated) }); err != nil {
		return fmt.Errorf("setting isolation of bridge port %d: %w", port, orNotFound(err))
	}
	if err := do(func() error { return h.raw.LinkSetHairpin(link, p.Hairpin) }); err != nil {
		return fmt.Errorf("setting hairpin mode of bridge port %d: %w", port, orNotFound(err))
	}
	return nil
}

// StopLearning keeps a bridge from noting who is behind a port: what has no entry is sent to all ports.
func (h *Handle) StopLearning(port int) error {
	if err := do(func() error { return h.raw.LinkSetLearning(byIndex(port), false) }); err != nil {
		return fmt.Errorf("setting learning of bridge port %d: %w", port, orNotFound(err))
	}
	return nil
}

// PortOf reads what SetPort sets.
func (h *Handle) PortOf(port int) (Port, error) {
	info, err := dump(func() (netlink.Protinfo, error) { return h.raw.LinkGetProtinfo(byIndex(port)) })
	if err != nil {
		return Port{}, fmt.Errorf("reading bridge port %d: %w", port, orNotFound(err))
	}
	return Port{Isolated: info.Isolated, Hairpin: info.Hairpin}, nil
}

// Rename gives a link that is down another name.
func (h *Handle) Rename(index int, name string) error {
	if err := do(func() error { return h.raw.LinkSetName(byIndex(index), name) }); err != nil {
		return fmt.Errorf("renaming link %d to %s: %w", index, name, orNotFound(err))
	}
	return nil
}

// Free takes a link out of its bridge or bond.
func (h *Handle) Free(index int) error {
	if err := do(func() error { return h.raw.LinkSetNoMaster(byIndex(index)) }); err != nil {
		return fmt.Errorf("taking link %d out of its master: %w", index, orNotFound(err))
	}
	return nil
}

// Receive says which frames of others an interface takes.
type Receive struct {
	Promiscuous  bool
	AllMulticast bool
}

// SetReceive turns on what is true, and leaves the rest.
func (h *Handle) SetReceive(index int, r Receive) error {
	link := byIndex(index)
	var errs []error
	if r.Promiscuous {
		errs = append(errs, do(func() error { return h.raw.SetPromiscOn(link) }))
	}
	if r.AllMulticast {
		errs = append(errs, do(func() error { return h.raw.LinkSetAllmulticastOn(link) }))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("setting what link %d receives: %w", index, orNotFound(err))
	}
	return nil
}

// AddMacvlan makes a macvlan of a link in the network namespace behind the descriptor; modes are bridge, private, vepa and
// passthru.
func (h *Handle) AddMacvlan(name string, master int, mode string, netns int) error {
	modes := map[string]netlink.MacvlanMode{
		"bridge": netlink.MACVLAN_MODE_BRIDGE, "private": netlink.MACVLAN_MODE_PRIVATE, "vepa": netlink.MACVLAN_MODE_VEPA,
		"passthru": netlink.MACVLAN_MODE_PASSTHRU,
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.Namespace = name, master, netlink.NsFd(netns)
	link := &netlink.Macvlan{LinkAttrs: attrs, Mode: modes[mode]}
	if err := do(func() error { return h.raw.LinkAdd(link) }); err != nil {
		return fmt.Errorf("making macvlan %s: %w", name, orNotFound(err))
	}
	return nil
}

func flag(on bool) []byte {
	if on {
		return []byte{1}
	}
	return []byte{0}
}

// request is a message of the handle's own socket, for what the library does not know.
func (h *Handle) request(kind, flags int) *rt.NetlinkRequest {
	req := rt.NewNetlinkRequest(kind, flags)
	req.Sockets = map[int]*rt.SocketHandle{unix.NETLINK_ROUTE: h.own}
	return req
}
