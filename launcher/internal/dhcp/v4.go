package dhcp

import (
	"bytes"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

const (
	portServer4 = 67
	portClient4 = 68

	// minMessage4 is what every client takes (RFC 2131 section 2); option 57 may offer more.
	minMessage4 = 576
	// optionRoutesMicrosoft is option 121 under the number Windows asked for before RFC 3442.
	optionRoutesMicrosoft = 249
)

// answer4 returns the answer to a DHCPv4 message of the guest; nil: it deserves none.
func (c Config) answer4(request *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	if !c.DHCP || !c.V4.Address.IsValid() || request.OpCode != dhcpv4.OpcodeBootRequest ||
		!bytes.Equal(request.ClientHWAddr, c.GuestMAC) || !isUnset(request.GatewayIPAddr) {
		return nil
	}
	switch request.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		if request.Options.Has(dhcpv4.OptionRapidCommit) {
			return c.reply4(request, dhcpv4.MessageTypeAck)
		}
		return c.reply4(request, dhcpv4.MessageTypeOffer)
	case dhcpv4.MessageTypeRequest:
		return c.request4(request)
	case dhcpv4.MessageTypeInform:
		return c.reply4(request, dhcpv4.MessageTypeAck)
	}
	return nil // DECLINE and RELEASE are not answered, and change nothing: there is only this one address
}

// request4 answers DHCPREQUEST in each of the client's four states (RFC 2131 section 4.3.2).
func (c Config) request4(request *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	if server := request.ServerIdentifier(); server != nil && !server.Equal(c.V4.Server.AsSlice()) {
		return nil // the client chose another server
	}
	wanted := request.ClientIPAddr // renewing, rebinding
	if isUnset(wanted) {
		wanted = request.RequestedIPAddress() // selecting, init-reboot
	}
	if !wanted.Equal(c.V4.Address.Addr().AsSlice()) {
		return c.nak4(request)
	}
	return c.reply4(request, dhcpv4.MessageTypeAck)
}

func (c Config) nak4(request *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	reply, err := dhcpv4.NewReplyFromRequest(request,
		dhcpv4.WithMessageType(dhcpv4.MessageTypeNak),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(c.V4.Server.AsSlice())))
	if err != nil {
		return nil
	}
	reply.SetBroadcast() // the client's address is wrong: it may not hear a unicast
	return reply
}

func (c Config) reply4(request *dhcpv4.DHCPv4, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	reply, err := dhcpv4.NewReplyFromRequest(request, dhcpv4.WithMessageType(kind),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(c.V4.Server.AsSlice())))
	if err != nil {
		return nil
	}
	inform := request.MessageType() == dhcpv4.MessageTypeInform
	reply.ClientIPAddr = request.ClientIPAddr
	if !inform {
		reply.YourIPAddr = c.V4.Address.Addr().AsSlice()
	}
	if kind == dhcpv4.MessageTypeAck && request.MessageType() == dhcpv4.MessageTypeDiscover {
		reply.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionRapidCommit, nil))
	}
	if address, err := netip.ParseAddr(c.TFTP); err == nil && address.Is4() {
		reply.ServerIPAddr = address.AsSlice()
	}
	reply.BootFileName = c.bootFileField()
	limit := minMessage4
	if size, err := request.MaxMessageSize(); err == nil && int(size) > limit {
		limit = int(size)
	}
	limit = min(limit, max(c.MTU, minMessage4)) - ipv4Header - udpHeader
	for _, option := range c.options4(request, inform) {
		reply.UpdateOption(option)
		if len(reply.ToBytes()) > limit {
			reply.Options.Del(option.Code) // less important options come later, and may be smaller
		}
	}
	return reply
}

// bootFileField is the bootfile in the fixed field, for clients that ignore option 67; it holds 127 bytes.
func (c Config) bootFileField() string {
	if len(c.Bootfile) > 127 {
		return ""
	}
	return c.Bootfile
}

// options4 lists what the client is told, most important first: always what makes the address work, and the rest if it
// was asked for or the client did not say what it wants.
func (c Config) options4(request *dhcpv4.DHCPv4, inform bool) []dhcpv4.Option {
	var options []dhcpv4.Option
	if !inform {
		options = append(options, dhcpv4.OptIPAddressLeaseTime(Lease),
			dhcpv4.OptRenewTimeValue(Lease/2), dhcpv4.OptRebindingTimeValue(Lease/8*7))
	}
	options = append(options, dhcpv4.OptSubnetMask(net.CIDRMask(c.V4.Address.Bits(), 32)))
	if c.V4.Router.IsValid() {
		options = append(options, dhcpv4.OptRouter(c.V4.Router.AsSlice()))
	}
	if servers := family(c.DNS, true); len(servers) > 0 {
		options = append(options, dhcpv4.OptDNS(servers...))
	}
	if c.MTU > 0 {
		options = append(options, dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{byte(c.MTU >> 8), byte(c.MTU)}))
	}
	options = append(options, dhcpv4.OptBroadcastAddress(broadcast(c.V4.Address)))
	if c.Hostname != "" {
		options = append(options, dhcpv4.OptHostName(c.Hostname))
	}
	if len(c.Search) > 0 {
		options = append(options, dhcpv4.OptDomainName(c.Search[0]))
	}
	asked := request.Options.Get(dhcpv4.OptionParameterRequestList)
	for _, option := range c.askedOptions4() {
		if len(asked) == 0 || bytes.IndexByte(asked, option.Code.Code()) >= 0 {
			options = append(options, option)
		}
	}
	return options
}

func (c Config) askedOptions4() []dhcpv4.Option {
	var options []dhcpv4.Option
	if len(c.V4.Routes) > 0 {
		routes := routes4(c.V4)
		options = append(options, dhcpv4.Option{Code: dhcpv4.OptionClasslessStaticRoute, Value: routes},
			dhcpv4.Option{Code: dhcpv4.GenericOptionCode(optionRoutesMicrosoft), Value: routes})
	}
	if len(c.Search) > 0 {
		options = append(options, dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: c.Search}))
	}
	if servers := family(c.NTP, true); len(servers) > 0 {
		options = append(options, dhcpv4.OptNTPServers(servers...))
	}
	if c.TFTP != "" {
		options = append(options, dhcpv4.OptTFTPServerName(c.TFTP))
	}
	if c.Bootfile != "" {
		options = append(options, dhcpv4.OptBootFileName(c.Bootfile))
	}
	for code := 224; code <= 254; code++ {
		if value, set := c.Private[uint8(code)]; set {
			options = append(options, dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(code), value))
		}
	}
	return options
}

// routes4 returns the value of option 121. A client that takes it ignores option 3, so the default route is repeated
// (RFC 3442). A gateway of 0.0.0.0 says on link.
func routes4(v4 V4) dhcpv4.Routes {
	var routes dhcpv4.Routes
	for _, r := range v4.Routes {
		route := &dhcpv4.Route{
			Dest:   &net.IPNet{IP: r.Destination.Addr().AsSlice(), Mask: net.CIDRMask(r.Destination.Bits(), 32)},
			Router: net.IPv4zero,
		}
		if r.Gateway.IsValid() {
			route.Router = r.Gateway.AsSlice()
		}
		routes = append(routes, route)
	}
	if v4.Router.IsValid() {
		routes = append(routes, &dhcpv4.Route{
			Dest: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Router: v4.Router.AsSlice(),
		})
	}
	return routes
}

// frame4 wraps an answer as RFC 2131 section 4.1 wants it sent.
func (c Config) frame4(request packet, reply *dhcpv4.DHCPv4) []byte {
	p := packet{
		sourceMAC: c.ServerMAC, destinationMAC: request.sourceMAC, source: c.V4.Server, protocol: protocolUDP, hopLimit: defaultTTL,
		sourcePort: portServer4, port: portClient4, payload: reply.ToBytes(),
	}
	switch {
	case !isUnset(reply.ClientIPAddr) && reply.MessageType() != dhcpv4.MessageTypeNak:
		p.destination = toAddr(reply.ClientIPAddr)
	case reply.IsBroadcast() || isUnset(reply.YourIPAddr):
		p.destinationMAC = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		p.destination = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	default:
		p.destination = toAddr(reply.YourIPAddr)
	}
	return p.frame()
}

func isUnset(ip net.IP) bool { return len(ip) == 0 || ip.IsUnspecified() }

func toAddr(ip net.IP) netip.Addr {
	address, _ := netip.AddrFromSlice(ip.To4()) // the messages of DHCPv4 hold nothing else
	return address
}

func broadcast(prefix netip.Prefix) net.IP {
	ip := prefix.Addr().As4()
	mask := net.CIDRMask(prefix.Bits(), 32)
	for i := range ip {
		ip[i] |= ^mask[i]
	}
	return ip[:]
}

// seconds32 returns a lease for a 32 bit field of seconds.
func seconds32(d time.Duration) uint32 { return uint32(d / time.Second) }
