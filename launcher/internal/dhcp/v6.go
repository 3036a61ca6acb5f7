package dhcp

import (
	"bytes"
	"net"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

const (
	portServer6 = 547
	portClient6 = 546
)

// duid is the server's identity: made from the gateway's MAC, which is the same on all nodes, so that a guest that was
// moved can renew.
func (c Config) duid() dhcpv6.DUID {
	return &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: c.ServerMAC}
}

// answer6 returns the answer to a DHCPv6 message; nil: it deserves none (RFC 8415 section 16 says which are to be
// dropped in silence).
func (c Config) answer6(request *dhcpv6.Message) *dhcpv6.Message {
	if !c.DHCP || !c.valid6(request) {
		return nil
	}
	reply := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: request.TransactionID}
	if client := request.Options.ClientID(); client != nil {
		reply.AddOption(dhcpv6.OptClientID(client))
	}
	reply.AddOption(dhcpv6.OptServerID(c.duid()))
	switch request.MessageType {
	case dhcpv6.MessageTypeSolicit:
		reply.MessageType = dhcpv6.MessageTypeAdvertise
		if request.GetOneOption(dhcpv6.OptionRapidCommit) != nil {
			reply.MessageType = dhcpv6.MessageTypeReply
			reply.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})
		}
		c.associations(request, reply)
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		c.associations(request, reply)
	case dhcpv6.MessageTypeConfirm:
		return c.confirm(request, reply)
	case dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		reply.AddOption(status(iana.StatusSuccess))
		return reply
	}
	c.options6(reply)
	return reply
}

// valid6 checks what each kind of message must and must not carry.
func (c Config) valid6(request *dhcpv6.Message) bool {
	client, server := request.Options.ClientID(), request.Options.ServerID()
	switch request.MessageType {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRebind:
		return client != nil && server == nil && c.V6.Address.IsValid()
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		return client != nil && server != nil && bytes.Equal(server.ToBytes(), c.duid().ToBytes()) && c.V6.Address.IsValid()
	case dhcpv6.MessageTypeInformationRequest:
		return (server == nil || bytes.Equal(server.ToBytes(), c.duid().ToBytes())) && len(request.Options.IANA()) == 0
	}
	return false
}

// associations gives the address to the first identity association and refuses all others: prefixes and further
// addresses do not exist here.
func (c Config) associations(request, reply *dhcpv6.Message) {
	for i, asked := range request.Options.IANA() {
		given := &dhcpv6.OptIANA{IaId: asked.IaId}
		if i > 0 {
			given.Options.Add(status(iana.StatusNoAddrsAvail))
			reply.AddOption(given)
			continue
		}
		given.T1, given.T2 = Lease/2, Lease/8*7
		ours := net.IP(c.V6.Address.Addr().AsSlice())
		given.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: ours, PreferredLifetime: Lease, ValidLifetime: Lease})
		for _, other := range asked.Options.Addresses() {
			if !other.IPv6Addr.Equal(ours) { // of another life: lifetimes of zero take it away (section 18.3.4)
				given.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: other.IPv6Addr})
			}
		}
		reply.AddOption(given)
	}
	for _, asked := range request.Options.IAPD() {
		refused := &dhcpv6.OptIAPD{IaId: asked.IaId}
		refused.Options.Add(status(iana.StatusNoPrefixAvail))
		reply.AddOption(refused)
	}
}

// confirm says whether the client's addresses fit this link; nil where it named none (section 18.3.3).
func (c Config) confirm(request, reply *dhcpv6.Message) *dhcpv6.Message {
	named := 0
	verdict := iana.StatusSuccess
	for _, association := range request.Options.IANA() {
		for _, address := range association.Options.Addresses() {
			named++
			if !address.IPv6Addr.Equal(c.V6.Address.Addr().AsSlice()) {
				verdict = iana.StatusNotOnLink
			}
		}
	}
	if named == 0 {
		return nil
	}
	reply.AddOption(status(verdict))
	return reply
}

func (c Config) options6(reply *dhcpv6.Message) {
	if servers := family(c.DNS, false); len(servers) > 0 {
		reply.AddOption(dhcpv6.OptDNS(servers...))
	}
	if len(c.Search) > 0 {
		reply.AddOption(dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: c.Search}))
	}
	for _, server := range family(c.NTP, false) {
		address := dhcpv6.NTPSuboptionSrvAddr(server)
		option := &dhcpv6.OptNTPServer{}
		option.Suboptions.Add(&address)
		reply.AddOption(option)
	}
}

func status(code iana.StatusCode) dhcpv6.Option {
	return &dhcpv6.OptStatusCode{StatusCode: code, StatusMessage: code.String()}
}

// frame6 sends an answer to the link-local address that asked.
func (c Config) frame6(request packet, reply *dhcpv6.Message) []byte {
	return packet{
		sourceMAC: c.ServerMAC, destinationMAC: request.sourceMAC, source: c.V6.Server, destination: request.source,
		protocol: protocolUDP, hopLimit: defaultTTL, sourcePort: portServer6, port: portClient6, payload: reply.ToBytes(),
	}.frame()
}
