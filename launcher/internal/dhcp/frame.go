package dhcp

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
)

// Numbers of the protocols we read and write (IEEE 802, RFC 791, 768, 8200, 4443).
const (
	ethernetHeader = 14
	ipv4Header     = 20
	ipv6Header     = 40
	udpHeader      = 8

	typeIPv4 = 0x0800
	typeIPv6 = 0x86dd

	protocolUDP    = 17
	protocolICMPv6 = 58

	hopLimitND = 255 // RFC 4861: proves that no router forwarded the packet
	defaultTTL = 64
)

// packet is what we care for in a frame: who sent it, and a payload of UDP or ICMPv6.
type packet struct {
	sourceMAC, destinationMAC net.HardwareAddr
	source, destination       netip.Addr
	protocol                  byte
	hopLimit                  byte
	sourcePort, port          uint16 // UDP only
	payload                   []byte
}

// parseFrame reads an Ethernet frame; false for everything that cannot be a request to us. Checksums are not verified:
// the frame came through this machine's memory, and a guest with checksum offload leaves them unfinished.
func parseFrame(frame []byte) (packet, bool) {
	if len(frame) < ethernetHeader {
		return packet{}, false
	}
	p := packet{destinationMAC: frame[0:6], sourceMAC: frame[6:12]}
	body := frame[ethernetHeader:]
	switch binary.BigEndian.Uint16(frame[12:14]) {
	case typeIPv4:
		return p, p.parseIPv4(body)
	case typeIPv6:
		return p, p.parseIPv6(body)
	}
	return packet{}, false
}

func (p *packet) parseIPv4(b []byte) bool {
	if len(b) < ipv4Header || b[0]>>4 != 4 {
		return false
	}
	header, total := int(b[0]&0xf)*4, int(binary.BigEndian.Uint16(b[2:4]))
	fragment := binary.BigEndian.Uint16(b[6:8]) & 0x3fff // more-fragments bit and offset
	if header < ipv4Header || total < header || total > len(b) || fragment != 0 || b[9] != protocolUDP {
		return false
	}
	p.hopLimit, p.protocol = b[8], b[9]
	p.source, p.destination = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	return p.parseUDP(b[header:total])
}

// parseIPv6 takes only packets without extension headers: no client puts any before DHCPv6 or neighbour discovery.
func (p *packet) parseIPv6(b []byte) bool {
	if len(b) < ipv6Header || b[0]>>4 != 6 {
		return false
	}
	length := int(binary.BigEndian.Uint16(b[4:6]))
	if ipv6Header+length > len(b) {
		return false
	}
	p.protocol, p.hopLimit = b[6], b[7]
	p.source, p.destination = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	payload := b[ipv6Header : ipv6Header+length]
	switch p.protocol {
	case protocolUDP:
		return p.parseUDP(payload)
	case protocolICMPv6:
		p.payload = payload
		return len(payload) >= 8
	}
	return false
}

func (p *packet) parseUDP(b []byte) bool {
	if len(b) < udpHeader {
		return false
	}
	length := int(binary.BigEndian.Uint16(b[4:6]))
	if length < udpHeader || length > len(b) {
		return false
	}
	p.sourcePort, p.port = binary.BigEndian.Uint16(b[0:2]), binary.BigEndian.Uint16(b[2:4])
	p.payload = b[udpHeader:length]
	return true
}

// frame writes the packet as an Ethernet frame with all checksums.
func (p packet) frame() []byte {
	etherType := uint16(typeIPv6)
	if p.source.Is4() {
		etherType = typeIPv4
	}
	var b bytes.Buffer
	b.Write(p.destinationMAC)
	b.Write(p.sourceMAC)
	_ = binary.Write(&b, binary.BigEndian, etherType) // writes to a buffer do not fail
	transport := p.transport()
	if p.source.Is4() {
		b.Write(p.headerIPv4(len(transport)))
	} else {
		b.Write(p.headerIPv6(len(transport)))
	}
	b.Write(transport)
	return b.Bytes()
}

func (p packet) headerIPv4(length int) []byte {
	h := make([]byte, ipv4Header)
	h[0] = 0x45
	binary.BigEndian.PutUint16(h[2:4], uint16(ipv4Header+length))
	h[8], h[9] = p.hopLimit, p.protocol
	copy(h[12:16], p.source.AsSlice())
	copy(h[16:20], p.destination.AsSlice())
	binary.BigEndian.PutUint16(h[10:12], ^sum(0, h))
	return h
}

func (p packet) headerIPv6(length int) []byte {
	h := make([]byte, ipv6Header)
	h[0] = 0x60
	binary.BigEndian.PutUint16(h[4:6], uint16(length))
	h[6], h[7] = p.protocol, p.hopLimit
	copy(h[8:24], p.source.AsSlice())
	copy(h[24:40], p.destination.AsSlice())
	return h
}

// transport returns UDP header and payload, or the ICMPv6 message, with its checksum over the pseudo header.
func (p packet) transport() []byte {
	body, at := p.payload, 2 // ICMPv6: the checksum is at offset 2
	if p.protocol == protocolUDP {
		body, at = make([]byte, udpHeader+len(p.payload)), 6
		binary.BigEndian.PutUint16(body[0:2], p.sourcePort)
		binary.BigEndian.PutUint16(body[2:4], p.port)
		binary.BigEndian.PutUint16(body[4:6], uint16(len(body)))
		copy(body[udpHeader:], p.payload)
	}
	pseudo := append(p.source.AsSlice(), p.destination.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(body)))
	pseudo = append(pseudo, 0, 0, 0, p.protocol)
	body[at], body[at+1] = 0, 0
	checksum := ^sum(sum(0, pseudo), body)
	if checksum == 0 && p.protocol == protocolUDP {
		checksum = 0xffff // zero would say that there is none
	}
	binary.BigEndian.PutUint16(body[at:at+2], checksum)
	return body
}

// sum is the one's complement sum of the Internet checksum (RFC 1071), begun with start.
func sum(start uint16, b []byte) uint16 {
	total := uint32(start)
	for i := 0; i+1 < len(b); i += 2 {
		total += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		total += uint32(b[len(b)-1]) << 8
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}
