package filter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Share says that the guest and the Pod's own stack have one address between them, on the pod network: what somebody opens
// to the launcher's ports, and what the Pod's stack begins, stays with the Pod (network.md NW-024); all else is the guest's.
type Share struct {
	First, Last int // of the launcher's TCP ports
}

// Identity is what a guest may call itself on the pod network (NW-026).
type Identity struct {
	MAC    net.HardwareAddr
	V4, V6 netip.Addr // invalid: none
}

// maxFlows is how many connections of the Pod's stack are known; with one more the oldest is forgotten.
const maxFlows = 4096

// A flow is known by a key of four words of address, the two ports, and the protocol; it is laid out on the stack of a
// program, where words are as LD_ABS returns them.
const (
	keySize   = 24
	keyAt     = -keySize
	portsAt   = keyAt + 16
	protoAt   = keyAt + 20
	valueAt   = keyAt - 8
	ethARP    = unix.ETH_P_ARP
	advertise = 136 // neighbour advertisement
	solicit   = 135
	ipv4From  = 26
	ipv4To    = 30
	ipv6From  = 22
	ipv6To    = 38
	tcpFlags  = 13
	synAck    = 0x12
	syn       = 0x02
	shot      = 2 // TC_ACT_SHOT
)

// newFlows makes the table of flows, which lives as long as the programs that refer to it.
func newFlows() (*ebpf.Map, error) {
	spec := &ebpf.MapSpec{Name: "podvirt_flows", Type: ebpf.LRUHash, KeySize: keySize, ValueSize: 4, MaxEntries: maxFlows}
	flows, err := ebpf.NewMap(spec)
	if errors.Is(err, unix.EPERM) && rlimit.RemoveMemlock() == nil {
		flows, err = ebpf.NewMap(spec)
	}
	if err != nil {
		return nil, fmt.Errorf("making the table of flows: %w", err)
	}
	return flows, nil
}

// flowKey is code that lays the key of the frame's flow out, for one family. The remote end is the source of what comes
// in and the destination of what goes out. It leaves the local port in R9; R8 must hold the protocol, and with IPv4 R7 the
// length of the header.
func flowKey(v4, incoming bool) asm.Instructions {
	remote, local := int32(2), int32(0) // of what goes out: destination and source port
	address := int32(ipv6To)
	switch {
	case incoming && v4:
		address = ipv4From
	case incoming:
		address = ipv6From
	case v4:
		address = ipv4To
	}
	if incoming {
		remote, local = 0, 2
	}
	var code asm.Instructions
	for word := range int32(4) {
		if v4 && word > 0 {
			code = append(code, asm.StoreImm(asm.R10, int16(keyAt+4*word), 0, asm.Word))
			continue
		}
		code = append(code, asm.LoadAbs(address+4*word, asm.Word), asm.StoreMem(asm.R10, int16(keyAt+4*word), asm.R0, asm.Word))
	}
	port := func(at int32) asm.Instruction {
		if v4 {
			return asm.LoadInd(asm.R0, asm.R7, ipv4Ports+at, asm.Half)
		}
		return asm.LoadAbs(ipv6Payload+at, asm.Half)
	}
	return append(code,
		port(remote), asm.StoreMem(asm.R10, portsAt, asm.R0, asm.Half),
		port(local), asm.StoreMem(asm.R10, portsAt+2, asm.R0, asm.Half), asm.Mov.Reg(asm.R9, asm.R0),
		asm.StoreMem(asm.R10, protoAt, asm.R8, asm.Word))
}

// remember is code that notes the flow whose key is laid out.
func remember(flows *ebpf.Map) asm.Instructions {
	return asm.Instructions{
		asm.StoreImm(asm.R10, valueAt, 1, asm.Word),
		asm.LoadMapPtr(asm.R1, flows.FD()),
		asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, keyAt),
		asm.Mov.Reg(asm.R3, asm.R10), asm.Add.Imm(asm.R3, valueAt),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnMapUpdateElem.Call(),
	}
}

// transport is code that jumps to otherwise unless the frame is TCP or UDP and no later fragment; it leaves the protocol in
// R8 and the length of an IPv4 header in R7.
func transport(v4 bool, otherwise string) asm.Instructions {
	at, proceed := int32(ipv6Next), "transport6"
	if v4 {
		at, proceed = ipv4Proto, "transport4"
	}
	code := asm.Instructions{
		asm.LoadAbs(at, asm.Byte), asm.Mov.Reg(asm.R8, asm.R0),
		asm.JEq.Imm(asm.R8, unix.IPPROTO_TCP, proceed),
		asm.JNE.Imm(asm.R8, unix.IPPROTO_UDP, otherwise),
	}
	if !v4 {
		return append(code, asm.Mov.Imm(asm.R7, 0).WithSymbol(proceed))
	}
	return append(code,
		asm.LoadAbs(ipv4Offset, asm.Half).WithSymbol(proceed),
		asm.JSet.Imm(asm.R0, fragmentOffset, otherwise),
		asm.LoadAbs(ipv4Length, asm.Byte), asm.And.Imm(asm.R0, 0x0f), asm.LSh.Imm(asm.R0, 2), asm.Mov.Reg(asm.R7, asm.R0))
}

// sharedIngress sends what arrives at the Pod interface to the guest, but for flows of the Pod's stack. Questions and
// answers about neighbours go to both, which have one MAC: so the launcher can be reached while no guest answers.
func sharedIngress(tap int, share Share, flows *ebpf.Map) asm.Instructions {
	const guest, stack, both, v4, v6, icmp6 = "guest", "stack", "both", "v4", "v6", "icmp6"
	code := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R0, asm.R6, vlanOffset, asm.Word), asm.JNE.Imm(asm.R0, 0, guest),
		asm.LoadAbs(ethType, asm.Half),
		asm.JEq.Imm(asm.R0, unix.ETH_P_IP, v4),
		asm.JEq.Imm(asm.R0, unix.ETH_P_IPV6, v6),
		asm.JEq.Imm(asm.R0, ethARP, both),
		asm.Ja.Label(guest),
	}
	code = append(code, label(v4, flowOf(true, guest, share, flows))...)
	code = append(code, label(v6, flowOf(false, icmp6, share, flows))...)
	code = append(code, label(icmp6, asm.Instructions{
		asm.JNE.Imm(asm.R8, unix.IPPROTO_ICMPV6, guest),
		asm.LoadAbs(ipv6Payload, asm.Byte), asm.JEq.Imm(asm.R0, advertise, both), asm.JEq.Imm(asm.R0, solicit, both),
		asm.Ja.Label(guest),
	})...)
	code = append(code, label(both, asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, int32(tap)), asm.Mov.Imm(asm.R3, 0), asm.FnCloneRedirect.Call(),
		asm.Ja.Label(stack),
	})...)
	code = append(code, label(guest, append(redirectTo(tap), asm.Return()))...)
	return append(code, asm.Mov.Imm(asm.R0, 0).WithSymbol(stack), asm.Return())
}

// flowOf decides about one frame: to the stack where its flow is the Pod's, else to the guest.
func flowOf(v4 bool, otherwise string, share Share, flows *ebpf.Map) asm.Instructions {
	name, flags := "6", asm.LoadAbs(ipv6Payload+tcpFlags, asm.Byte)
	if v4 {
		name, flags = "4", asm.LoadInd(asm.R0, asm.R7, ipv4Ports+tcpFlags, asm.Byte)
	}
	look := "look" + name
	code := append(transport(v4, otherwise), flowKey(v4, true)...)
	code = append(code,
		asm.JNE.Imm(asm.R8, unix.IPPROTO_TCP, look),
		asm.JLT.Imm(asm.R9, int32(share.First), look),
		asm.JGT.Imm(asm.R9, int32(share.Last), look),
		flags, asm.And.Imm(asm.R0, synAck), asm.JNE.Imm(asm.R0, syn, look))
	code = append(code, remember(flows)...)
	code = append(code, asm.Ja.Label("stack"))
	return append(code, label(look, asm.Instructions{
		asm.LoadMapPtr(asm.R1, flows.FD()),
		asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, keyAt),
		asm.FnMapLookupElem.Call(),
		asm.JNE.Imm(asm.R0, 0, "stack"),
		asm.Ja.Label("guest"),
	})...)
}

// sharedEgress notes the flows that the Pod's stack begins, and lets nothing out but these, pings and neighbour discovery.
func sharedEgress(flows *ebpf.Map) asm.Instructions {
	const pass, drop, v4, v6, icmp4, icmp6 = "pass", "drop", "v4", "v6", "icmp4", "icmp6"
	code := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R0, asm.R6, markOffset, asm.Word), asm.JEq.Imm(asm.R0, guestMark, pass),
		asm.LoadAbs(ethType, asm.Half),
		asm.JEq.Imm(asm.R0, unix.ETH_P_IP, v4),
		asm.JEq.Imm(asm.R0, unix.ETH_P_IPV6, v6),
		asm.JEq.Imm(asm.R0, ethARP, pass),
		asm.Ja.Label(drop),
	}
	for _, family := range []struct {
		v4           bool
		name, others string
	}{{true, v4, icmp4}, {false, v6, icmp6}} {
		body := append(transport(family.v4, family.others), flowKey(family.v4, false)...)
		body = append(append(body, remember(flows)...), asm.Ja.Label(pass))
		code = append(code, label(family.name, body)...)
	}
	code = append(code, label(icmp4, asm.Instructions{asm.JEq.Imm(asm.R8, unix.IPPROTO_ICMP, pass), asm.Ja.Label(drop)})...)
	code = append(code, label(icmp6, asm.Instructions{
		asm.JNE.Imm(asm.R8, unix.IPPROTO_ICMPV6, drop),
		asm.LoadAbs(ipv6Payload, asm.Byte), asm.JEq.Imm(asm.R0, solicit, pass), asm.JEq.Imm(asm.R0, advertise, pass),
	})...)
	return append(code,
		asm.Mov.Imm(asm.R0, shot).WithSymbol(drop), asm.Return(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol(pass), asm.Return())
}

// label gives the first of some instructions a name to jump to.
func label(name string, code asm.Instructions) asm.Instructions {
	code[0] = code[0].WithSymbol(name)
	return code
}

// identityChecks is code that jumps to drop where a frame of the guest pretends to be from somebody else, or from a DHCP
// server or router, and that falls through otherwise. It ends with a label of its own.
func identityChecks(id Identity, drop string) asm.Instructions {
	const ok, arp, v4, v6, own6, fine6 = "id ok", "id arp", "id v4", "id v6", "id own6", "id fine6"
	code := asm.Instructions{
		asm.LoadMem(asm.R0, asm.R6, vlanOffset, asm.Word), asm.JNE.Imm(asm.R0, 0, drop),
		asm.LoadAbs(6, asm.Half), asm.JNE.Imm(asm.R0, int32(binary.BigEndian.Uint16(id.MAC)), drop),
		asm.LoadAbs(8, asm.Word), asm.JNE.Imm32(asm.R0, signed(id.MAC[2:]), drop),
		asm.LoadAbs(ethType, asm.Half),
		asm.JEq.Imm(asm.R0, ethARP, arp), asm.JEq.Imm(asm.R0, unix.ETH_P_IP, v4), asm.JEq.Imm(asm.R0, unix.ETH_P_IPV6, v6),
		asm.Ja.Label(ok),
	}
	code = append(code, label(arp, append(asm.Instructions{
		asm.LoadAbs(22, asm.Half), asm.JNE.Imm(asm.R0, int32(binary.BigEndian.Uint16(id.MAC)), drop),
		asm.LoadAbs(24, asm.Word), asm.JNE.Imm32(asm.R0, signed(id.MAC[2:]), drop),
	}, ownOrNothing4(28, id.V4, ok, drop)...))...)
	code = append(code, label(v4, append(asm.Instructions{
		asm.LoadAbs(ipv4Proto, asm.Byte), asm.JNE.Imm(asm.R0, unix.IPPROTO_UDP, "id source4"),
		asm.LoadAbs(ipv4Length, asm.Byte), asm.And.Imm(asm.R0, 0x0f), asm.LSh.Imm(asm.R0, 2), asm.Mov.Reg(asm.R7, asm.R0),
		asm.LoadInd(asm.R0, asm.R7, ipv4Ports, asm.Half), asm.JEq.Imm(asm.R0, dhcpServer, drop),
	}, label("id source4", ownOrNothing4(ipv4From, id.V4, ok, drop))...))...)
	code = append(code, label(v6, own6Or(ipv6From, id.V6, own6, drop))...)
	code = append(code, label(own6, asm.Instructions{
		asm.LoadAbs(ipv6Next, asm.Byte), asm.JEq.Imm(asm.R0, unix.IPPROTO_ICMPV6, fine6), asm.JNE.Imm(asm.R0, unix.IPPROTO_UDP, ok),
		asm.LoadAbs(ipv6Payload, asm.Half), asm.JEq.Imm(asm.R0, dhcpv6Server, drop), asm.Ja.Label(ok),
	})...)
	const routerAdvertisement, target = 134, ipv6Payload + 8
	code = append(code, label(fine6, asm.Instructions{
		asm.LoadAbs(ipv6Payload, asm.Byte), asm.JEq.Imm(asm.R0, routerAdvertisement, drop), asm.JNE.Imm(asm.R0, advertise, ok),
	})...)
	code = append(code, rename(own6Or(target, id.V6, ok, drop), "target ")...)
	return append(code, asm.Mov.Imm(asm.R0, 0).WithSymbol(ok))
}

func signed(word []byte) int32 { return int32(binary.BigEndian.Uint32(word)) }

// ownOrNothing4 jumps to ok where the address at this offset is the guest's or none at all.
func ownOrNothing4(at int32, own netip.Addr, ok, drop string) asm.Instructions {
	code := asm.Instructions{asm.LoadAbs(at, asm.Word), asm.JEq.Imm(asm.R0, 0, ok)}
	if own.Is4() {
		code = append(code, asm.JEq.Imm32(asm.R0, signed(own.AsSlice()), ok))
	}
	return append(code, asm.Ja.Label(drop))
}

// own6Or jumps to ok where the address at this offset is link-local, the guest's, or none at all.
func own6Or(at int32, own netip.Addr, ok, drop string) asm.Instructions {
	const linkLocalMask, linkLocal = -0x400000, -0x1800000 // 0xffc00000, 0xfe800000
	code := asm.Instructions{
		asm.LoadAbs(at, asm.Word), asm.And.Imm32(asm.R0, linkLocalMask), asm.JEq.Imm32(asm.R0, linkLocal, ok),
		asm.LoadAbs(at, asm.Word), asm.JNE.Imm(asm.R0, 0, "own6"),
		asm.LoadAbs(at+4, asm.Word), asm.JNE.Imm(asm.R0, 0, "own6"),
		asm.LoadAbs(at+8, asm.Word), asm.JNE.Imm(asm.R0, 0, "own6"),
		asm.LoadAbs(at+12, asm.Word), asm.JEq.Imm(asm.R0, 0, ok),
	}
	if !own.Is6() {
		return append(code, asm.Ja.Label(drop).WithSymbol("own6"))
	}
	bytes := own.As16()
	for word := range int32(4) {
		load := asm.LoadAbs(at+4*word, asm.Word)
		if word == 0 {
			load = load.WithSymbol("own6")
		}
		code = append(code, load, asm.JNE.Imm32(asm.R0, signed(bytes[4*word:]), drop))
	}
	return append(code, asm.Ja.Label(ok))
}

// rename gives the labels of a piece of code that is used twice another name.
func rename(code asm.Instructions, prefix string) asm.Instructions {
	for i, instruction := range code {
		if instruction.Symbol() == "own6" {
			instruction = instruction.WithSymbol(prefix + "own6")
		}
		if instruction.Reference() == "own6" {
			instruction = instruction.WithReference(prefix + "own6")
		}
		code[i] = instruction
	}
	return code
}
