// Package lan makes the Pod interfaces of the network modes (network.md 2.4): a port of a bridge of the node, or a macvlan
// of one of its interfaces. Its steps stand, with their undo, between the two writes of the journal, as those of package bind.
package lan

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"podvirt.dev/cni-bridge/internal/fault"
	"podvirt.dev/cni-bridge/internal/journal"
	"podvirt.dev/cni-bridge/internal/netconf"
	"podvirt.dev/cni-bridge/internal/spoof"
	"podvirt.dev/internal/nl"
)

// Place is where an attachment happens.
type Place struct {
	Node, Pod *nl.Handle
	Netns     int // descriptor of the Pod's network namespace
	IfName    string
	// Lock takes the lock of a name until what it returns is called.
	Lock func(name string) (func() error, error)
}

// Step is one change. Steps in a row that are Shared change what attachments share, and run under the bridge's lock.
type Step struct {
	Name   string
	Shared bool
	Do     func() error
}

// SpoofLock is the lock of the table that all guarded ports of the node share.
const SpoofLock = "spoof"

func bridgeLock(bridge string) string { return "bridge-" + bridge }

// PortName is the name of the node's end of an attachment: the same for the same attachment, so that DEL needs no journal.
func PortName(container, ifname string) string {
	sum := sha256.Sum256([]byte(container + "/" + ifname))
	return "pv" + hex.EncodeToString(sum[:6])
}

// Plan returns the steps of an attachment, and what the journal keeps of it. Nothing is changed.
func Plan(p Place, c netconf.Config, port string, addresses func() (Addresses, error)) ([]Step, *journal.LAN, error) {
	l := c.LAN
	made := &journal.LAN{Mode: string(c.Mode), MAC: l.MAC.String(), MTU: l.MTU, VLAN: l.VLAN, IPAM: l.IPAM, Config: c.Raw}
	var steps []Step
	if c.Mode == netconf.ModeBridge {
		made.Port, made.Bridge, made.Guard = port, l.Bridge, l.SpoofCheck
		steps = bridgeSteps(p, l, port)
	} else {
		steps = []Step{{Name: "macvlan", Do: func() error { return addMacvlan(p, l) }}}
	}
	steps = append(steps, Step{Name: "settings", Do: func() error { return fault.Wrap(fault.Tap, p.IfName, settings(p, l, made.Port)) }})
	if made.Guard {
		steps = append(steps, Step{Name: "spoof check", Do: func() error { return guard(p, port) }})
	}
	if l.IPAM != "" {
		var got Addresses
		steps = append(steps,
			Step{Name: "ipam", Do: func() (err error) { got, err = addresses(); return err }},
			Step{Name: "addresses", Do: func() error { return fault.Wrap(fault.Tap, p.IfName, configure(p, got)) }})
	} else if len(l.IPs) > 0 {
		return nil, nil, fault.New(fault.Config, "ips %s: the network has no ipam that could give it", l.IPs[0])
	}
	return steps, made, nil
}

func bridgeSteps(p Place, l netconf.LAN, port string) []Step {
	return []Step{
		{Name: "bridge", Shared: true, Do: func() error { return ensureBridge(p.Node, l) }},
		{Name: "veth", Shared: true, Do: func() error {
			return fault.Wrap(fault.Tap, p.IfName, p.Node.AddVeth(port, p.IfName, p.Netns))
		}},
		{Name: "port", Shared: true, Do: func() error { return addPort(p.Node, l, port) }},
	}
}

// settings of the Pod's end, which comes up last. It has the MTU of the node's end, where there is one.
func settings(p Place, l netconf.LAN, port string) error {
	link, err := p.Pod.Link(p.IfName)
	if err != nil {
		return err
	}
	mtu := l.MTU
	if port != "" {
		end, err := p.Node.Link(port)
		if err != nil {
			return err
		}
		mtu = end.MTU
	}
	if err := p.Pod.SetReceive(link.Index, nl.Receive{Promiscuous: l.Promiscuous, AllMulticast: l.AllMulticast}); err != nil {
		return err
	}
	return p.Pod.Set(link.Index, nl.Changes{MAC: l.MAC, MTU: mtu, Up: true})
}

// guard lets one MAC leave: the one that the Pod's end has now.
func guard(p Place, port string) error {
	link, err := p.Pod.Link(p.IfName)
	if err == nil {
		err = underLock(p, SpoofLock, func() error { return spoof.Guard(port, link.MAC) })
	}
	return fault.Wrap(fault.Kernel, "MAC spoof check", err)
}

// Addresses are what the IPAM plugin gave.
type Addresses struct {
	Prefixes []netip.Prefix
	Routes   []Route
}

// Route is one of the IPAM's.
type Route struct {
	Destination netip.Prefix
	Gateway     netip.Addr // invalid: that of the address's subnet, or on link
}

func configure(p Place, got Addresses) error {
	link, err := p.Pod.Link(p.IfName)
	if err != nil {
		return err
	}
	for _, prefix := range got.Prefixes {
		if err := p.Pod.AddAddress(link.Index, prefix); err != nil {
			return err
		}
	}
	for _, route := range got.Routes {
		if err := p.Pod.AddRoute(nl.Route{Link: link.Index, Destination: route.Destination, Gateway: route.Gateway}); err != nil {
			return err
		}
	}
	return nil
}

// Ready says whether an attachment would find what it needs on the node. It changes nothing.
func Ready(h *nl.Handle, c netconf.Config) error {
	l := c.LAN
	name, code := l.Bridge, fault.Bridge
	if c.Mode == netconf.ModeMacvlan {
		name, code = l.Master, fault.Uplink
	}
	link, err := h.Link(name)
	switch {
	case nl.IsNotFound(err) && l.Create && l.Uplink != "":
		_, err := checkUplink(h, l.Uplink, 0, l.MTU)
		return err
	case nl.IsNotFound(err) && l.Create:
		return nil
	case nl.IsNotFound(err) && c.Mode == netconf.ModeBridge:
		return missing(h, name)
	case err != nil:
		return fault.Wrap(code, name, err)
	case c.Mode == netconf.ModeBridge:
		return fits(h, link, l)
	}
	return nil
}

func addMacvlan(p Place, l netconf.LAN) error {
	master, err := p.Node.Link(l.Master)
	if nl.IsNotFound(err) {
		return fault.New(fault.Uplink, "master %s: not on this node", l.Master)
	}
	if err != nil {
		return fault.Wrap(fault.Uplink, "master "+l.Master, err)
	}
	if l.MTU > master.MTU {
		return fault.New(fault.Config, "mtu %d: master %s has %d", l.MTU, l.Master, master.MTU)
	}
	return fault.Wrap(fault.Tap, p.IfName, p.Node.AddMacvlan(p.IfName, master.Index, l.SubMode, p.Netns))
}

// Undo takes back what the entry says, as far as it is there. The Pod's handle is nil where its namespace is gone, and the
// macvlan with it; the port on the node goes a moment after the namespace, or here.
func Undo(p Place, entry journal.Entry) error {
	made := entry.LAN
	var errs []error
	if made.Guard {
		errs = append(errs, underLock(p, SpoofLock, func() error { return spoof.Release(made.Port) }))
	}
	if made.Bridge != "" {
		errs = append(errs, underLock(p, bridgeLock(made.Bridge), func() error {
			return errors.Join(remove(p.Node, made.Port), dropBridge(p.Node, made.Bridge))
		}))
	} else if p.Pod != nil {
		errs = append(errs, remove(p.Pod, entry.IfName))
	}
	return fault.Wrap(fault.Undo, "undo incomplete", errors.Join(errs...))
}

// Clean takes away what an attachment without a journal can have left.
func Clean(p Place, l netconf.LAN, port string) error {
	errs := []error{underLock(p, SpoofLock, func() error { return spoof.Release(port) }), remove(p.Node, port)}
	if l.Bridge != "" {
		errs = append(errs, underLock(p, bridgeLock(l.Bridge), func() error { return dropBridge(p.Node, l.Bridge) }))
	}
	return fault.Wrap(fault.Undo, "undo incomplete", errors.Join(errs...))
}

func underLock(p Place, name string, act func() error) (err error) {
	unlock, err := p.Lock(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	return act()
}

// Run executes one step, under the lock of the bridge where others may change the same.
func Run(p Place, bridge string, steps []Step, after func(string) error) (err error) {
	for i := 0; i < len(steps); i++ {
		if !steps[i].Shared {
			if err := runOne(steps[i], after); err != nil {
				return err
			}
			continue
		}
		first := i
		for i+1 < len(steps) && steps[i+1].Shared {
			i++
		}
		err := underLock(p, bridgeLock(bridge), func() error {
			for _, step := range steps[first : i+1] {
				if err := runOne(step, after); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func runOne(step Step, after func(string) error) error {
	if err := step.Do(); err != nil || after == nil {
		return err
	}
	return after(step.Name)
}

func remove(h *nl.Handle, name string) error {
	link, err := h.Link(name)
	if err == nil {
		err = h.Delete(link.Index)
	}
	if nl.IsNotFound(err) {
		return nil
	}
	return err
}

// Differences compares the kernel with the journal: one line each.
func Differences(p Place, entry journal.Entry) ([]string, error) {
	made := entry.LAN
	link, err := p.Pod.Link(entry.IfName)
	if nl.IsNotFound(err) {
		return []string{entry.IfName + " is missing"}, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	if !link.Up {
		out = append(out, entry.IfName+" is down")
	}
	if made.MTU != 0 && link.MTU != made.MTU {
		out = append(out, fmt.Sprintf("%s: MTU is %d, want %d", entry.IfName, link.MTU, made.MTU))
	}
	if made.MAC != "" && link.MAC.String() != made.MAC {
		out = append(out, fmt.Sprintf("%s: MAC is %s, want %s", entry.IfName, link.MAC, made.MAC))
	}
	if made.Bridge == "" {
		return out, nil
	}
	lines, err := portDifferences(p, made, link.MAC)
	return append(out, lines...), err
}

func portDifferences(p Place, made *journal.LAN, mac net.HardwareAddr) ([]string, error) {
	h := p.Node
	port, err := h.Link(made.Port)
	if nl.IsNotFound(err) {
		return []string{made.Port + " is missing"}, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	bridge, err := h.Link(made.Bridge)
	switch {
	case nl.IsNotFound(err):
		out = append(out, "bridge "+made.Bridge+" is missing")
	case err != nil:
		return nil, err
	case port.Master != bridge.Index:
		out = append(out, fmt.Sprintf("%s is not in bridge %s", made.Port, made.Bridge))
	}
	if made.VLAN != 0 {
		var vlans []nl.VLAN
		// The kernel does not say when ports that come and go made a list incomplete.
		err := underLock(p, bridgeLock(made.Bridge), func() (err error) { vlans, err = h.VLANsOf(port.Index); return err })
		if err != nil {
			return nil, err
		}
		access := false
		for _, v := range vlans {
			access = access || v.Access && int(v.ID) == made.VLAN
		}
		if !access {
			out = append(out, fmt.Sprintf("%s is not an access port of VLAN %d", made.Port, made.VLAN))
		}
	}
	if made.Guard {
		var macs []net.HardwareAddr
		// A list that changes while it is read has some elements twice.
		err := underLock(p, SpoofLock, func() (err error) { macs, err = spoof.Allowed(made.Port); return err })
		if err != nil {
			return nil, err
		}
		if len(macs) != 1 || macs[0].String() != mac.String() {
			out = append(out, fmt.Sprintf("%s: frames may come from %v, want %s alone", made.Port, macs, mac))
		}
	}
	return out, nil
}
