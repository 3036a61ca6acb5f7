package nl

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link is what podvirt reads of a network interface.
type Link struct {
	Index    int
	Name     string
	Kind     string // as the kernel names it: veth, tun, bridge, macvlan, …; "device" for hardware
	Alias    string // ifalias, at most 255 bytes
	MAC      net.HardwareAddr
	MTU      int
	Up       bool // administratively
	Carrier  bool
	Loopback bool
	NoARP    bool
	Peer     int // index of the other end of a veth, of the lower device; 0: none
	Master   int // index of the bridge or bond it is a port of; 0: none
	Tap      *Tap
}

// Tap says how a persistent tap may be opened.
type Tap struct {
	UID, GID   *uint32 // nil: anybody who can open /dev/net/tun
	MultiQueue bool
}

// Links returns all interfaces of the namespace in the order of their indexes.
func (h *Handle) Links() ([]Link, error) {
	raw, err := dump(h.raw.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	links := make([]Link, 0, len(raw))
	for _, l := range raw {
		links = append(links, linkOf(l))
	}
	return links, nil
}

// Link returns one interface by name; the error wraps [ErrNotFound] where there is none.
func (h *Handle) Link(name string) (Link, error) {
	raw, err := dump(func() (netlink.Link, error) { return h.raw.LinkByName(name) })
	if err != nil {
		return Link{}, fmt.Errorf("link %s: %w", name, orNotFound(err))
	}
	return linkOf(raw), nil
}

// Delete removes the interface.
func (h *Handle) Delete(index int) error {
	if err := do(func() error { return h.raw.LinkDel(byIndex(index)) }); err != nil {
		return fmt.Errorf("deleting link %d: %w", index, orNotFound(err))
	}
	return nil
}

// Changes are settings of an interface; what is left zero is not touched.
type Changes struct {
	Alias  string
	MAC    net.HardwareAddr
	MTU    int
	Master int // index of a bridge
	Up     bool
}

// Set applies the changes in the order alias, MAC, MTU, master, up.
func (h *Handle) Set(index int, c Changes) error {
	link := byIndex(index)
	calls := []struct {
		name   string
		wanted bool
		set    func() error
	}{
		{"alias", c.Alias != "", func() error { return h.raw.LinkSetAlias(link, c.Alias) }},
		{"MAC", c.MAC != nil, func() error { return h.raw.LinkSetHardwareAddr(link, c.MAC) }},
		{"MTU", c.MTU != 0, func() error { return h.raw.LinkSetMTU(link, c.MTU) }},
		{"master", c.Master != 0, func() error { return h.raw.LinkSetMasterByIndex(link, c.Master) }},
		{"up", c.Up, func() error { return h.raw.LinkSetUp(link) }},
	}
	for _, call := range calls {
		if !call.wanted {
			continue
		}
		if err := do(call.set); err != nil {
			return fmt.Errorf("setting %s of link %d: %w", call.name, index, orNotFound(err))
		}
	}
	return nil
}

// Down takes the interface down.
func (h *Handle) Down(index int) error {
	if err := do(func() error { return h.raw.LinkSetDown(byIndex(index)) }); err != nil {
		return fmt.Errorf("taking link %d down: %w", index, orNotFound(err))
	}
	return nil
}

// AddVeth makes a veth pair; the peer is born in the network namespace behind the descriptor peerNS.
func (h *Handle) AddVeth(name, peer string, peerNS int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerNamespace: netlink.NsFd(peerNS)}
	if err := do(func() error { return h.raw.LinkAdd(veth) }); err != nil {
		return fmt.Errorf("making veth %s: %w", name, err)
	}
	return nil
}

// AddBridge makes a Linux bridge.
func (h *Handle) AddBridge(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := do(func() error { return h.raw.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}) }); err != nil {
		return fmt.Errorf("making bridge %s: %w", name, err)
	}
	return nil
}

func byIndex(index int) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

func linkOf(raw netlink.Link) Link {
	attrs := raw.Attrs()
	link := Link{
		Index: attrs.Index, Name: attrs.Name, Kind: raw.Type(), Alias: attrs.Alias, MAC: attrs.HardwareAddr, MTU: attrs.MTU,
		Up: attrs.Flags&net.FlagUp != 0, Carrier: attrs.RawFlags&unix.IFF_LOWER_UP != 0,
		Loopback: attrs.Flags&net.FlagLoopback != 0, NoARP: attrs.RawFlags&unix.IFF_NOARP != 0,
		Peer: attrs.ParentIndex, Master: attrs.MasterIndex,
	}
	if tun, ok := raw.(*netlink.Tuntap); ok && tun.Mode == netlink.TUNTAP_MODE_TAP {
		link.Tap = &Tap{UID: owner(tun.Owner), GID: owner(tun.Group), MultiQueue: tun.Flags&netlink.TUNTAP_MULTI_QUEUE != 0}
	}
	return link
}

func orNotFound(err error) error {
	if errors.Is(err, ErrNotFound) || !IsNotFound(err) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNotFound, err)
}
