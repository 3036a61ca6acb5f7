package nl

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Address is one address of an interface with the length of its prefix.
type Address struct {
	Prefix    netip.Prefix
	LinkLocal bool // scope link: 169.254/16 by the kernel's rule, fe80::/10
	Tentative bool // IPv6: duplicate address detection runs or failed
}

// Route is one unicast route of the main table.
type Route struct {
	Destination netip.Prefix // 0.0.0.0/0 or ::/0 is the default route
	Gateway     netip.Addr   // invalid: on link
	Source      netip.Addr   // invalid: none
	Link        int          // index
	Priority    int
	MTU         int
}

// Addresses returns the addresses of one interface, both families, IPv4 first.
func (h *Handle) Addresses(index int) ([]Address, error) {
	var out []Address
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		raw, err := dump(func() ([]netlink.Addr, error) { return h.raw.AddrList(byIndex(index), family) })
		if err != nil {
			return nil, fmt.Errorf("listing addresses of link %d: %w", index, err)
		}
		for _, a := range raw {
			prefix, ok := prefixOf(a.IPNet)
			if !ok {
				continue
			}
			out = append(out, Address{
				Prefix: prefix, LinkLocal: a.Scope == unix.RT_SCOPE_LINK,
				Tentative: a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0,
			})
		}
	}
	return out, nil
}

// AddAddress gives the interface an address; an IPv6 address is usable at once, without duplicate address detection.
func (h *Handle) AddAddress(index int, prefix netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(prefix)}
	if prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
		addr.Scope = int(netlink.SCOPE_UNIVERSE)
		if prefix.Addr().IsLinkLocalUnicast() {
			addr.Scope = int(netlink.SCOPE_LINK)
		}
	}
	if err := do(func() error { return h.raw.AddrAdd(byIndex(index), addr) }); err != nil {
		return fmt.Errorf("adding %s to link %d: %w", prefix, index, orNotFound(err))
	}
	return nil
}

// DeleteAddress takes an address off the interface.
func (h *Handle) DeleteAddress(index int, prefix netip.Prefix) error {
	if err := do(func() error { return h.raw.AddrDel(byIndex(index), &netlink.Addr{IPNet: ipNet(prefix)}) }); err != nil {
		return fmt.Errorf("taking %s off link %d: %w", prefix, index, orNotFound(err))
	}
	return nil
}

// Routes returns the unicast routes of the main table, both families.
func (h *Handle) Routes() ([]Route, error) {
	var out []Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		filter := &netlink.Route{Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}
		raw, err := dump(func() ([]netlink.Route, error) {
			return h.raw.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
		})
		if err != nil {
			return nil, fmt.Errorf("listing routes: %w", err)
		}
		for _, r := range raw {
			out = append(out, routeOf(r, family))
		}
	}
	return out, nil
}

// AddRoute adds a unicast route to the main table.
func (h *Handle) AddRoute(route Route) error {
	raw := &netlink.Route{LinkIndex: route.Link, Dst: ipNet(route.Destination), Priority: route.Priority, MTU: route.MTU}
	if route.Gateway.IsValid() {
		raw.Gw = route.Gateway.AsSlice()
	} else {
		raw.Scope = netlink.SCOPE_LINK
	}
	if route.Source.IsValid() {
		raw.Src = route.Source.AsSlice()
	}
	if err := do(func() error { return h.raw.RouteAdd(raw) }); err != nil {
		return fmt.Errorf("adding route to %s: %w", route.Destination, orNotFound(err))
	}
	return nil
}

// DeleteRoute takes a unicast route out of the main table.
func (h *Handle) DeleteRoute(route Route) error {
	raw := &netlink.Route{LinkIndex: route.Link, Dst: ipNet(route.Destination), Priority: route.Priority, Scope: netlink.SCOPE_NOWHERE}
	if route.Gateway.IsValid() {
		raw.Gw = route.Gateway.AsSlice()
	}
	if err := do(func() error { return h.raw.RouteDel(raw) }); err != nil {
		return fmt.Errorf("deleting route to %s: %w", route.Destination, orNotFound(err))
	}
	return nil
}

func routeOf(r netlink.Route, family int) Route {
	route := Route{Link: r.LinkIndex, Priority: r.Priority, MTU: r.MTU}
	if prefix, ok := prefixOf(r.Dst); ok {
		route.Destination = prefix
	} else if family == netlink.FAMILY_V4 {
		route.Destination = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	} else {
		route.Destination = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if gateway, ok := netip.AddrFromSlice(r.Gw); ok {
		route.Gateway = gateway.Unmap()
	}
	if source, ok := netip.AddrFromSlice(r.Src); ok {
		route.Source = source.Unmap()
	}
	return route
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if !ok || size == 0 {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr.Unmap(), bits), true
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
