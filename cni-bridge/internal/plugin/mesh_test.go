package plugin

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"podvirt.dev/cni-bridge/internal/world"
)

// meshMark is what ztunnel's sockets carry; the rules of ambient mode know it.
const meshMark = 0x539

// TestMesh has a stand-in for a mesh's proxy in the Pod, behind the rules that Istio writes there, before our ADD or after it:
// the guest's connections of both directions pass the proxy, but for those that the mesh leaves alone (NW-058, NW-059).
func TestMesh(t *testing.T) {
	onHostAlone(t)
	for _, mode := range []string{"sidecar", "ambient"} {
		for _, order := range []string{"mesh first", "mesh last"} {
			t.Run(mode+", "+order, func(t *testing.T) {
				annotations := vmPod("")
				annotations["istio.io/reroute-virtual-interfaces"] = "tap0"
				a := newAttachment(t, world.Options{}, annotations)
				m := &mesh{attachment: a, ambient: mode == "ambient"}
				if order == "mesh first" {
					m.rules(t)
				}
				must(t, a.add(t))
				if order == "mesh last" {
					m.rules(t)
				}
				must(t, a.check(t))
				a.Boot(t)
				m.run(t)
				m.connections(t)
				must(t, a.del(t))
			})
		}
	}
}

// mesh is a proxy in the Pod.
type mesh struct {
	*attachment
	ambient bool

	mu   sync.Mutex
	seen []string // port of the proxy and where the client wanted to go
}

// run makes the proxy, the launcher's own listener and its way to the guest.
func (m *mesh) run(t *testing.T) {
	t.Helper()
	world.Do(t, m.Pod, func(h *nlHandle) {
		must(t, h.AddAddress(index(t, h, "lo"), netip.MustParsePrefix("::6/128"))) // as Istio does for its inbound connections
	})
	startProxy(t, m.Pod)
	for _, port := range []string{"15001", "15006"} {
		m.listen(t, port)
	}
	world.Listen(t, m.Pod, ":15021")
	world.Listen(t, m.Pod, ":49155")
	for _, server := range []ns.NetNS{m.Guest, m.Outside} {
		world.Listen(t, server, ":80")
		world.Listen(t, server, ":22")
	}
}

func (m *mesh) connections(t *testing.T) {
	for _, family := range []struct{ outside, pod, gateway, lo string }{
		{world.Outside4, world.Pod4, "10.0.2.1", "127.0.0.1"}, {world.Outside6, world.Pod6, "fd10:0:2::1", "::1"},
	} {
		inbound := family.gateway // the proxy calls from a loopback address, which the launcher carries
		if m.ambient {
			inbound = family.pod // and here from the Pod's own
		}
		sidecar := !m.ambient
		for name, row := range map[string]struct {
			from      ns.NetNS
			to, seen  string
			by        string // the proxy
			onlyFirst bool   // of the two modes
		}{
			"out of the guest":                  {m.Guest, join(family.outside, 80), family.pod, "15001 " + join(family.outside, 80), false},
			"into the guest":                    {m.Outside, join(family.pod, 80), inbound, "15006 " + join(family.pod, 80), false},
			"the guest calls itself":            {m.Guest, join(family.pod, 80), "", "15001 " + join(family.pod, 80), false},
			"ssh passes by":                     {m.Outside, join(family.pod, 22), family.outside, "", true},
			"health of the proxy":               {m.Outside, join(family.pod, 15021), family.outside, "", true},
			"the launcher's port, by the proxy": {m.Outside, join(family.pod, 49155), "", "15006 " + join(family.pod, 49155), false},
			"loopback of the Pod: the guest":    {m.Pod, join(family.lo, 80), family.gateway, "", false},
		} {
			if row.onlyFirst && !sidecar {
				continue
			}
			t.Run(family.lo+" "+name, func(t *testing.T) {
				m.mu.Lock()
				m.seen = nil
				m.mu.Unlock()
				got, err := world.Ask(row.from, row.to)
				if err != nil || row.seen != "" && got != row.seen {
					t.Errorf("the server saw %q, %v; want %q", got, err, row.seen)
				}
				m.mu.Lock()
				defer m.mu.Unlock()
				switch {
				case row.by == "" && len(m.seen) > 0:
					t.Errorf("the proxy had %q; want nothing", m.seen)
				case row.by != "" && !slices.Contains(m.seen, row.by):
					t.Errorf("the proxy had %q; want %q", m.seen, row.by)
				}
			})
		}
	}
	if m.ambient {
		m.probe(t)
	}
}

// probe is what the kubelet sends in ambient mode: the node gives it an address of its own, which passes the proxy by.
func (m *mesh) probe(t *testing.T) {
	t.Helper()
	const node = "169.254.7.127"
	world.Do(t, m.Outside, func(h *nlHandle) {
		must(t, h.AddAddress(index(t, h, "out0"), netip.MustParsePrefix(node+"/32")))
	})
	got, err := world.Ask(m.Outside, join(world.Pod4, 80), func(d *net.Dialer) { d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(node)} })
	if got != node || err != nil {
		t.Errorf("a probe: the guest saw %q, %v; want %s", got, err, node)
	}
}

// listen serves one port of the proxy: what comes is carried to where it was meant for.
func (m *mesh) listen(t *testing.T, port string) {
	t.Helper()
	config := net.ListenConfig{}
	var listener net.Listener
	must(t, m.Pod.Do(func(ns.NetNS) (err error) {
		listener, err = config.Listen(t.Context(), "tcp", ":"+port)
		return err
	}))
	var wait sync.WaitGroup
	t.Cleanup(func() {
		_ = listener.Close()
		wait.Wait()
	})
	wait.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			wait.Go(func() { m.carry(t.Context(), conn.(*net.TCPConn), port) })
		}
	})
}

func (m *mesh) carry(ctx context.Context, client *net.TCPConn, port string) {
	defer client.Close()
	wanted, err := wantedBy(client)
	if err != nil {
		return
	}
	m.mu.Lock()
	m.seen = append(m.seen, port+" "+wanted.String())
	m.mu.Unlock()
	dialer := net.Dialer{Timeout: world.Timeout}
	if m.ambient {
		dialer.Control = func(_, _ string, raw syscall.RawConn) (err error) {
			return errors.Join(raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, meshMark)
			}), err)
		}
	} else if port == "15006" { // Istio's InboundPassthroughBindIpv4 and -v6
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP("127.0.0.6")}
		if wanted.Addr().Is6() {
			dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP("::6")}
		}
	}
	var server net.Conn
	if err := m.Pod.Do(func(ns.NetNS) (err error) {
		server, err = dialer.DialContext(ctx, "tcp", wanted.String())
		return err
	}); err != nil {
		return
	}
	defer server.Close()
	stop := context.AfterFunc(ctx, func() { _ = client.Close() })
	defer stop()
	go func() { _, _ = io.Copy(server, client); _ = server.Close() }()
	_, _ = io.Copy(client, server)
}

// wantedBy asks conntrack where the client of a redirected connection wanted to go.
func wantedBy(conn *net.TCPConn) (netip.AddrPort, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var wanted netip.AddrPort
	six := conn.LocalAddr().(*net.TCPAddr).IP.To4() == nil
	controlErr := raw.Control(func(fd uintptr) {
		if six {
			var info *unix.IPv6MTUInfo // begins with a struct sockaddr_in6
			if info, err = unix.GetsockoptIPv6MTUInfo(int(fd), unix.IPPROTO_IPV6, unix.SO_ORIGINAL_DST); err == nil {
				wanted = netip.AddrPortFrom(netip.AddrFrom16(info.Addr.Addr), info.Addr.Port<<8|info.Addr.Port>>8)
			}
			return
		}
		var mreq *unix.IPv6Mreq // holds a struct sockaddr_in
		if mreq, err = unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, unix.SO_ORIGINAL_DST); err == nil {
			wanted = netip.AddrPortFrom(netip.AddrFrom4([4]byte(mreq.Multiaddr[4:8])), binary.BigEndian.Uint16(mreq.Multiaddr[2:4]))
		}
	})
	return wanted, errors.Join(err, controlErr)
}

// rules are those that Istio writes into the Pod with interception mode REDIRECT, and those of ambient mode, in the terms of
// nftables; this process's user plays that of the proxy, which is 1337.
func (m *mesh) rules(t *testing.T) {
	t.Helper()
	text := sidecarRules
	if m.ambient {
		text = ambientRules
	}
	world.Do(t, m.Pod, func(*nlHandle) {
		conn, err := nftables.New()
		must(t, err)
		table := conn.AddTable(&nftables.Table{Name: "mesh", Family: nftables.TableFamilyINet})
		chains := map[string]*nftables.Chain{}
		for name, hook := range map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput} {
			chains[name] = conn.AddChain(&nftables.Chain{
				Name: name, Table: table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: nftables.ChainPriorityNATDest,
			})
		}
		for line := range strings.Lines(text) {
			if words := strings.Fields(line); len(words) > 0 {
				conn.AddRule(&nftables.Rule{Table: table, Chain: chains[words[0]], Exprs: meshRule(t, words[1:])})
			}
		}
		must(t, conn.Flush())
	})
}

const sidecarRules = `
prerouting in=tap0 tcp redirect=15001
prerouting in=tap0 return
prerouting tcp port=15008 return
prerouting tcp port=22 return
prerouting tcp port=15090 return
prerouting tcp port=15021 return
prerouting tcp port=15020 return
prerouting tcp redirect=15006
output out=lo from=127.0.0.6 return
output out=lo from=::6 return
output out=lo proxy to!=127.0.0.1 to!=::1 tcp port!=15008 redirect=15006
output out=lo others return
output proxy return
output to=127.0.0.1 return
output to=::1 return
output tcp redirect=15001
`

const ambientRules = `
prerouting from=169.254.7.127 tcp accept
prerouting in=tap0 tcp redirect=15001
prerouting in=tap0 return
prerouting to!=127.0.0.1 to!=::1 tcp port!=15008 unmarked redirect=15006
output to=169.254.7.127 tcp accept
output out=lo to!=127.0.0.1 to!=::1 accept
output to!=127.0.0.1 to!=::1 tcp unmarked redirect=15001
`

// meshRule reads one line of the rules above.
func meshRule(t *testing.T, words []string) []expr.Any {
	t.Helper()
	var out []expr.Any
	meta := func(key expr.MetaKey, op expr.CmpOp, data []byte) {
		out = append(out, &expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: data})
	}
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		op := expr.CmpOpEq
		if name, not := strings.CutSuffix(key, "!"); not {
			key, op = name, expr.CmpOpNeq
		}
		name := append([]byte(value), make([]byte, unix.IFNAMSIZ-min(len(value), unix.IFNAMSIZ))...)
		uid := binary.NativeEndian.AppendUint32(nil, uint32(os.Getuid()))
		switch key {
		case "in":
			meta(expr.MetaKeyIIFNAME, op, name)
		case "out":
			meta(expr.MetaKeyOIFNAME, op, name)
		case "tcp":
			meta(expr.MetaKeyL4PROTO, op, []byte{unix.IPPROTO_TCP})
		case "unmarked":
			meta(expr.MetaKeyMARK, expr.CmpOpNeq, binary.NativeEndian.AppendUint32(nil, meshMark))
		case "proxy":
			meta(expr.MetaKeySKUID, expr.CmpOpEq, uid)
		case "others":
			meta(expr.MetaKeySKUID, expr.CmpOpNeq, uid)
		case "port":
			out = append(out, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
				&expr.Cmp{Op: op, Register: 1, Data: portBytes(t, value)})
		case "from", "to":
			out = append(out, meshAddress(key, op, netip.MustParseAddr(value))...)
		case "redirect":
			out = append(out, &expr.Immediate{Register: 1, Data: portBytes(t, value)}, &expr.Redir{RegisterProtoMin: 1})
		case "return":
			out = append(out, &expr.Verdict{Kind: expr.VerdictReturn})
		case "accept":
			out = append(out, &expr.Verdict{Kind: expr.VerdictAccept})
		default:
			t.Fatalf("rule with %q", word)
		}
	}
	return out
}

func portBytes(t *testing.T, text string) []byte {
	t.Helper()
	port, err := net.LookupPort("tcp", text)
	must(t, err)
	return binary.BigEndian.AppendUint16(nil, uint16(port))
}

// meshAddress compares source or destination. What is not equal to an address of one family is every packet of the other one.
func meshAddress(key string, op expr.CmpOp, address netip.Addr) []expr.Any {
	offset := map[string]uint32{"from": 12, "to": 16}[key]
	protocol := byte(unix.NFPROTO_IPV4)
	if address.Is6() {
		offset, protocol = map[string]uint32{"from": 8, "to": 24}[key], unix.NFPROTO_IPV6
	}
	load := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(address.BitLen() / 8)}
	compare := &expr.Cmp{Op: op, Register: 1, Data: address.AsSlice()}
	if op == expr.CmpOpNeq { // the same bytes of the other family's header are never this address
		return []expr.Any{load, compare}
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}}, load, compare,
	}
}
