package bind

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"podvirt.dev/cni-bridge/internal/fault"
	"podvirt.dev/cni-bridge/internal/filter"
	"podvirt.dev/cni-bridge/internal/journal"
	"podvirt.dev/internal/nl"
)

// guestAddresses are what the guest is told: with wire and bridge the Pod interface's own.
func guestAddresses(nic NIC) (v4, v6 netip.Prefix) {
	v4, v6 = nic.V4.Guest, nic.V6.Guest
	for _, prefix := range nic.Own {
		switch {
		case prefix.Addr().Is4() && !v4.IsValid():
			v4 = prefix
		case prefix.Addr().Is6() && !v6.IsValid():
			v6 = prefix
		}
	}
	return v4, v6
}

// serviceAddresses are those of the service tap of a NIC that owns its Pod interface: whom the guest knows the launcher by. They are link-local and
// never leave the Pod.
func serviceAddresses(spec Spec, index int) []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254, 75, byte(index + 1)}), 32),
		netip.PrefixFrom(linkLocal(spec.GatewayMAC), 64),
	}
}

func hasIPv6(nic NIC) bool {
	_, v6 := guestAddresses(nic)
	return v6.IsValid()
}

// wireRecord is what the journal keeps of the Pod interface.
func wireRecord(h *nl.Handle, nic NIC) (*journal.Wire, error) {
	link, err := framed(h, nic)
	if err != nil {
		return nil, err
	}
	has, err := h.HasClsact(link.Index)
	if err != nil {
		return nil, fault.Wrap(fault.NAT, nic.Interface, err)
	}
	return &journal.Wire{
		Interface: nic.Interface, Clsact: !has, MACBefore: link.MAC.String(), MACAfter: nic.MAC.String(), Guarded: nic.Guarded,
	}, nil
}

// wireSteps hand the Pod interface to the guest: it keeps its addresses, which say what the guest is told, but every
// frame goes by, and nothing of the Pod's stack leaves there.
func wireSteps(spec Spec, nic NIC, made journal.NIC) []Step {
	return append(tapSteps(spec, nic, made),
		Step{"clsact", func(h *nl.Handle) error {
			link, err := h.Link(nic.Interface)
			if err == nil && made.Wire.Clsact {
				err = h.AddClsact(link.Index)
			}
			return fault.Wrap(fault.NAT, nic.Interface, err)
		}},
		Step{"MAC", func(h *nl.Handle) error {
			return fault.Wrap(fault.Tap, nic.Interface, setMAC(h, nic.Interface, nic.MAC))
		}},
		filterStep(spec, nic, made),
		Step{"up", func(h *nl.Handle) error { return fault.Wrap(fault.Tap, "up", upOwned(h, spec, nic, made)) }},
	)
}

// setMAC gives the Pod interface the guest's MAC, which a macvlan needs, and which a switch has learned already.
func setMAC(h *nl.Handle, name string, mac net.HardwareAddr) error {
	link, err := h.Link(name)
	if err != nil || link.MAC.String() == mac.String() {
		return err
	}
	err = h.Set(link.Index, nl.Changes{MAC: mac})
	if errors.Is(err, unix.EBUSY) { // drivers that cannot while they are up
		err = errors.Join(h.Down(link.Index), h.Set(link.Index, nl.Changes{MAC: mac, Up: link.Up}))
	}
	return err
}

func upOwned(h *nl.Handle, spec Spec, nic NIC, made journal.NIC) error {
	for _, name := range []string{made.Service, made.Tap, nic.Interface} {
		link, err := h.Link(name)
		if err != nil {
			return err
		}
		if err := h.Set(link.Index, nl.Changes{Up: true}); err != nil {
			return err
		}
		if name != made.Service || len(nic.Own) == 0 {
			continue
		}
		for _, prefix := range serviceAddresses(spec, nic.Index) {
			if prefix.Addr().Is6() && !hasIPv6(nic) {
				continue
			}
			if err := h.AddAddress(link.Index, prefix); err != nil {
				return err
			}
		}
	}
	return nil
}

// unwire gives the Pod interface back to the Pod.
func unwire(h *nl.Handle, w *journal.Wire) error {
	if w == nil {
		return nil
	}
	link, err := h.Link(w.Interface)
	if nl.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for name, hook := range filter.Names() {
		errs = append(errs, h.DeleteFilter(link.Index, hook, name))
	}
	if w.Clsact {
		if err := h.DeleteClsact(link.Index); !nl.IsNotFound(err) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	mac, err := net.ParseMAC(w.MACBefore)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("journal: %w", err))...)
	}
	return errors.Join(append(errs, setMAC(h, w.Interface, mac))...)
}

// wireDifferences compares the Pod interface with the journal.
func wireDifferences(h *nl.Handle, w *journal.Wire) ([]string, error) {
	link, err := h.Link(w.Interface)
	if nl.IsNotFound(err) {
		return []string{w.Interface + " is missing"}, nil
	}
	if err != nil {
		return nil, fault.Wrap(fault.Tap, "reading "+w.Interface, err)
	}
	var out []string
	if link.MAC.String() != w.MACAfter {
		out = append(out, fmt.Sprintf("%s: MAC is %s, want %s", w.Interface, link.MAC, w.MACAfter))
	}
	filters, err := h.Filters(link.Index, nl.Ingress)
	if err != nil {
		return nil, fault.Wrap(fault.NAT, "reading the filter of "+w.Interface, err)
	}
	if len(filters) == 0 {
		out = append(out, w.Interface+": filter is missing")
	}
	return out, nil
}
