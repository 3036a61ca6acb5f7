package lan

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"podvirt.dev/cni-bridge/internal/fault"
	"podvirt.dev/cni-bridge/internal/netconf"
	"podvirt.dev/internal/nl"
)

// created is the alias of bridges that were made here, followed by their uplink.
const created = "podvirt:created"

// The bridge's default VLAN, and the ones that an uplink carries tagged.
const (
	defaultVLAN = 1
	lastVLAN    = 4094
)

// birthName is the name of a bridge until it is complete, which is what lets nobody see one half made: a process that is
// killed leaves this name, and whoever comes next removes it. The lock of the bridge must be held.
func birthName(bridge string) string {
	sum := sha256.Sum256([]byte(bridge))
	return "pvb" + hex.EncodeToString(sum[:5])
}

// ensureBridge finds the bridge as the network needs it, or makes it.
func ensureBridge(h *nl.Handle, l netconf.LAN) error {
	link, err := h.Link(l.Bridge)
	if nl.IsNotFound(err) {
		if !l.Create {
			return missing(h, l.Bridge)
		}
		if err := makeBridge(h, l); err != nil {
			return err
		}
		link, err = h.Link(l.Bridge)
	}
	if err != nil {
		return fault.Wrap(fault.Bridge, "bridge "+l.Bridge, err)
	}
	if link.Kind != "bridge" {
		return fault.New(fault.Bridge, "%s: not a bridge (%s)", l.Bridge, link.Kind)
	}
	if err := fits(h, link, l); err != nil {
		return err
	}
	uplink, ours := strings.CutPrefix(link.Alias, created)
	if uplink = strings.TrimSpace(uplink); !ours || uplink == "" {
		return nil
	}
	return takeUplink(h, link, uplink)
}

func missing(h *nl.Handle, bridge string) error {
	links, err := h.Links()
	if err != nil {
		return fault.Wrap(fault.Bridge, "bridge "+bridge, err)
	}
	var there []string
	for _, link := range links {
		if link.Kind == "bridge" {
			there = append(there, link.Name)
		}
	}
	node, err := os.Hostname()
	if err != nil {
		node = "?"
	}
	text := "there is none"
	if len(there) > 0 {
		text = "bridges there: " + strings.Join(there, ", ")
	}
	return fault.New(fault.Bridge, "bridge %s: not on node %s; %s", bridge, node, text)
}

// fits compares a bridge with the network's wishes; it is never changed under the feet of its other ports.
func fits(h *nl.Handle, link nl.Link, l netconf.LAN) error {
	has, err := h.BridgeOf(link.Index)
	if err != nil {
		return fault.Wrap(fault.Bridge, "bridge "+l.Bridge, err)
	}
	proto := map[bool]string{false: "802.1q", true: "802.1ad"}[has.VLANProtocol == unix.ETH_P_8021AD]
	switch {
	case l.Filters() && !has.VLANFiltering:
		return fault.New(fault.VLAN, "bridge %s: VLAN filtering is off", l.Bridge)
	case l.Filters() && l.ServiceTags != (proto == "802.1ad"):
		return fault.New(fault.VLAN, "bridge %s speaks %s", l.Bridge, proto)
	case l.STP != nil && *l.STP != has.STP:
		return fault.New(fault.VLAN, "stp: bridge %s exists with stp %s", l.Bridge, onOff(has.STP))
	case l.Snooping != nil && *l.Snooping != has.MulticastSnooping:
		return fault.New(fault.VLAN, "multicastSnooping: bridge %s exists with multicast snooping %s", l.Bridge, onOff(has.MulticastSnooping))
	}
	return nil
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func makeBridge(h *nl.Handle, l netconf.LAN) error {
	if l.Uplink != "" {
		if _, err := checkUplink(h, l.Uplink, 0, l.MTU); err != nil {
			return err
		}
	}
	name := birthName(l.Bridge)
	if err := remove(h, name); err != nil {
		return fault.Wrap(fault.Bridge, "bridge "+l.Bridge, err)
	}
	wish := nl.Bridge{VLANFiltering: true, VLANProtocol: unix.ETH_P_8021Q, DefaultPVID: defaultVLAN, MulticastSnooping: true}
	if l.ServiceTags {
		wish.VLANProtocol = unix.ETH_P_8021AD
	}
	if l.STP != nil {
		wish.STP = *l.STP
	}
	if l.Snooping != nil {
		wish.MulticastSnooping = *l.Snooping
	}
	err := h.MakeBridge(name, wish)
	if lacksFiltering(err) && l.Filters() {
		return fault.Wrap(fault.Kernel, "bridge "+l.Bridge+": this kernel's bridges cannot filter VLANs", err)
	}
	if lacksFiltering(err) {
		wish.VLANFiltering = false
		err = h.MakeBridge(name, wish)
	}
	if err != nil {
		return fault.Wrap(fault.Bridge, "bridge "+l.Bridge, err)
	}
	link, err := h.Link(name)
	if err == nil {
		err = errors.Join(h.Set(link.Index, nl.Changes{Alias: strings.TrimSpace(created + " " + l.Uplink)}), h.Rename(link.Index, l.Bridge),
			silent(l.Bridge), h.Set(link.Index, nl.Changes{Up: true}))
	}
	return fault.Wrap(fault.Bridge, "bridge "+l.Bridge, err)
}

func lacksFiltering(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// checkUplink returns an interface that the bridge with this index may take; bridge 0 is one that is not made yet.
func checkUplink(h *nl.Handle, name string, bridge, mtu int) (nl.Link, error) {
	link, err := h.Link(name)
	if nl.IsNotFound(err) {
		return link, fault.New(fault.Uplink, "uplink %s: not on this node", name)
	}
	if err != nil {
		return link, fault.Wrap(fault.Uplink, "uplink "+name, err)
	}
	if link.Master != 0 && link.Master != bridge {
		master := fmt.Sprint(link.Master)
		links, _ := h.Links()
		for _, other := range links {
			if other.Index == link.Master {
				master = other.Name
			}
		}
		return link, fault.New(fault.Uplink, "uplink %s is a port of %s already", name, master)
	}
	addresses, err := h.Addresses(link.Index)
	if err != nil {
		return link, fault.Wrap(fault.Uplink, "uplink "+name, err)
	}
	for _, a := range addresses {
		if !a.Prefix.Addr().IsLinkLocalUnicast() {
			return link, fault.New(fault.Uplink, "uplink %s holds %s: taking it would cut the node off; use node-network", name, a.Prefix.Addr())
		}
	}
	routes, err := h.Routes()
	if err != nil {
		return link, fault.Wrap(fault.Uplink, "uplink "+name, err)
	}
	for _, r := range routes {
		if r.Link == link.Index && r.Destination.Bits() == 0 {
			return link, fault.New(fault.Uplink, "uplink %s has the default route: taking it would cut the node off; use node-network", name)
		}
	}
	if mtu > link.MTU {
		return link, fault.New(fault.Config, "mtu %d: uplink %s has %d", mtu, name, link.MTU)
	}
	return link, nil
}

// takeUplink makes the interface a port that carries every VLAN tagged, and the default one as it comes.
func takeUplink(h *nl.Handle, bridge nl.Link, name string) error {
	link, err := checkUplink(h, name, bridge.Index, 0)
	if err != nil || link.Master == bridge.Index {
		return err
	}
	if err := h.Set(link.Index, nl.Changes{Master: bridge.Index, Up: true}); err != nil {
		return fault.Wrap(fault.Uplink, "uplink "+name, err)
	}
	has, err := h.BridgeOf(bridge.Index)
	if err == nil && has.VLANFiltering {
		err = h.PortVLANs(link.Index, defaultVLAN+1, lastVLAN)
	}
	return fault.Wrap(fault.Uplink, "uplink "+name, err)
}

// addPort puts the node's end into the bridge, with its VLANs before it is up.
func addPort(h *nl.Handle, l netconf.LAN, name string) error {
	bridge, err1 := h.Link(l.Bridge)
	port, err2 := h.Link(name)
	if err := errors.Join(err1, err2); err != nil {
		return fault.Wrap(fault.Bridge, "bridge "+l.Bridge, err)
	}
	if err := checkMTU(h, bridge, l); err != nil {
		return err
	}
	mtu := l.MTU
	if mtu == 0 {
		mtu = bridge.MTU
	}
	if err := errors.Join(silent(name), h.Set(port.Index, nl.Changes{MTU: mtu, Master: bridge.Index})); err != nil {
		return fault.Wrap(fault.Bridge, "port "+name, err)
	}
	if err := setVLANs(h, bridge, l, port.Index); err != nil {
		return fault.Wrap(fault.VLAN, "port "+name, err)
	}
	if l.Isolated || l.Hairpin {
		if err := h.SetPort(port.Index, nl.Port{Isolated: l.Isolated, Hairpin: l.Hairpin}); err != nil {
			return fault.Wrap(fault.Kernel, "port "+name, err)
		}
	}
	return fault.Wrap(fault.Bridge, "port "+name, h.Set(port.Index, nl.Changes{Up: true}))
}

func checkMTU(h *nl.Handle, bridge nl.Link, l netconf.LAN) error {
	uplink, ours := strings.CutPrefix(bridge.Alias, created)
	uplink = strings.TrimSpace(uplink)
	switch {
	case l.MTU == 0, ours && uplink == "":
		return nil // a bridge without a way out carries what its ports do
	case ours:
		_, err := checkUplink(h, uplink, bridge.Index, l.MTU)
		return err
	case l.MTU > bridge.MTU:
		return fault.New(fault.Config, "mtu %d: bridge %s has %d", l.MTU, l.Bridge, bridge.MTU)
	}
	return nil
}

func setVLANs(h *nl.Handle, bridge nl.Link, l netconf.LAN, port int) error {
	has, err := h.BridgeOf(bridge.Index)
	if err != nil || !l.Filters() {
		return err
	}
	if l.VLAN != 0 {
		if err := h.AddPortVLAN(port, uint16(l.VLAN), true); err != nil {
			return err
		}
	}
	for _, set := range l.Trunk {
		if err := h.PortVLANs(port, uint16(set.First), uint16(set.Last)); err != nil {
			return err
		}
	}
	if l.KeepDefault || has.DefaultPVID == 0 || int(has.DefaultPVID) == l.VLAN || inTrunk(l, int(has.DefaultPVID)) {
		return nil
	}
	return h.DeletePortVLAN(port, has.DefaultPVID)
}

// Warnings says of an attachment that was made what it lacks for frames to leave the node: on a bridge that others made nobody
// gives VLANs to the uplink but they.
func Warnings(h *nl.Handle, l netconf.LAN) []string {
	bridge, err := h.Link(l.Bridge)
	if err != nil || l.VLAN == 0 {
		return nil
	}
	links, err := h.Links()
	if err != nil {
		return nil
	}
	missing := ""
	for _, link := range links {
		if link.Master != bridge.Index || link.Name != l.Uplink && (link.Kind == "veth" || link.Kind == "tun") {
			continue // of a Pod
		}
		vlans, err := h.VLANsOf(link.Index)
		if err != nil || slices.ContainsFunc(vlans, func(v nl.VLAN) bool { return int(v.ID) == l.VLAN }) {
			return nil
		}
		missing = link.Name
	}
	if missing == "" {
		return nil
	}
	return []string{fmt.Sprintf("no uplink of bridge %s lets VLAN %d through: bridge vlan add dev %s vid %d", l.Bridge, l.VLAN, missing, l.VLAN)}
}

func inTrunk(l netconf.LAN, id int) bool {
	for _, set := range l.Trunk {
		if set.First <= id && id <= set.Last {
			return true
		}
	}
	return false
}

// dropBridge removes a bridge that was made here and has no port left but its uplink. Its lock must be held.
func dropBridge(h *nl.Handle, name string) error {
	if err := remove(h, birthName(name)); err != nil {
		return err
	}
	bridge, err := h.Link(name)
	if nl.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	uplink, ours := strings.CutPrefix(bridge.Alias, created)
	if !ours {
		return nil
	}
	links, err := h.Links()
	if err != nil {
		return err
	}
	for _, link := range links {
		if link.Master == bridge.Index && link.Name != strings.TrimSpace(uplink) {
			return nil
		}
	}
	return remove(h, name) // its uplink is free then
}

// silent keeps the node's own stack off an interface that only carries frames of Pods. The setting goes with the
// interface; a kernel without IPv6 has none.
func silent(name string) error {
	err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0o644)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
