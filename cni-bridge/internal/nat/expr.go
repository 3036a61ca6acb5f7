package nat

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"podvirt.dev/api"
)

// ctStatusDNAT is IPS_DST_NAT (linux/netfilter/nf_conntrack_common.h): the connection's destination was rewritten.
const ctStatusDNAT = 1 << 5

// Registers: the first of 16 bytes, and the second word of it, which a concatenation's second field is loaded into.
const (
	reg     = 1
	regWord = unix.NFT_REG32_01
)

// direction picks source or destination of a packet.
type direction int

const (
	source direction = iota
	destination
)

func host32(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func compare(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: reg, Data: data}
}

func metaIs(key expr.MetaKey, data []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: reg}, compare(expr.CmpOpEq, data)}
}

func interfaceIs(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: reg}, compare(op, padded)}
}

func family(addr netip.Addr) []expr.Any {
	protocol := byte(unix.NFPROTO_IPV6)
	if addr.Is4() {
		protocol = unix.NFPROTO_IPV4
	}
	return metaIs(expr.MetaKeyNFPROTO, []byte{protocol})
}

// addressIs matches packets of the address's family only.
func addressIs(which direction, op expr.CmpOp, addr netip.Addr) []expr.Any {
	return append(family(addr), loadAddress(which, addr), compare(op, addr.AsSlice()))
}

func loadAddress(which direction, addr netip.Addr) expr.Any {
	load := &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 16} // struct ipv6hdr
	if addr.Is4() {
		load.Offset, load.Len = 12, 4 // struct iphdr
	}
	if which == destination {
		load.Offset += load.Len
	}
	return load
}

// prefix compares the source with a network.
func prefix(op expr.CmpOp, prefix netip.Prefix) []expr.Any {
	mask := make([]byte, prefix.Addr().BitLen()/8)
	for bit := range prefix.Bits() {
		mask[bit/8] |= 0x80 >> (bit % 8)
	}
	size := uint32(len(mask))
	return append(family(prefix.Addr()), loadAddress(source, prefix.Addr()),
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: size, Mask: mask, Xor: make([]byte, size)},
		compare(op, prefix.Masked().Addr().AsSlice()))
}

func loadDestinationPort(register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

func destinationPort(r api.PortRange) []expr.Any {
	return []expr.Any{
		loadDestinationPort(reg),
		compare(expr.CmpOpGte, binary.BigEndian.AppendUint16(nil, uint16(r.First))),
		compare(expr.CmpOpLte, binary.BigEndian.AppendUint16(nil, uint16(r.Last))),
	}
}

func inSet(set *nftables.Set) []expr.Any {
	if set == nil {
		return nil
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		loadDestinationPort(regWord),
		&expr.Lookup{SourceRegister: reg, SetName: set.Name},
	}
}

// concatKey is protocol . port, each field padded to a register word.
func concatKey(protocol byte, port int) []byte {
	key := make([]byte, 8)
	key[0] = protocol
	binary.BigEndian.PutUint16(key[4:], uint16(port))
	return key
}

func ctAny(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: host32(bits), Xor: host32(0)},
		compare(expr.CmpOpNeq, host32(0)),
	}
}

func dnat(to netip.Addr) []expr.Any {
	protocol := uint32(unix.NFPROTO_IPV6)
	if to.Is4() {
		protocol = unix.NFPROTO_IPV4
	}
	return []expr.Any{
		&expr.Immediate{Register: reg, Data: to.AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: protocol, RegAddrMin: reg},
	}
}

func redirect(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: reg, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.Redir{RegisterProtoMin: reg},
	}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

func counter() []expr.Any { return []expr.Any{&expr.Counter{}} }

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }
