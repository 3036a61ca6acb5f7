// Package spoof lets frames into a node's bridges from one source MAC per guarded port (network.md NW-070): table bridge
// podvirt, made by netlink without an nft program. All ports share one rule and two hash sets, so that a frame costs the
// same with one port as with a thousand.
package spoof

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"podvirt.dev/cni-bridge/internal/nft"
)

// Table is the name of the table, in family bridge.
const Table = "podvirt"

func table() *nftables.Table { return &nftables.Table{Name: Table, Family: nftables.TableFamilyBridge} }

// guarded are the names of the ports; allowed holds a name and a MAC in one key.
func guarded() *nftables.Set {
	return &nftables.Set{Table: table(), Name: "guarded", KeyType: nftables.TypeIFName}
}

func allowed() *nftables.Set {
	return &nftables.Set{
		Table: table(), Name: "allowed", Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr),
	}
}

// Offset and length of the source in an Ethernet header, and the register behind a name's.
const (
	sourceOffset = 6
	sourceLength = 6
	nameRegister = 1
	macRegister  = 2
)

// Guard lets only frames from the MAC in by the port, in the network namespace of the calling thread. What was said of the port before
// is replaced. The port need not exist yet.
func Guard(port string, mac net.HardwareAddr) error {
	if err := Release(port); err != nil {
		return err
	}
	conn, err := nft.Open()
	if err != nil {
		return err
	}
	if err := ensure(conn); err != nil {
		return err
	}
	if err := conn.SetAddElements(guarded(), []nftables.SetElement{{Key: name(port)}}); err != nil {
		return fmt.Errorf("guarding port %s: %w", port, err)
	}
	if err := conn.SetAddElements(allowed(), []nftables.SetElement{{Key: key(port, mac)}}); err != nil {
		return fmt.Errorf("guarding port %s: %w", port, err)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("guarding port %s: %w", port, err)
	}
	return nil
}

// ensure adds the table where it is missing, to the transaction of the caller.
func ensure(conn *nftables.Conn) error {
	there, err := exists(conn)
	if err != nil || there {
		return err
	}
	t, policy := table(), nftables.ChainPolicyAccept
	conn.AddTable(t)
	for _, set := range []*nftables.Set{guarded(), allowed()} {
		if err := conn.AddSet(set, nil); err != nil {
			return fmt.Errorf("table bridge %s: %w", Table, err)
		}
	}
	chain := conn.AddChain(&nftables.Chain{
		Name: "prerouting", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting,
		Priority: nftables.ChainPriorityRef(-300), Policy: &policy, // NF_BR_PRI_FILTER_BRIDGED is -200
	})
	port := &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: nameRegister}
	conn.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
		port,
		&expr.Lookup{SourceRegister: nameRegister, SetName: "guarded", SetID: 0},
		&expr.Payload{DestRegister: macRegister, Base: expr.PayloadBaseLLHeader, Offset: sourceOffset, Len: sourceLength},
		&expr.Lookup{SourceRegister: nameRegister, SetName: "allowed", Invert: true},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	return nil
}

func exists(conn *nftables.Conn) (bool, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyBridge)
	if err != nil {
		return false, fmt.Errorf("listing the tables of family bridge: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == Table }), nil
}

// Release forgets a port, and the table with the last one. It is no error when the port is not guarded.
func Release(port string) error {
	conn, err := nft.Open()
	if err != nil {
		return err
	}
	if there, err := exists(conn); err != nil || !there {
		return err
	}
	macs, others, err := elements(conn, port)
	if err != nil {
		return err
	}
	if !others {
		conn.DelTable(table())
	} else {
		for _, mac := range macs {
			if err := conn.SetDeleteElements(allowed(), []nftables.SetElement{{Key: key(port, mac)}}); err != nil {
				return fmt.Errorf("releasing port %s: %w", port, err)
			}
		}
		if len(macs) > 0 {
			if err := conn.SetDeleteElements(guarded(), []nftables.SetElement{{Key: name(port)}}); err != nil {
				return fmt.Errorf("releasing port %s: %w", port, err)
			}
		}
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("releasing port %s: %w", port, err)
	}
	return nil
}

// Allowed returns the source MACs that may come in by the port; none where it is not guarded.
func Allowed(port string) ([]net.HardwareAddr, error) {
	conn, err := nft.Open()
	if err != nil {
		return nil, err
	}
	if there, err := exists(conn); err != nil || !there {
		return nil, err
	}
	macs, _, err := elements(conn, port)
	return macs, err
}

// elements returns the MACs of a port, each once, and whether there are other ports. The kernel lists elements twice while
// it makes the set larger or smaller (lib/rhashtable.c, rhashtable_walk_next).
func elements(conn *nftables.Conn, port string) (macs []net.HardwareAddr, others bool, err error) {
	found, err := conn.GetSetElements(allowed())
	if err != nil {
		return nil, false, fmt.Errorf("reading table bridge %s: %w", Table, err)
	}
	for _, e := range found {
		if len(e.Key) < unix.IFNAMSIZ+sourceLength || string(e.Key[:unix.IFNAMSIZ]) != string(name(port)) {
			others = true
			continue
		}
		macs = append(macs, net.HardwareAddr(e.Key[unix.IFNAMSIZ:unix.IFNAMSIZ+sourceLength]))
	}
	return once(macs), others, nil
}

func once(macs []net.HardwareAddr) []net.HardwareAddr {
	slices.SortFunc(macs, func(a, b net.HardwareAddr) int { return bytes.Compare(a, b) })
	return slices.CompactFunc(macs, func(a, b net.HardwareAddr) bool { return bytes.Equal(a, b) })
}

func name(port string) []byte {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, port)
	return padded
}

// key is a name and a MAC, each filled up to whole registers.
func key(port string, mac net.HardwareAddr) []byte {
	const registers = 8
	padded := make([]byte, registers)
	copy(padded, mac)
	return append(name(port), padded...)
}
