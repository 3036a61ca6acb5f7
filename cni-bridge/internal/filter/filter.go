// Package filter moves the frames that concern the launcher between a guest tap and its service tap (network.md 2.8):
// the guest's DHCPv4, DHCPv6 and router solicitations go to the service tap, and everything the launcher writes there
// goes to the guest. With binding wire it carries all other frames between tap and Pod interface. It hangs small BPF
// programs on the interfaces, or u32 filters where the kernel refuses BPF.
package filter

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"podvirt.dev/internal/nl"
)

// Names of the programs as tc shows them.
const (
	NameTap     = "podvirt_tap"
	NameService = "podvirt_svc"
	NamePod     = "podvirt_pod"
	NameSilence = "podvirt_sil"
)

// Take says which of the guest's frames the launcher answers.
type Take struct {
	DHCP bool // DHCPv4 and DHCPv6
	RA   bool // router solicitations
}

// Links are the indexes of what is connected.
type Links struct {
	Tap, Service int
	Pod          int // of the Pod interface that the guest owns (binding wire); 0: the Pod's stack has the guest's frames

	Share    *Share    // with Pod: the Pod's stack keeps some flows; nil: it gets nothing
	Identity *Identity // what the guest may call itself; nil: whatever it likes
}

// Attach connects the links in the network namespace of h. The Pod interface must have its clsact already: it may be
// somebody else's.
func Attach(h *nl.Handle, links Links, take Take) error {
	if err := errors.Join(h.AddClsact(links.Tap), h.AddClsact(links.Service)); err != nil {
		return err
	}
	err := attachBPF(h, links, take)
	if err == nil || !refused(err) || links.Share != nil || links.Identity != nil {
		return err // what u32 cannot do is not done by halves
	}
	return attachU32(h, links, take)
}

// Names are those of the filters on a Pod interface, which go by themselves with taps but not with it.
func Names() map[string]nl.Hook {
	return map[string]nl.Hook{NamePod: nl.Ingress, NameSilence: nl.Egress}
}

// refused says that the kernel has no BPF for us, so that the other way is worth trying. ENOENT is what adding a filter of a kind
// that the kernel does not have returns.
func refused(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) || errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.ENOENT)
}

type program struct {
	link int
	hook nl.Hook
	name string
	code asm.Instructions
}

func attachBPF(h *nl.Handle, links Links, take Take) error {
	programs := []program{
		{links.Tap, nl.Ingress, NameTap, tapProgram(links, take)},
		{links.Service, nl.Ingress, NameService, append(redirectTo(links.Tap), asm.Return())},
	}
	if links.Pod != 0 {
		incoming, outgoing := append(redirectTo(links.Tap), asm.Return()), silenceProgram()
		if links.Share != nil {
			flows, err := newFlows()
			if err != nil {
				return err
			}
			defer func() { _ = flows.Close() }()
			incoming, outgoing = sharedIngress(links.Tap, *links.Share, flows), sharedEgress(flows)
		}
		programs = append(programs,
			program{links.Pod, nl.Ingress, NamePod, incoming}, program{links.Pod, nl.Egress, NameSilence, outgoing})
	}
	for _, p := range programs {
		program, err := load(p.name, p.code)
		if err != nil {
			return err
		}
		err = h.AddBPF(p.link, p.hook, program.FD(), p.name)
		if err := errors.Join(err, program.Close()); err != nil {
			return err
		}
	}
	return nil
}

// load brings a program into the kernel. Kernels before 5.11 charge it to RLIMIT_MEMLOCK and answer EPERM above it.
func load(name string, code asm.Instructions) (*ebpf.Program, error) {
	spec := &ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, Instructions: code, License: "Apache-2.0"}
	program, err := ebpf.NewProgram(spec)
	if errors.Is(err, unix.EPERM) && rlimit.RemoveMemlock() == nil {
		program, err = ebpf.NewProgram(spec)
	}
	if err != nil {
		return nil, fmt.Errorf("loading filter %s: %w", name, err)
	}
	return program, nil
}

// Offsets in an Ethernet frame, and the values that pick the launcher's frames.
const (
	ethType     = 12
	ipv4Length  = 14
	ipv4Offset  = 20
	ipv4Proto   = 23
	ipv4Ports   = 14 // plus the length of the IPv4 header
	ipv6Next    = 20
	ipv6Payload = 54

	fragmentOffset     = 0x1fff
	dhcpServer         = 67
	dhcpv6Server       = 547
	routerSolicitation = 133
)

// guestMark is on frames that come from the guest, until they leave the namespace: skb->mark, whose offset in struct
// __sk_buff is markOffset.
const (
	guestMark  = 0x70766d
	markOffset = 8
	vlanOffset = 20 // vlan_present
)

// silenceProgram keeps what the Pod's own stack sends off an interface that the guest owns: neighbour discovery, multicast
// reports, and answers that would compete with the guest's.
func silenceProgram() asm.Instructions {
	const drop = "drop"
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, markOffset, asm.Word),
		asm.JNE.Imm(asm.R2, guestMark, drop),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
		asm.Mov.Imm(asm.R0, shot).WithSymbol(drop),
		asm.Return(),
	}
}

// tapProgram passes every frame but those to take: to the Pod's stack, or out by the Pod interface. LD_ABS and LD_IND read
// network byte order from the frame, which register 6 must point to, and end the program with 0 (TC_ACT_OK: pass) where the
// frame is too short.
func tapProgram(links Links, take Take) asm.Instructions {
	const pass, v4, v6, v6udp, taken, stranger = "pass", "v4", "v6", "v6udp", "taken", "stranger"
	code := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	if links.Identity != nil {
		code = append(code, identityChecks(*links.Identity, stranger)...)
	}
	code = append(code,
		asm.LoadMem(asm.R0, asm.R6, vlanOffset, asm.Word),
		asm.JNE.Imm(asm.R0, 0, pass), // inside the guest's own VLANs nobody is answered
		asm.LoadAbs(ethType, asm.Half),
		asm.JEq.Imm(asm.R0, unix.ETH_P_IP, v4),
		asm.JEq.Imm(asm.R0, unix.ETH_P_IPV6, v6),
		asm.Ja.Label(pass),

		asm.LoadAbs(ipv4Proto, asm.Byte).WithSymbol(v4),
		asm.JNE.Imm(asm.R0, unix.IPPROTO_UDP, pass),
		asm.LoadAbs(ipv4Offset, asm.Half),
		asm.JSet.Imm(asm.R0, fragmentOffset, pass),
		asm.LoadAbs(ipv4Length, asm.Byte),
		asm.And.Imm(asm.R0, 0x0f),
		asm.LSh.Imm(asm.R0, 2),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.LoadInd(asm.R0, asm.R7, ipv4Ports+2, asm.Half),
		asm.JEq.Imm(asm.R0, when(take.DHCP, dhcpServer), taken),
		asm.Ja.Label(pass),

		asm.LoadAbs(ipv6Next, asm.Byte).WithSymbol(v6),
		asm.JEq.Imm(asm.R0, unix.IPPROTO_UDP, v6udp),
		asm.JNE.Imm(asm.R0, unix.IPPROTO_ICMPV6, pass),
		asm.LoadAbs(ipv6Payload, asm.Byte),
		asm.JEq.Imm(asm.R0, when(take.RA, routerSolicitation), taken),
		asm.Ja.Label(pass),

		asm.LoadAbs(ipv6Payload+2, asm.Half).WithSymbol(v6udp),
		asm.JEq.Imm(asm.R0, when(take.DHCP, dhcpv6Server), taken),
		asm.Ja.Label(pass),
	)
	if links.Identity != nil {
		code = append(code, asm.Mov.Imm(asm.R0, shot).WithSymbol(stranger), asm.Return())
	}
	out := redirectTo(links.Service)
	out[0] = out[0].WithSymbol(taken)
	code = append(append(code, out...), asm.Return())
	rest := asm.Instructions{asm.Mov.Imm(asm.R0, 0)}
	if links.Pod != 0 {
		rest = append(asm.Instructions{asm.Mov.Imm(asm.R2, guestMark), asm.StoreMem(asm.R6, markOffset, asm.R2, asm.Word)},
			redirectTo(links.Pod)...)
	}
	rest[0] = rest[0].WithSymbol(pass)
	return append(append(code, rest...), asm.Return())
}

// redirectTo sends the frame out of another interface; the helper's result is the program's.
func redirectTo(link int) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Imm(asm.R1, int32(link)),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
	}
}

// when returns the value to compare with, or one that no 16 bit field has.
func when(wanted bool, value int32) int32 {
	if wanted {
		return value
	}
	return 1 << 20
}

// attachU32 does the same with word comparisons from the network header on. It takes IPv4 without options only, which
// is what DHCP clients send.
func attachU32(h *nl.Handle, links Links, take Take) error {
	tap, service := links.Tap, links.Service
	udp4 := nl.Key{Offset: 8, Mask: 0x00ff0000, Value: unix.IPPROTO_UDP << 16}
	next6 := func(protocol uint32) nl.Key { return nl.Key{Offset: 4, Mask: 0x0000ff00, Value: protocol << 8} }
	rows := []struct {
		wanted   bool
		protocol uint16
		keys     []nl.Key
	}{
		{take.DHCP, unix.ETH_P_IP, []nl.Key{udp4, {Offset: 0, Mask: 0x0f000000, Value: 5 << 24}, {Offset: 20, Mask: 0xffff, Value: dhcpServer}}},
		{take.DHCP, unix.ETH_P_IPV6, []nl.Key{next6(unix.IPPROTO_UDP), {Offset: 40, Mask: 0xffff, Value: dhcpv6Server}}},
		{take.RA, unix.ETH_P_IPV6, []nl.Key{next6(unix.IPPROTO_ICMPV6), {Offset: 40, Mask: 0xff000000, Value: routerSolicitation << 24}}},
	}
	for i, row := range rows {
		if !row.wanted {
			continue
		}
		redirect := nl.Redirect{From: tap, To: service, Protocol: row.protocol, Priority: uint16(i + 1), Keys: row.keys}
		if err := h.AddRedirect(redirect); err != nil {
			return err
		}
	}
	if err := h.AddRedirect(nl.Redirect{From: service, To: tap, Protocol: unix.ETH_P_ALL, Priority: 1}); err != nil || links.Pod == 0 {
		return err
	}
	return errors.Join(
		h.AddRedirect(nl.Redirect{From: links.Pod, To: tap, Protocol: unix.ETH_P_ALL, Priority: 1}),
		h.AddRedirect(nl.Redirect{From: tap, To: links.Pod, Protocol: unix.ETH_P_ALL, Priority: uint16(len(rows) + 1)}))
}
