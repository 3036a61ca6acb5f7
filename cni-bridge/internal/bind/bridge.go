package bind

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"podvirt.dev/api"
	"podvirt.dev/cni-bridge/internal/fault"
	"podvirt.dev/cni-bridge/internal/journal"
	"podvirt.dev/internal/nicalias"
	"podvirt.dev/internal/nl"
)

// bridgeRecord is what the journal keeps of a Pod interface that the guest gets by a bridge: addresses and routes, which
// the interface gives up, so that nobody but the guest has them.
func bridgeRecord(h *nl.Handle, nic NIC) (*journal.Bridge, error) {
	link, err := framed(h, nic)
	if err != nil {
		return nil, err
	}
	b := &journal.Bridge{
		Name: nicalias.BridgeName(nic.Index), Interface: nic.Interface, MACBefore: link.MAC.String(), MACAfter: standIn(nic.MAC).String(),
	}
	if err := unclaimed(h, b.Name); err != nil {
		return nil, err
	}
	addresses, err := h.Addresses(link.Index)
	if err != nil {
		return nil, fault.Wrap(fault.Binding, nic.Interface, err)
	}
	for _, a := range addresses {
		b.Addresses = append(b.Addresses, a.Prefix.String())
	}
	routes, err := h.Routes()
	if err != nil {
		return nil, fault.Wrap(fault.Binding, "routes", err)
	}
	for _, r := range routes {
		if r.Link == link.Index {
			b.Routes = append(b.Routes, recorded(r))
		}
	}
	return b, nil
}

// framed is the Pod interface, which must carry Ethernet frames for a guest to own it.
func framed(h *nl.Handle, nic NIC) (nl.Link, error) {
	link, err := h.Link(nic.Interface)
	if err != nil {
		return link, fault.Wrap(fault.Binding, nic.Interface, err)
	}
	if link.NoARP || len(link.MAC) == 0 {
		return link, fault.New(fault.Binding, "%s on %s: a %s without frames; use masquerade", nic.Binding, nic.Interface, link.Kind)
	}
	return link, nil
}

// standIn is the MAC of the Pod interface while the guest has the one that the network knows. A bridge keeps frames to the
// MACs of its ports for itself, so it must be nobody's; it is in no frame.
func standIn(mac net.HardwareAddr) net.HardwareAddr {
	sum := sha256.Sum256(append([]byte("podvirt bridge port "), mac...))
	return append(net.HardwareAddr{0x02}, sum[:5]...)
}

func recorded(r nl.Route) journal.Route {
	out := journal.Route{Destination: r.Destination.String(), Priority: r.Priority, MTU: r.MTU}
	if r.Gateway.IsValid() {
		out.Gateway = r.Gateway.String()
	}
	if r.Source.IsValid() {
		out.Source = r.Source.String()
	}
	return out
}

// routeOf is the inverse of recorded.
func routeOf(r journal.Route, link int) (route nl.Route, err error) {
	var errs [3]error
	route = nl.Route{Link: link, Priority: r.Priority, MTU: r.MTU}
	route.Destination, errs[0] = netip.ParsePrefix(r.Destination)
	if r.Gateway != "" {
		route.Gateway, errs[1] = netip.ParseAddr(r.Gateway)
	}
	if r.Source != "" {
		route.Source, errs[2] = netip.ParseAddr(r.Source)
	}
	return route, errors.Join(errs[:]...)
}

// tell puts what the guest must know of the routes into the alias: they stand nowhere else any more.
func (n NIC) tell(alias nicalias.NIC, h *nl.Handle) (nicalias.NIC, error) {
	if n.Binding != api.BindingBridge {
		return alias, nil
	}
	link, err := h.Link(n.Interface)
	if err != nil {
		return alias, err
	}
	routes, err := h.Routes()
	for _, r := range routes {
		switch {
		case r.Link != link.Index:
		case r.Destination.Bits() == 0 && r.Gateway.Is4():
			alias.PodGateway4 = r.Gateway
		case r.Destination.Bits() == 0 && r.Gateway.Is6():
			alias.PodGateway6 = r.Gateway
		case !r.Gateway.IsValid() && alias.Guest4.IsValid() && r.Destination == alias.Guest4.Masked():
			alias.PodOnLink = true
		}
	}
	return alias, err
}

// bridgeSteps put the Pod interface and the guest's tap on a bridge of their own.
func bridgeSteps(spec Spec, nic NIC, made journal.NIC) []Step {
	b := made.Bridge
	return append(tapSteps(spec, nic, made),
		Step{"addresses", func(h *nl.Handle) error { return fault.Wrap(fault.Tap, b.Interface, giveUp(h, b)) }},
		Step{"MAC", func(h *nl.Handle) error {
			return fault.Wrap(fault.Tap, b.Interface, setMAC(h, b.Interface, standIn(nic.MAC)))
		}},
		Step{"bridge", func(h *nl.Handle) error { return fault.Wrap(fault.Tap, b.Name, addBridge(h, b)) }},
		Step{"ports", func(h *nl.Handle) error { return fault.Wrap(fault.Tap, b.Name, addPorts(h, made)) }},
		filterStep(spec, nic, made),
		Step{"up", func(h *nl.Handle) error {
			return fault.Wrap(fault.Tap, "up", errors.Join(upOwned(h, spec, nic, made), raise(h, b.Name)))
		}},
	)
}

// giveUp takes addresses and routes off the Pod interface. Routes first: what an address takes with it is no error then.
func giveUp(h *nl.Handle, b *journal.Bridge) error {
	link, err := h.Link(b.Interface)
	if err != nil {
		return err
	}
	for _, r := range b.Routes {
		route, err := routeOf(r, link.Index)
		if err == nil {
			err = h.DeleteRoute(route)
		}
		if err != nil && !gone(err) {
			return err
		}
	}
	for _, text := range b.Addresses {
		prefix, err := netip.ParsePrefix(text)
		if err == nil {
			err = h.DeleteAddress(link.Index, prefix)
		}
		if err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

func gone(err error) bool {
	return nl.IsNotFound(err) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// addBridge makes a bridge that has no part in the network itself.
func addBridge(h *nl.Handle, b *journal.Bridge) error {
	if err := h.MakeBridge(b.Name, nl.Bridge{}); err != nil {
		return err
	}
	link, err := h.Link(b.Name)
	if err != nil {
		return err
	}
	const never = "8" // Documentation/networking/ip-sysctl.rst, arp_ignore: do not reply for all local addresses
	return errors.Join(h.Set(link.Index, nl.Changes{Alias: nicalias.Service()}),
		quiet(b.Name, false), write("net/ipv4/conf/"+b.Name+"/arp_ignore", never))
}

// addPorts learns nobody's place: what the guest sends comes back by the Pod interface where the network floods it.
func addPorts(h *nl.Handle, made journal.NIC) error {
	bridge, err := h.Link(made.Bridge.Name)
	if err != nil {
		return err
	}
	for _, name := range []string{made.Bridge.Interface, made.Tap} {
		port, err := h.Link(name)
		if err == nil {
			err = h.Set(port.Index, nl.Changes{Master: bridge.Index})
		}
		if err == nil && name == made.Bridge.Interface {
			err = h.StopLearning(port.Index)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func raise(h *nl.Handle, name string) error {
	link, err := h.Link(name)
	if err == nil {
		err = h.Set(link.Index, nl.Changes{Up: true})
	}
	return err
}

// unbridge gives the Pod interface back to the Pod, with what it had.
func unbridge(h *nl.Handle, b *journal.Bridge) error {
	if b == nil {
		return nil
	}
	errs := []error{removeBridge(h, b.Name)} // its ports are free then
	link, err := h.Link(b.Interface)
	if nl.IsNotFound(err) {
		return errors.Join(errs...)
	}
	mac, macErr := net.ParseMAC(b.MACBefore)
	if err := errors.Join(err, macErr); err != nil {
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs, setMAC(h, b.Interface, mac))
	for _, text := range b.Addresses {
		prefix, err := netip.ParsePrefix(text)
		if err == nil {
			err = h.AddAddress(link.Index, prefix)
		}
		if !errors.Is(err, unix.EEXIST) {
			errs = append(errs, err)
		}
	}
	// Those on link first: the others are reached by them.
	for _, onLink := range []bool{true, false} {
		for _, r := range b.Routes {
			if (r.Gateway == "") != onLink {
				continue
			}
			route, err := routeOf(r, link.Index)
			if err == nil {
				err = h.AddRoute(route)
			}
			if !errors.Is(err, unix.EEXIST) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func removeBridge(h *nl.Handle, name string) error {
	link, err := h.Link(name)
	if err == nil && link.Kind == "bridge" {
		err = h.Delete(link.Index)
	}
	if nl.IsNotFound(err) {
		return nil
	}
	return err
}

// bridgeDifferences compares the bridge and the Pod interface with the journal.
func bridgeDifferences(h *nl.Handle, made journal.NIC) ([]string, error) {
	b := made.Bridge
	bridge, err := h.Link(b.Name)
	if nl.IsNotFound(err) {
		return []string{b.Name + " is missing"}, nil
	}
	if err != nil {
		return nil, fault.Wrap(fault.Tap, "reading "+b.Name, err)
	}
	var out []string
	if !bridge.Up {
		out = append(out, b.Name+": up is false, want true")
	}
	for _, name := range []string{b.Interface, made.Tap} {
		link, err := h.Link(name)
		switch {
		case nl.IsNotFound(err):
			out = append(out, name+" is missing")
			continue
		case err != nil:
			return nil, fault.Wrap(fault.Tap, "reading "+name, err)
		case link.Master != bridge.Index:
			out = append(out, fmt.Sprintf("%s is not in bridge %s", name, b.Name))
		}
		if name == b.Interface && link.MAC.String() != b.MACAfter {
			out = append(out, fmt.Sprintf("%s: MAC is %s, want %s", name, link.MAC, b.MACAfter))
		}
	}
	return out, nil
}
