package dhcp

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"

	"podvirt.dev/api"
	"podvirt.dev/internal/nl"
	"podvirt.dev/launcher/internal/nics"
)

// Guest is what all NICs of a VM share.
type Guest struct {
	Hostname string
	Resolv   Resolv // the Pod's own /etc/resolv.conf (network.md 2.1)
	// DefaultRoute is the name of the NIC that has the guest's default route.
	DefaultRoute string
}

// Plan decides what one NIC is told: options are those of podvirt.dev/nic.NAME (network.md 2.2), zero where there are
// none.
func Plan(nic nics.NIC, options api.NIC, guest Guest) Config {
	router := guest.DefaultRoute == nic.Name
	owned := nic.Binding == string(api.BindingWire) || nic.Binding == string(api.BindingBridge)
	c := Config{
		GuestMAC: nic.MAC, ServerMAC: nic.GatewayMAC, MTU: nic.MTU, Hostname: guest.Hostname,
		DHCP:     options.DHCP != "off" && (nic.Guest4.IsValid() || nic.Guest6.IsValid()),
		DNS:      servers(options.DHCPDNS, guest.Resolv.Servers),
		Search:   domains(options.DHCPSearch, guest.Resolv.Search),
		NTP:      addresses(options.DHCPNTP),
		TFTP:     options.DHCPTFTP,
		Bootfile: options.DHCPBootfile,
		Private:  private(options.DHCPPrivate),
	}
	if options.MTU > 0 {
		c.MTU = options.MTU
	}
	server := nic.Server4
	if !server.IsValid() {
		server = nic.Gateway4
	}
	if nic.Guest4.IsValid() && server.IsValid() {
		c.V4 = V4{Address: nic.Guest4, Server: server}
		if owned { // the Pod's gateways are the guest's
			c.V4.Routes = routes(nic.Routes)
			if !nic.OnLink { // the neighbours of a routed Pod are behind its gateway
				c.V4.Address = netip.PrefixFrom(nic.Guest4.Addr(), nic.Guest4.Addr().BitLen())
			}
		}
		if router {
			c.V4.Router = nic.Gateway4
		}
	}
	beside := nic.Binding == string(api.BindingMasquerade) && !router
	if nic.Guest6.IsValid() && nic.LinkLocal.IsValid() {
		c.V6 = V6{Address: nic.Guest6, Server: nic.LinkLocal, Router: router && !owned}
		c.RA = options.RA != "off"
	}
	if beside {
		c.keepPodNetwork(nic)
	}
	return c
}

// keepPodNetwork tells a guest whose default route is elsewhere what it still reaches through the Pod: the networks of the
// Pod's own routes, and its name servers (NW-050). A cluster whose Services are behind the Pod's default route alone
// needs a route of the guest's own to them.
func (c *Config) keepPodNetwork(nic nics.NIC) {
	var networks []netip.Prefix
	for _, r := range nic.Routes {
		networks = append(networks, r.Destination)
	}
	for _, server := range c.DNS {
		if !slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(server) }) {
			networks = append(networks, netip.PrefixFrom(server, server.BitLen()))
		}
	}
	for _, network := range networks {
		switch {
		case network.Addr().Is6():
			c.V6.Routes = append(c.V6.Routes, network)
		case nic.Gateway4.IsValid() && c.V4.Address.IsValid() && !c.V4.Address.Contains(network.Addr()):
			c.V4.Routes = append(c.V4.Routes, Route{Destination: network, Gateway: nic.Gateway4})
		}
	}
}

// routes are the classless static routes of DHCPv4.
func routes(all []nl.Route) []Route {
	var out []Route
	for _, r := range all {
		if r.Destination.Addr().Is4() {
			out = append(out, Route{Destination: r.Destination, Gateway: r.Gateway})
		}
	}
	return out
}

// servers returns the DNS servers of an option: auto or nothing means the Pod's, none means none.
func servers(option []string, pod []netip.Addr) []netip.Addr {
	if len(option) == 0 || len(option) == 1 && option[0] == "auto" {
		return pod
	}
	return addresses(option)
}

func domains(option, pod []string) []string {
	switch {
	case len(option) == 0 || len(option) == 1 && option[0] == "auto":
		return pod
	case len(option) == 1 && option[0] == "none":
		return nil
	}
	return option
}

// addresses reads a list that package api has already checked; other words, as none, are left out.
func addresses(list []string) []netip.Addr {
	var out []netip.Addr
	for _, word := range list {
		if address, err := netip.ParseAddr(word); err == nil {
			out = append(out, address)
		}
	}
	return out
}

// private returns the values of options 224 to 254: text, or bytes after 0x.
func private(options map[int]string) map[uint8][]byte {
	if len(options) == 0 {
		return nil
	}
	out := make(map[uint8][]byte, len(options))
	for code, value := range options {
		raw := []byte(value)
		if digits, isHex := strings.CutPrefix(value, "0x"); isHex {
			if decoded, err := hex.DecodeString(digits); err == nil {
				raw = decoded
			}
		}
		out[uint8(code)] = raw
	}
	return out
}
