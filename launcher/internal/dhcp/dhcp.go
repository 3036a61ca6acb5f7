// Package dhcp tells one guest what its NIC is: DHCPv4 (RFC 2131), DHCPv6 (RFC 8415) and router advertisements
// (RFC 4861, 8106). An unprivileged process may open neither port 67 nor a raw socket, so the server reads and writes
// Ethernet frames at the service tap svc<N>, to which the CNI plugin redirects the guest's requests (network.md 2.8).
//
// There is one client and one address: every answer follows from the [Config] and the request, and nothing is stored.
package dhcp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Lease is how long an address is given for: 999 days (network.md NW-012), so that a guest asks only when it starts.
const Lease = 999 * 24 * time.Hour

// Route is a route the guest shall have. An invalid gateway means on link.
type Route struct {
	Destination netip.Prefix
	Gateway     netip.Addr
}

// Config is everything that one guest NIC is told. The zero value of a part says that it is not offered.
type Config struct {
	GuestMAC  net.HardwareAddr // the only client that is answered
	ServerMAC net.HardwareAddr // source of our frames
	MTU       int              // 0: not told

	DHCP bool // answer DHCPv4 and DHCPv6
	RA   bool // answer router solicitations and advertise

	V4 V4
	V6 V6

	Hostname string
	DNS      []netip.Addr // both families; each protocol tells its own
	Search   []string
	NTP      []netip.Addr
	TFTP     string
	Bootfile string
	Private  map[uint8][]byte // DHCPv4 options 224 to 254
}

// V4 is the IPv4 part.
type V4 struct {
	Address netip.Prefix // the guest's; invalid: DHCPv4 is not answered
	Server  netip.Addr   // our identity, and the source of our packets
	Router  netip.Addr   // invalid: no default route here
	Routes  []Route      // options 121 and 249
}

// V6 is the IPv6 part.
type V6 struct {
	Address netip.Prefix   // the guest's; invalid: DHCPv6 gives no address
	Server  netip.Addr     // link-local source of our packets
	Router  bool           // whether Server is the guest's default router
	Routes  []netip.Prefix // behind Server where it is not (RFC 4191)
}

// ErrConfig is wrapped by the errors of [Config.Validate].
var ErrConfig = errors.New("DHCP configuration")

// Validate says what is wrong with a configuration.
func (c Config) Validate() error {
	switch {
	case len(c.GuestMAC) != 6 || len(c.ServerMAC) != 6:
		return fmt.Errorf("%w: a MAC address has 6 octets", ErrConfig)
	case c.V4.Address.IsValid() && (!c.V4.Address.Addr().Is4() || !c.V4.Server.Is4()):
		return fmt.Errorf("%w: IPv4 address %s needs an IPv4 server, not %s", ErrConfig, c.V4.Address, c.V4.Server)
	case (c.RA || c.DHCP && c.V6.Address.IsValid()) && !c.V6.Server.IsLinkLocalUnicast():
		return fmt.Errorf("%w: IPv6 server %s is not link-local", ErrConfig, c.V6.Server)
	case c.MTU != 0 && (c.MTU < 68 || c.MTU > 65535):
		return fmt.Errorf("%w: MTU %d", ErrConfig, c.MTU)
	}
	for code := range c.Private {
		if code < 224 || code > 254 {
			return fmt.Errorf("%w: private option %d: only 224 to 254", ErrConfig, code)
		}
	}
	return nil
}

// family returns the addresses of one family.
func family(addresses []netip.Addr, want4 bool) []net.IP {
	var out []net.IP
	for _, a := range addresses {
		if a.Is4() == want4 {
			out = append(out, a.AsSlice())
		}
	}
	return out
}
