package plugin

import (
	"net/netip"
	"os"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"podvirt.dev/cni-bridge/internal/world"
)

// Addresses of a Service whose port 8080 is port 80 of the Pod.
const (
	service4 = "10.96.0.10"
	service6 = "fd00:96::a"
)

// serviceOnTheNode makes the node do what kube-proxy has it do with a Service, in either of its modes: the destination
// becomes the Pod, and a Pod that calls itself is hidden behind the node.
func (a *attachment) serviceOnTheNode(t *testing.T) {
	t.Helper()
	world.Do(t, a.Outside, func(*nlHandle) {
		for _, file := range []string{"ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"} {
			must(t, os.WriteFile("/proc/sys/net/"+file, []byte("1"), 0o644))
		}
		conn, err := nftables.New()
		must(t, err)
		for _, s := range []struct {
			family             nftables.TableFamily
			natFamily          uint32
			service, pod       string
			offset, addressLen uint32
		}{
			{nftables.TableFamilyIPv4, unix.NFPROTO_IPV4, service4, world.Pod4, 12, 4},
			{nftables.TableFamilyIPv6, unix.NFPROTO_IPV6, service6, world.Pod6, 8, 16},
		} {
			table := conn.AddTable(&nftables.Table{Name: "kube-proxy", Family: s.family})
			chain := func(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
				return conn.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: priority})
			}
			address := func(offset uint32, is string) []expr.Any {
				return []expr.Any{
					&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: s.addressLen},
					&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: netip.MustParseAddr(is).AsSlice()},
				}
			}
			conn.AddRule(&nftables.Rule{
				Table: table, Chain: chain("services", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest),
				Exprs: append(address(s.offset+s.addressLen, s.service),
					&expr.Immediate{Register: 1, Data: netip.MustParseAddr(s.pod).AsSlice()},
					&expr.Immediate{Register: 2, Data: []byte{0, 80}},
					&expr.NAT{Type: expr.NATTypeDestNAT, Family: s.natFamily, RegAddrMin: 1, RegProtoMin: 2, Specified: true}),
			})
			conn.AddRule(&nftables.Rule{
				Table: table, Chain: chain("hairpin", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource),
				Exprs: append(append(address(s.offset, s.pod), address(s.offset+s.addressLen, s.pod)...), &expr.Masq{}),
			})
		}
		must(t, conn.Flush())
	})
}
