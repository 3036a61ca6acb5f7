// Package bind turns Pod interfaces into guest NICs inside a Pod's network namespace (network.md 2.8). It is a list of
// named steps with their undo; every function runs on a thread that is in the namespace already.
package bind

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"

	"podvirt.dev/api"
	"podvirt.dev/cni-bridge/internal/fault"
	"podvirt.dev/cni-bridge/internal/filter"
	"podvirt.dev/cni-bridge/internal/journal"
	"podvirt.dev/cni-bridge/internal/nat"
	"podvirt.dev/cni-bridge/internal/nicplan"
	"podvirt.dev/internal/loopback"
	"podvirt.dev/internal/nicalias"
	"podvirt.dev/internal/nl"
)

// NIC is a planned NIC with what the namespace adds to it.
type NIC struct {
	nicplan.NIC
	MTU int
}

// Spec says what to make.
type Spec struct {
	NICs       []NIC
	Owner      *api.Owner // nil: the namespace belongs to a user namespace whose ids cannot be named from outside
	GatewayMAC net.HardwareAddr
	Reserved   []api.PortRange
	PortBase   uint16
}

// Step is one change with its undo, which is no error when there is nothing to undo.
type Step struct {
	Name string
	Do   func(h *nl.Handle) error
}

// Plan returns the steps that make the spec, and the part of the journal that undoes them. The settings that the steps change are read
// now, nothing is changed.
func Plan(h *nl.Handle, spec Spec) ([]Step, journal.Entry, error) {
	var (
		steps []Step
		entry journal.Entry
	)
	for _, nic := range spec.NICs {
		made, err := record(h, spec, nic)
		if err != nil {
			return nil, entry, err
		}
		if err := unclaimed(h, made.Tap, made.Service); err != nil {
			return nil, entry, err
		}
		entry.NICs = append(entry.NICs, made)
		if owned := ownedSteps(spec, nic, made); owned != nil {
			steps = slices.Concat(steps, owned, rateSteps(made))
			continue
		}
		settings, err := sysctls(nic)
		if err != nil {
			return nil, entry, err
		}
		entry.Sysctls = append(entry.Sysctls, settings...)
		steps = append(steps, nicSteps(spec, nic, made)...)
		steps = append(steps, Step{"sysctl", func(*nl.Handle) error { return fault.Wrap(fault.Kernel, "sysctls", set(settings)) }})
		steps = append(steps, Step{"nat", func(*nl.Handle) error {
			return fault.Wrap(fault.NAT, "NAT", nat.Apply(natSpec(spec, nic, made.Tap)))
		}})
		steps = append(steps, rateSteps(made)...)
	}
	return steps, entry, nil
}

// ownedSteps are those of a NIC that owns its Pod interface; nil: it does not.
func ownedSteps(spec Spec, nic NIC, made journal.NIC) []Step {
	switch {
	case made.Wire != nil:
		return wireSteps(spec, nic, made)
	case made.Bridge != nil:
		return bridgeSteps(spec, nic, made)
	}
	return nil
}

func owned(made journal.NIC) bool { return made.Wire != nil || made.Bridge != nil }

// record is what the journal keeps of a NIC.
func record(h *nl.Handle, spec Spec, nic NIC) (journal.NIC, error) {
	guest4, guest6 := guestAddresses(nic)
	told, err := nic.tell(nicalias.NIC{
		Name: nic.Name, Interface: nic.Interface, Binding: string(nic.Binding), MAC: nic.MAC, Guest4: guest4, Guest6: guest6,
		MultiQueue: !nic.SingleQueue, PortBase: spec.PortBase,
	}, h)
	if err != nil {
		return journal.NIC{}, fault.Wrap(fault.Binding, "nic "+nic.Name, err)
	}
	alias, err := told.Encode()
	if err != nil {
		return journal.NIC{}, fault.Wrap(fault.Tap, "nic "+nic.Name, err)
	}
	rules := 0
	if nic.Binding == api.BindingMasquerade {
		if rules, err = nat.CountRules(natSpec(spec, nic, nicalias.TapName(nic.Index))); err != nil {
			return journal.NIC{}, fault.Wrap(fault.NAT, "nic "+nic.Name, err)
		}
	}
	made := journal.NIC{
		Alias: alias, Tap: nicalias.TapName(nic.Index), Service: nicalias.ServiceName(nic.Index), MAC: spec.GatewayMAC.String(), MTU: nic.MTU,
		Rules: rules, RateIn: nic.RateIn, RateOut: nic.RateOut,
	}
	if nic.RateOut > 0 {
		made.RateInterface = nic.Interface
	}
	for _, prefix := range gateways(spec, nic) {
		made.Addresses = append(made.Addresses, prefix.String())
	}
	switch nic.Binding {
	case api.BindingWire:
		made.Wire, err = wireRecord(h, nic)
	case api.BindingBridge:
		made.Bridge, err = bridgeRecord(h, nic)
	}
	return made, err
}

// gateways are the addresses of the tap. The link-local one is made from the MAC here and not by the kernel, whose rule
// a node's administrator can change, so that it is the same on every node.
func gateways(spec Spec, nic NIC) []netip.Prefix {
	var out []netip.Prefix
	if nic.V4.On() {
		out = append(out, nic.V4.Gateway)
	}
	if nic.V6.On() {
		out = append(out, nic.V6.Gateway, netip.PrefixFrom(linkLocal(spec.GatewayMAC), 64))
	}
	return out
}

// linkLocal is fe80::/64 with the modified EUI-64 of the MAC (RFC 4291, appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

func natSpec(spec Spec, nic NIC, tap string) nat.Spec {
	return nat.Spec{
		Tap: tap, Pod: nic.Interface,
		V4:    nat.Family{Guest: nic.V4.Guest.Addr(), Pod: nic.V4.Pod},
		V6:    nat.Family{Guest: nic.V6.Guest.Addr(), Pod: nic.V6.Pod},
		Ports: nic.Ports, Reserved: slices.Concat(spec.Reserved, nic.Mesh),
		Loopback: nat.Loopback{Port: loopback.Port(spec.PortBase), Priority: loopback.Priority},
	}
}

// unclaimed refuses names that somebody else's interface has.
func unclaimed(h *nl.Handle, names ...string) error {
	for _, name := range names {
		link, err := h.Link(name)
		if err == nil {
			return fault.New(fault.Tap, "the Pod has an interface %s already (%s)", link.Name, link.Kind)
		}
		if !nl.IsNotFound(err) {
			return fault.Wrap(fault.Tap, "looking for "+name, err)
		}
	}
	return nil
}

func nicSteps(spec Spec, nic NIC, made journal.NIC) []Step {
	return append(tapSteps(spec, nic, made),
		filterStep(spec, nic, made), Step{"up", func(h *nl.Handle) error { return fault.Wrap(fault.Tap, "up", up(h, spec, nic, made)) }})
}

func tapSteps(spec Spec, nic NIC, made journal.NIC) []Step {
	return []Step{
		{"tap", func(h *nl.Handle) error {
			return fault.Wrap(fault.Tap, made.Tap, addTap(h, made.Tap, made.Alias, nl.Tap{MultiQueue: !nic.SingleQueue}, spec.Owner))
		}},
		{"service tap", func(h *nl.Handle) error {
			return fault.Wrap(fault.Tap, made.Service, addTap(h, made.Service, nicalias.Service(), nl.Tap{}, spec.Owner))
		}},
		{"tap settings", func(h *nl.Handle) error { return fault.Wrap(fault.Tap, made.Tap, configure(h, spec, nic, made)) }},
	}
}

func filterStep(spec Spec, nic NIC, made journal.NIC) Step {
	return Step{"filter", func(h *nl.Handle) error {
		tap, err1 := h.Link(made.Tap)
		service, err2 := h.Link(made.Service)
		links := filter.Links{Tap: tap.Index, Service: service.Index}
		var err3 error
		if made.Wire != nil {
			var pod nl.Link
			pod, err3 = h.Link(made.Wire.Interface)
			links.Pod = pod.Index
			if nic.Name == nicplan.Default {
				links.Share = &filter.Share{First: int(spec.PortBase), Last: spec.Reserved[0].Last}
			}
		}
		if nic.Name == nicplan.Default && owned(made) {
			v4, v6 := guestAddresses(nic)
			links.Identity = &filter.Identity{MAC: nic.MAC, V4: v4.Addr(), V6: v6.Addr()}
		}
		if err := errors.Join(err1, err2, err3); err != nil {
			return fault.Wrap(fault.NAT, "filter", err)
		}
		return fault.Wrap(fault.NAT, "filter", filter.Attach(h, links, filter.Take{DHCP: nic.DHCP, RA: nic.RA}))
	}}
}

// addTap marks the tap as ours before anything else, so that DEL without a journal knows it.
func addTap(h *nl.Handle, name, alias string, tap nl.Tap, owner *api.Owner) error {
	if owner != nil {
		uid, gid := uint32(owner.UID), uint32(owner.GID)
		tap.UID, tap.GID = &uid, &gid
	}
	if err := nl.AddTap(name, tap); err != nil {
		return err
	}
	link, err := h.Link(name)
	if err != nil {
		return err
	}
	return h.Set(link.Index, nl.Changes{Alias: alias})
}

func configure(h *nl.Handle, spec Spec, nic NIC, made journal.NIC) error {
	tap, err := h.Link(made.Tap)
	if err != nil {
		return err
	}
	service, err := h.Link(made.Service)
	if err != nil {
		return err
	}
	// The service tap never has a frame that the tap cannot carry, and its own stack stays silent.
	return errors.Join(
		h.Set(tap.Index, nl.Changes{MAC: spec.GatewayMAC, MTU: nic.MTU}),
		h.Set(service.Index, nl.Changes{MTU: nic.MTU}),
		quiet(made.Tap, nic.V6.On()),
		quiet(made.Service, owned(made) && hasIPv6(nic)),
	)
}

func up(h *nl.Handle, spec Spec, nic NIC, made journal.NIC) error {
	for _, name := range []string{made.Service, made.Tap} {
		link, err := h.Link(name)
		if err != nil {
			return err
		}
		if err := h.Set(link.Index, nl.Changes{Up: true}); err != nil {
			return err
		}
		if name != made.Tap {
			continue
		}
		for _, prefix := range gateways(spec, nic) {
			if err := h.AddAddress(link.Index, prefix); err != nil {
				return err
			}
		}
	}
	return nil
}

// Undo takes back what the entry says, in reverse order, as far as it is there.
func Undo(h *nl.Handle, entry journal.Entry) error {
	errs := []error{nat.Delete(), restore(entry.Sysctls)}
	for _, nic := range slices.Backward(entry.NICs) {
		errs = append(errs, unshape(h, nic), unwire(h, nic.Wire), unbridge(h, nic.Bridge), remove(h, nic.Service), remove(h, nic.Tap))
	}
	return fault.Wrap(fault.Undo, "undo incomplete", errors.Join(errs...))
}

// Clean takes back what can be recognised as ours without a journal: the table, and taps and bridges by their alias.
func Clean(h *nl.Handle) error {
	links, err := h.Links()
	if err != nil {
		return fault.Wrap(fault.Undo, "undo incomplete", err)
	}
	errs := []error{nat.Delete()}
	for _, link := range links {
		errs = append(errs, h.Unshape(link.Index))
		for name, hook := range filter.Names() {
			errs = append(errs, h.DeleteFilter(link.Index, hook, name))
		}
		switch {
		case ours(link):
			errs = append(errs, remove(h, link.Name))
		case link.Kind == "bridge" && link.Alias == nicalias.Service():
			errs = append(errs, removeBridge(h, link.Name))
		}
	}
	return fault.Wrap(fault.Undo, "undo incomplete", errors.Join(errs...))
}

func remove(h *nl.Handle, name string) error {
	link, err := h.Link(name)
	if err == nil && ours(link) {
		err = h.Delete(link.Index)
	}
	if nl.IsNotFound(err) {
		return nil
	}
	return err
}

// ours is a tap with our alias, or one that ADD died over before the alias was set: persistent, ours by name, and
// with an owner, which other makers of taps in a Pod do not set to the launcher's.
func ours(link nl.Link) bool {
	if link.Tap == nil {
		return false
	}
	_, err := nicalias.Decode(link.Alias)
	if !errors.Is(err, nicalias.ErrNotOurs) {
		return true
	}
	named := strings.HasPrefix(link.Name, "tap") || strings.HasPrefix(link.Name, "svc")
	return named && link.Alias == "" && !link.Up
}
