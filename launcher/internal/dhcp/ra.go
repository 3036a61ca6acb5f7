package dhcp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/rfc1035label"
)

// Router advertisements (RFC 4861 sections 4.2 and 6.2, RFC 8106 for DNS).
const (
	icmpRouterSolicitation  = 133
	icmpRouterAdvertisement = 134

	flagManaged    = 0x80 // addresses by DHCPv6
	flagOther      = 0x40 // other configuration by DHCPv6
	flagOnLink     = 0x80 // of a prefix; not autonomous: no guest makes up an address
	routerLifetime = 9000 * time.Second
	infinite       = 0xffffffff

	optionSourceLink = 1
	optionPrefix     = 3
	optionMTU        = 5
	optionRoute      = 24
	optionRDNSS      = 25
	optionDNSSL      = 31

	// maxRoutes keeps an advertisement in one frame.
	maxRoutes = 16

	minInterval = 200 * time.Second
	maxInterval = 600 * time.Second
	// dnsLifetime outlives two lost advertisements.
	dnsLifetime = 3 * maxInterval
)

// advertisement returns the ICMPv6 message; its checksum is filled in by the packet.
func (c Config) advertisement() []byte {
	flags := byte(0)
	if c.DHCP {
		flags = flagOther
		if c.V6.Address.IsValid() {
			flags |= flagManaged
		}
	}
	lifetime := uint32(0)
	if c.V6.Router {
		lifetime = seconds32(routerLifetime)
	}
	m := []byte{icmpRouterAdvertisement, 0, 0, 0, defaultTTL, flags}
	m = binary.BigEndian.AppendUint16(m, uint16(lifetime))
	m = append(m, make([]byte, 8)...) // reachable time and retransmission timer: unspecified
	m = append(m, optionSourceLink, 1)
	m = append(m, c.ServerMAC...)
	if c.MTU > 0 {
		m = append(m, optionMTU, 1, 0, 0)
		m = binary.BigEndian.AppendUint32(m, uint32(max(c.MTU, 1280))) // IPv6 has no smaller one
	}
	if prefix := c.V6.Address; prefix.IsValid() && prefix.Bits() < 128 {
		m = append(m, optionPrefix, 4, byte(prefix.Bits()), flagOnLink)
		m = binary.BigEndian.AppendUint32(m, infinite)
		m = binary.BigEndian.AppendUint32(m, infinite)
		m = append(m, 0, 0, 0, 0)
		m = append(m, prefix.Masked().Addr().AsSlice()...)
	}
	for _, network := range c.V6.Routes[:min(len(c.V6.Routes), maxRoutes)] { // RFC 4191 section 2.3
		m = append(m, optionRoute, 3, byte(network.Bits()), 0)
		m = binary.BigEndian.AppendUint32(m, infinite)
		m = append(m, network.Masked().Addr().AsSlice()...)
	}
	return c.appendDNS(m)
}

func (c Config) appendDNS(m []byte) []byte {
	servers := family(c.DNS, false)
	if len(servers) > 16 {
		servers = servers[:16]
	}
	if len(servers) > 0 {
		m = append(m, optionRDNSS, byte(1+2*len(servers)), 0, 0)
		m = binary.BigEndian.AppendUint32(m, seconds32(dnsLifetime))
		for _, server := range servers {
			m = append(m, server.To16()...)
		}
	}
	if names := searchNames(c.Search); len(names) > 0 {
		m = append(m, optionDNSSL, byte(1+len(names)/8), 0, 0)
		m = binary.BigEndian.AppendUint32(m, seconds32(dnsLifetime))
		m = append(m, names...)
	}
	return m
}

// searchNames encodes as many domains as fit comfortably into an option, padded to units of eight bytes. RFC 8106
// forbids compression.
func searchNames(domains []string) []byte {
	const most = 1024
	var names []byte
	for _, domain := range domains {
		label := rfc1035label.Labels{Labels: []string{domain}}
		encoded := label.ToBytes()
		if len(names)+len(encoded) > most {
			break
		}
		names = append(names, encoded...)
	}
	for len(names)%8 != 0 {
		names = append(names, 0)
	}
	return names
}

// allNodes is the multicast group of every host on the link, and its MAC.
func allNodes() (netip.Addr, net.HardwareAddr) {
	return netip.IPv6LinkLocalAllNodes(), net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
}

// advertise returns the frame of an advertisement to one host, or with an invalid address to all.
func (c Config) advertise(destination netip.Addr, mac net.HardwareAddr) []byte {
	if !destination.IsValid() {
		destination, mac = allNodes()
	}
	return packet{
		sourceMAC: c.ServerMAC, destinationMAC: mac, source: c.V6.Server, destination: destination,
		protocol: protocolICMPv6, hopLimit: hopLimitND, payload: c.advertisement(),
	}.frame()
}
