package plugin

import (
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podvirt.dev/cni-bridge/internal/world"
	"podvirt.dev/internal/nicalias"
	"podvirt.dev/internal/nl"
)

// Times of frames: how long one may take under emulation, and how long a NIC is watched that must not see one.
const (
	arrival = 10 * time.Second
	quiet   = 500 * time.Millisecond
)

// guestNIC is the guest's end of a NIC, frame by frame.
type guestNIC struct {
	tap *os.File
	mac net.HardwareAddr
}

// nic opens the guest's end of net1.
func (a *attachment) nic(t *testing.T) guestNIC {
	t.Helper()
	var g guestNIC
	world.Do(t, a.Pod, func(h *nlHandle) {
		link, err := h.Link(nicalias.TapName(1))
		must(t, err)
		alias, err := nicalias.Decode(link.Alias)
		must(t, err)
		g.mac = alias.MAC
		g.tap, err = nl.OpenTap(link.Name, unix.IFF_MULTI_QUEUE)
		must(t, err)
	})
	t.Cleanup(func() { _ = g.tap.Close() })
	return g
}

// frame is one to everybody of an EtherType for experiments: its tags from outside in, and a number to know it by.
func (g guestNIC) frame(number uint32, size int, tags ...uint16) []byte {
	frame := append([]byte{255, 255, 255, 255, 255, 255}, g.mac...)
	for _, tag := range tags {
		frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_8021Q)
		frame = binary.BigEndian.AppendUint16(frame, tag)
	}
	frame = binary.BigEndian.AppendUint16(frame, 0x88b5)
	frame = binary.BigEndian.AppendUint32(frame, number)
	return append(frame, make([]byte, max(size-len(frame), 60-len(frame)))...)
}

// receive returns the tags of the frame with this number, and whether it came.
func (g guestNIC) receive(t *testing.T, number uint32, size int, wait time.Duration) (tags []uint16, ok bool) {
	t.Helper()
	must(t, g.tap.SetReadDeadline(time.Now().Add(wait)))
	buffer := make([]byte, 1<<16)
	for {
		n, err := g.tap.Read(buffer)
		if err != nil {
			return nil, false
		}
		frame, found := buffer[12:n], []uint16{}
		for len(frame) > 4 && (binary.BigEndian.Uint16(frame) == unix.ETH_P_8021Q || binary.BigEndian.Uint16(frame) == unix.ETH_P_8021AD) {
			found = append(found, binary.BigEndian.Uint16(frame[2:])&0xfff)
			frame = frame[4:]
		}
		if len(frame) > 6 && binary.BigEndian.Uint16(frame) == 0x88b5 && binary.BigEndian.Uint32(frame[2:]) == number && n >= size {
			return found, true
		}
	}
}

func vmName(nic string) string { return "vm-" + strings.ReplaceAll(nic, " ", "-") }

// twoNodes are connected by their uplinks up0.
func twoNodes(t *testing.T, mtu int) [2]*node {
	t.Helper()
	nodes := [2]*node{newNode(t), newNode(t)}
	world.Do(t, nodes[0].netns, func(h *nlHandle) { must(t, h.AddVeth("up0", "up0", int(nodes[1].netns.Fd()))) })
	for _, n := range nodes {
		world.Do(t, n.netns, func(h *nlHandle) { must(t, h.Set(index(t, h, "up0"), nl.Changes{MTU: mtu, Up: true})) })
	}
	return nodes
}

// passes says where a frame that one NIC sends with these tags comes out, and with which.
type passes struct {
	from, to string
	tags     []uint16
	want     []uint16
	arrives  bool
	size     int
}

// deliver sends each frame and looks. What arrives comes first: a kernel drops the first frames to a NIC that has just
// been opened, and those that must not arrive would be lost for that reason.
func deliver(t *testing.T, nics map[string]guestNIC, rows map[string]passes) {
	t.Helper()
	number := uint32(0)
	for _, arrives := range []bool{true, false} {
		for name, row := range rows {
			if row.arrives != arrives {
				continue
			}
			t.Run(name, func(t *testing.T) {
				got, ok, deadline := []uint16(nil), false, time.Now().Add(arrival)
				for !ok && time.Now().Before(deadline) {
					number++
					_, err := nics[row.from].tap.Write(nics[row.from].frame(number, row.size, row.tags...))
					must(t, err)
					got, ok = nics[row.to].receive(t, number, row.size, quiet)
					if !arrives {
						break
					}
				}
				if ok != arrives || ok && !equal(got, row.want) {
					t.Errorf("arrives %v with tags %v; want %v, %v", ok, got, arrives, row.want)
				}
			})
		}
	}
}

func equal(a, b []uint16) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// TestPortsOfTwoNodes carries frames between VMs of two nodes over their uplinks: port isolation, and frames as large as
// the network's MTU (NW-039, NW-071).
func TestPortsOfTwoNodes(t *testing.T) {
	const mtu = 9000
	nodes := twoNodes(t, mtu)
	nics := map[string]guestNIC{}
	for name, at := range map[string]struct {
		node     int
		isolated bool
	}{"first": {0, true}, "second": {0, true}, "open": {0, false}, "far": {1, true}} {
		conf := map[string]any{"uplink": "up0", "portIsolation": at.isolated}
		nics[name] = nodes[at.node].attach(t, name, conf, vmWith(vmName(name), nil)).nic(t)
	}
	deliver(t, nics, map[string]passes{
		"isolated to isolated":         {from: "first", to: "second"},
		"isolated to open":             {from: "first", to: "open", arrives: true},
		"open to isolated":             {from: "open", to: "second", arrives: true},
		"isolated, by the uplink":      {from: "first", to: "far", arrives: true},
		"to an isolated by the uplink": {from: "far", to: "second", arrives: true},
		"as large as the MTU":          {from: "open", to: "far", arrives: true, size: mtu + 14},
	})
}

// TestVLANs needs a kernel whose bridges filter (NW-067, NW-068).
func TestVLANs(t *testing.T) {
	if !vlans() {
		t.Skip("make test-kernel has a kernel with VLAN filtering")
	}
	nodes := twoNodes(t, 1500)
	trunk := []any{map[string]int{"id": 10}, map[string]int{"minID": 90, "maxID": 110}}
	nics := map[string]guestNIC{}
	for name, at := range map[string]struct {
		node int
		conf map[string]any
	}{
		"100": {0, map[string]any{"uplink": "up0", "vlan": 100, "macspoofchk": true}}, "far 100": {1, map[string]any{"uplink": "up0", "vlan": 100}},
		"far 200": {1, map[string]any{"uplink": "up0", "vlan": 200}}, "far 10": {1, map[string]any{"uplink": "up0", "vlan": 10}},
		"trunk": {0, map[string]any{"uplink": "up0", "vlanTrunk": trunk}}, "far trunk": {1, map[string]any{"uplink": "up0", "vlanTrunk": trunk}},
		"plain": {0, map[string]any{"uplink": "up0"}}, "far plain": {1, map[string]any{"uplink": "up0"}},
		"4094": {0, map[string]any{"uplink": "up0", "vlan": 4094}}, "far 4094": {1, map[string]any{"uplink": "up0", "vlan": 4094}},
		"both": {0, map[string]any{"uplink": "up0", "vlan": 100, "preserveDefaultVlan": true}},
	} {
		nics[name] = nodes[at.node].attach(t, name, at.conf, vmWith(vmName(name), nil)).nic(t)
	}
	deliver(t, nics, map[string]passes{
		"the same VLAN on the other node":       {from: "100", to: "far 100", arrives: true},
		"another VLAN":                          {from: "100", to: "far 200"},
		"a port without VLAN":                   {from: "100", to: "far plain"},
		"the uplink carries the tag":            {from: "100", to: "far trunk", arrives: true, want: []uint16{100}},
		"a trunk's tag reaches the access port": {from: "trunk", to: "far 10", tags: []uint16{10}, arrives: true},
		"a trunk's tag stays on a trunk":        {from: "trunk", to: "far trunk", tags: []uint16{10}, arrives: true, want: []uint16{10}},
		"a tag that the trunk has not":          {from: "trunk", to: "far 200", tags: []uint16{200}},
		"untagged from a trunk":                 {from: "trunk", to: "far plain"},
		"a tag of its own on an access port":    {from: "100", to: "far 10", tags: []uint16{10}},
		"no VLAN":                               {from: "plain", to: "far plain", arrives: true},
		"no VLAN into a VLAN":                   {from: "plain", to: "far 100"},
		"VLAN 4094":                             {from: "4094", to: "far 4094", arrives: true},
		"the default VLAN is kept where asked":  {from: "far plain", to: "both", arrives: true},
		"and is not where it is not":            {from: "far plain", to: "100"},
	})
	file := filepath.Join(t.TempDir(), "log")
	warned := func() bool {
		text, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(text), `"WARN","msg":"no uplink of bridge `) &&
			strings.Contains(string(text), "lets VLAN 100 through: bridge vlan add dev up0 vid 100")
	}
	conf := map[string]any{"uplink": "up0", "vlan": 100, "logFile": file}
	nodes[0].attach(t, "in the VLAN", conf, nil)
	if warned() {
		t.Error("an uplink that is in the VLAN is warned of")
	}
	world.Do(t, nodes[0].netns, func(h *nlHandle) { must(t, h.DeletePortVLAN(index(t, h, "up0"), 100)) })
	if nodes[0].attach(t, "cut off", conf, nil); !warned() {
		t.Error("no warning about an uplink that is not in the VLAN")
	}
}

// TestServiceVLANs carries the guests' own tags inside a service tag (802.1ad).
func TestServiceVLANs(t *testing.T) {
	if !vlans() {
		t.Skip("make test-kernel has a kernel with VLAN filtering")
	}
	nodes := twoNodes(t, 1500)
	nics := map[string]guestNIC{}
	for name, at := range map[string]struct{ node, vlan int }{"100": {0, 100}, "far 100": {1, 100}, "far 200": {1, 200}} {
		conf := map[string]any{"uplink": "up0", "vlan": at.vlan, "vlanProto": "802.1ad"}
		nics[name] = nodes[at.node].attach(t, name, conf, vmWith(vmName(name), nil)).nic(t)
	}
	deliver(t, nics, map[string]passes{
		"untagged":                  {from: "100", to: "far 100", arrives: true},
		"the guest's tag is inside": {from: "100", to: "far 100", tags: []uint16{10}, arrives: true, want: []uint16{10}},
		"another service":           {from: "100", to: "far 200", tags: []uint16{10}},
	})
	plain := newAttachment(t, world.Options{}, nil)
	plain.id = "plain"
	if _, err := nodes[0].call(t, plain, "net1", map[string]any{"uplink": "up0", "vlan": 100}, "ADD"); code(err) != 106 {
		t.Errorf("a VLAN of customers on a bridge of service tags: %v; want code 106", err)
	}
}
