package nl

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// AddFilteringBridge makes a Linux bridge that keeps VLANs apart. No VLAN is given to a port by default: a port without
// AddPortVLAN neither sends nor receives (Linux, Documentation/networking/bridge.rst).
func (h *Handle) AddFilteringBridge(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	filtering, none := true, uint16(0)
	bridge := &netlink.Bridge{LinkAttrs: attrs, VlanFiltering: &filtering, VlanDefaultPVID: &none}
	if err := do(func() error { return h.raw.LinkAdd(bridge) }); err != nil {
		return fmt.Errorf("making bridge %s with VLAN filtering: %w", name, err)
	}
	return nil
}

// AddPortVLAN lets a VLAN through a port of a filtering bridge. On an access port frames are untagged outside and belong
// to that VLAN inside; else they carry its tag.
func (h *Handle) AddPortVLAN(port int, id uint16, access bool) error {
	err := do(func() error { return h.raw.BridgeVlanAdd(byIndex(port), id, access, access, false, true) })
	if err != nil {
		return fmt.Errorf("letting VLAN %d through bridge port %d: %w", id, port, err)
	}
	return nil
}

// AddVLAN makes an interface of its own for the frames with one 802.1Q tag that the parent receives.
func (h *Handle) AddVLAN(name string, parent int, id uint16) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = name, parent
	vlan := &netlink.Vlan{LinkAttrs: attrs, VlanId: int(id), VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	if err := do(func() error { return h.raw.LinkAdd(vlan) }); err != nil {
		return fmt.Errorf("making interface %s of VLAN %d: %w", name, id, err)
	}
	return nil
}
