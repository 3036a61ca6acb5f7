// Package nat makes the table inet podvirt of a Pod's network namespace (network.md 2.8): the guest behind the pod IP.
// The whole table is one netlink transaction, so there is never half of it, and no nft program is run.
package nat

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"podvirt.dev/api"
	"podvirt.dev/cni-bridge/internal/nft"
)

// Table is the name of the table, in family inet.
const Table = "podvirt"

// Names of the chains, which are their hooks too.
const (
	prerouting  = "prerouting"
	own         = "own"
	output      = "output"
	postrouting = "postrouting"
	forward     = "forward"
	input       = "input"
)

// Spec says what the table does. A family without guest address is left out.
type Spec struct {
	Tap, Pod string // names of the guest tap and of the Pod interface
	V4, V6   Family
	Ports    []api.PortRange // what comes in; nil: everything
	Reserved []api.PortRange // TCP ports that stay with the Pod: the launcher's, those of a mesh's proxy
	Loopback Loopback
}

// Family is one address family.
type Family struct {
	Guest netip.Addr   // invalid: the family is off
	Pod   []netip.Addr // the addresses that lead to the guest
}

// Loopback says how TCP connections to 127.0.0.1 and ::1 reach the guest (NW-019): they are redirected to the
// launcher, which reads the original port and dials the guest, or the Pod's own listener. Both families are redirected
// whatever the guest has, since the launcher chooses the one it dials.
type Loopback struct {
	Port     uint16 // of the launcher on 127.0.0.1 and ::1
	Priority uint32 // sockets with this SO_PRIORITY are left alone: the launcher's way to the Pod's own listeners
}

// Apply makes the table in the network namespace of the calling thread. What stood in its place goes in the same
// transaction.
func Apply(spec Spec) error {
	b, err := layout(spec)
	if err != nil {
		return err
	}
	conn, err := nft.Open()
	if err != nil {
		return err
	}
	conn.AddTable(b.table)
	conn.DelTable(b.table)
	conn.AddTable(b.table)
	if b.ports != nil {
		if err := conn.AddSet(b.ports, b.elements); err != nil {
			return fmt.Errorf("set of ports: %w", err)
		}
	}
	for _, chain := range b.chains {
		conn.AddChain(chain)
	}
	for _, rule := range b.rules {
		conn.AddRule(rule)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("making table inet %s: %w", Table, err)
	}
	return nil
}

// Delete removes the table from the network namespace of the calling thread; it is no error when there is none.
func Delete() error {
	conn, err := nft.Open()
	if err != nil {
		return err
	}
	conn.DelTable(&nftables.Table{Name: Table, Family: nftables.TableFamilyINet})
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("deleting table inet %s: %w", Table, err)
	}
	return nil
}

// Rules returns how many rules the table of this thread's network namespace has; 0 where there is no table.
func Rules() (int, error) {
	conn, err := nft.Open()
	if err != nil {
		return 0, err
	}
	table := &nftables.Table{Name: Table, Family: nftables.TableFamilyINet}
	count := 0
	for _, name := range []string{own, prerouting, output, postrouting, forward, input} {
		rules, err := conn.GetRules(table, &nftables.Chain{Name: name, Table: table})
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("reading chain %s: %w", name, err)
		}
		count += len(rules)
	}
	return count, nil
}

// CountRules returns how many rules Apply makes of the spec.
func CountRules(spec Spec) (int, error) {
	b, err := layout(spec)
	return len(b.rules), err
}

// Works says whether the kernel has nftables: nil, or why not. It changes nothing.
func Works() error {
	conn, err := nft.Open()
	if err != nil {
		return err
	}
	if _, err := conn.ListTablesOfFamily(nftables.TableFamilyINet); err != nil {
		return fmt.Errorf("listing the tables of family inet: %w", err)
	}
	return nil
}

// builder lays the table out; it does not know the kernel.
type builder struct {
	spec     Spec
	table    *nftables.Table
	ports    *nftables.Set // nil: everything may come in
	elements []nftables.SetElement
	chains   []*nftables.Chain
	rules    []*nftables.Rule
}

func layout(spec Spec) (*builder, error) {
	b := &builder{spec: spec, table: &nftables.Table{Name: Table, Family: nftables.TableFamilyINet}}
	if err := b.portSet(); err != nil {
		return b, err
	}
	// A mesh redirects connections to its proxy in the Pod by chains of its own, with the usual priority of destination NAT
	// (NW-058). The first chain that decides about a connection is the only one (nf_nat_inet_fn), and of equals the one that
	// was made first; so that the proxy gets what it asks for, ours come behind. What the launcher sends to the guest has been
	// through the proxy, or is none of its business, and is decided before.
	usual := *nftables.ChainPriorityNATDest
	b.launcher(b.nat(own, nftables.ChainHookOutput, new(usual-1)))
	pre := b.nat(prerouting, nftables.ChainHookPrerouting, new(usual+1))
	out := b.nat(output, nftables.ChainHookOutput, new(usual+1))
	b.toGuest(pre)
	b.add(out, metaIs(expr.MetaKeyPRIORITY, host32(spec.Loopback.Priority)), verdict(expr.VerdictReturn))
	b.reserved(out)
	b.fromLoopback(out)
	b.toGuest(out)
	b.loopback(out)
	b.fromGuest(b.nat(postrouting, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource))
	b.forward(b.filter(forward, nftables.ChainHookForward, nftables.ChainPolicyDrop))
	b.antiSpoof(b.filter(input, nftables.ChainHookInput, nftables.ChainPolicyAccept))
	return b, nil
}

func (b *builder) nat(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
	policy := nftables.ChainPolicyAccept
	return b.chain(&nftables.Chain{Name: name, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: priority, Policy: &policy})
}

func (b *builder) filter(name string, hook *nftables.ChainHook, policy nftables.ChainPolicy) *nftables.Chain {
	return b.chain(&nftables.Chain{
		Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &policy,
	})
}

func (b *builder) chain(chain *nftables.Chain) *nftables.Chain {
	chain.Table = b.table
	b.chains = append(b.chains, chain)
	return chain
}

func (b *builder) add(chain *nftables.Chain, parts ...[]expr.Any) {
	b.rules = append(b.rules, &nftables.Rule{Table: b.table, Chain: chain, Exprs: slices.Concat(parts...)})
}

// launcher decides about the launcher's connections to the guest, which change nothing by that.
func (b *builder) launcher(chain *nftables.Chain) {
	for _, guest := range []netip.Addr{b.spec.V4.Guest, b.spec.V6.Guest} {
		if guest.IsValid() {
			b.add(chain, metaIs(expr.MetaKeyPRIORITY, host32(b.spec.Loopback.Priority)), addressIs(destination, expr.CmpOpEq, guest), dnat(guest))
		}
	}
}

func (b *builder) reserved(chain *nftables.Chain) {
	for _, r := range b.spec.Reserved {
		b.add(chain, metaIs(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_TCP}), destinationPort(r), verdict(expr.VerdictReturn))
	}
}

// fromLoopback hands what calls the pod IP from a loopback address to the launcher, which carries it to the guest: the kernel
// lets no packet with such a source leave by the tap. Proxies of a mesh call so what they let in: from 127.0.0.6 and ::6.
func (b *builder) fromLoopback(chain *nftables.Chain) {
	for _, family := range []struct {
		Family
		loopback netip.Prefix
	}{{b.spec.V4, netip.MustParsePrefix("127.0.0.0/8")}, {b.spec.V6, netip.MustParsePrefix("::/96")}} {
		for _, pod := range family.Pod {
			if family.Guest.IsValid() {
				b.add(chain, prefix(expr.CmpOpEq, family.loopback), addressIs(destination, expr.CmpOpEq, pod),
					metaIs(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_TCP}), redirect(b.spec.Loopback.Port))
			}
		}
	}
}

// toGuest sends what arrives for the pod IP to the guest, whoever sent it: the outside, the Pod's own containers, the
// guest itself (NW-020). The launcher's ports never go (NW-014).
func (b *builder) toGuest(chain *nftables.Chain) {
	if chain.Name == prerouting {
		b.reserved(chain)
	}
	for _, family := range []Family{b.spec.V4, b.spec.V6} {
		if !family.Guest.IsValid() {
			continue
		}
		for _, pod := range family.Pod {
			b.add(chain, addressIs(destination, expr.CmpOpEq, pod), inSet(b.ports), dnat(family.Guest))
		}
	}
}

func (b *builder) loopback(chain *nftables.Chain) {
	for _, lo := range []string{"127.0.0.1", "::1"} {
		b.add(chain, addressIs(destination, expr.CmpOpEq, netip.MustParseAddr(lo)), metaIs(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_TCP}),
			redirect(b.spec.Loopback.Port))
	}
}

// fromGuest hides the guest behind the Pod's address outside, and behind the gateway where it calls itself, since it
// would take an answer from its own address for a martian.
func (b *builder) fromGuest(chain *nftables.Chain) {
	for _, family := range []Family{b.spec.V4, b.spec.V6} {
		if !family.Guest.IsValid() {
			continue
		}
		b.add(chain, interfaceIs(expr.MetaKeyOIFNAME, expr.CmpOpEq, b.spec.Pod), addressIs(source, expr.CmpOpEq, family.Guest), masquerade())
		b.add(chain, interfaceIs(expr.MetaKeyOIFNAME, expr.CmpOpEq, b.spec.Tap), addressIs(source, expr.CmpOpEq, family.Guest), masquerade())
	}
}

// forward lets the Pod's namespace route for the guest and for nobody else: out by the Pod interface from the guest's
// own address, in where dnat or a known connection leads. The policy drops the rest.
func (b *builder) forward(chain *nftables.Chain) {
	for _, family := range []Family{b.spec.V4, b.spec.V6} {
		if !family.Guest.IsValid() {
			continue
		}
		for _, to := range []string{b.spec.Pod, b.spec.Tap} {
			b.add(chain, interfaceIs(expr.MetaKeyIIFNAME, expr.CmpOpEq, b.spec.Tap), interfaceIs(expr.MetaKeyOIFNAME, expr.CmpOpEq, to),
				addressIs(source, expr.CmpOpEq, family.Guest), verdict(expr.VerdictAccept))
		}
	}
	toTap := interfaceIs(expr.MetaKeyOIFNAME, expr.CmpOpEq, b.spec.Tap)
	fromElsewhere := interfaceIs(expr.MetaKeyIIFNAME, expr.CmpOpNeq, b.spec.Tap)
	b.add(chain, fromElsewhere, toTap, ctAny(expr.CtKeySTATUS, ctStatusDNAT), verdict(expr.VerdictAccept))
	b.add(chain, fromElsewhere, toTap, ctAny(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept))
	b.add(chain, interfaceIs(expr.MetaKeyIIFNAME, expr.CmpOpEq, b.spec.Tap), counter(), verdict(expr.VerdictDrop))
}

// antiSpoof keeps the guest from talking to the Pod's containers under another address than its own.
func (b *builder) antiSpoof(chain *nftables.Chain) {
	tap := interfaceIs(expr.MetaKeyIIFNAME, expr.CmpOpEq, b.spec.Tap)
	if guest := b.spec.V4.Guest; guest.IsValid() {
		b.add(chain, tap, addressIs(source, expr.CmpOpNeq, guest), counter(), verdict(expr.VerdictDrop))
	}
	if guest := b.spec.V6.Guest; guest.IsValid() {
		linkLocal := prefix(expr.CmpOpNeq, netip.MustParsePrefix("fe80::/10"))
		unspecified := addressIs(source, expr.CmpOpNeq, netip.IPv6Unspecified()) // duplicate address detection
		b.add(chain, tap, addressIs(source, expr.CmpOpNeq, guest), linkLocal, unspecified, counter(), verdict(expr.VerdictDrop))
	}
}

// portSet lays out the one set of what may come in. Ranges that touch are merged, the kernel refuses overlapping intervals.
func (b *builder) portSet() error {
	if b.spec.Ports == nil {
		return nil
	}
	for _, r := range Merge(b.spec.Ports) {
		protocol, err := protocolNumber(r.Protocol)
		if err != nil {
			return err
		}
		b.elements = append(b.elements, nftables.SetElement{Key: concatKey(protocol, r.First), KeyEnd: concatKey(protocol, r.Last)})
	}
	b.ports = &nftables.Set{
		Table: b.table, Name: "ports", Interval: true, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
	}
	return nil
}

// Merge returns the same ports in the fewest ranges, sorted by protocol and port.
func Merge(ranges []api.PortRange) []api.PortRange {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b api.PortRange) int {
		if a.Protocol != b.Protocol {
			if a.Protocol < b.Protocol {
				return -1
			}
			return 1
		}
		return a.First - b.First
	})
	var out []api.PortRange
	for _, r := range sorted {
		if n := len(out); n > 0 && out[n-1].Protocol == r.Protocol && r.First <= out[n-1].Last+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}

func protocolNumber(name string) (byte, error) {
	switch name {
	case "tcp":
		return unix.IPPROTO_TCP, nil
	case "udp":
		return unix.IPPROTO_UDP, nil
	case "sctp":
		return unix.IPPROTO_SCTP, nil
	}
	return 0, fmt.Errorf("protocol %q: not one of tcp, udp, sctp", name)
}
