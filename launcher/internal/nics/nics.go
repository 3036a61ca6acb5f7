// Package nics finds the guest's NICs in the Pod's network namespace. The CNI plugin left one tap per NIC and says in
// its ifalias which NIC it is (network.md 2.8); everything else is read from the kernel, so a container that restarts
// in the same Pod finds its network again without asking anybody.
package nics

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"podvirt.dev/api"
	"podvirt.dev/internal/nicalias"
	"podvirt.dev/internal/nl"
)

// Error says why the VM cannot have its network, and how the container ends because of it.
type Error struct {
	Reason api.Reason // NodeLacks or BadConfig
	Text   string
}

// Error returns the sentence that follows the reason in the termination message.
func (e *Error) Error() string { return e.Text }

// NIC is one guest NIC.
type NIC struct {
	nicalias.NIC // name, Pod interface, binding, MAC, guest addresses, queues, the launcher's ports

	Index   int    // of the NIC in the VM: 0 is the first
	Tap     string // the guest's tap
	Service string // the service tap; "": the CNI plugin made none
	MTU     int    // bytes

	GatewayMAC net.HardwareAddr // of the guest tap's end in the Pod
	Gateway4   netip.Addr       // invalid: none
	Gateway6   netip.Addr       // invalid: none
	LinkLocal  netip.Addr       // of the guest tap's end in the Pod; invalid: no IPv6 there
	Server4    netip.Addr       // whom the guest knows the launcher by; invalid: Gateway4
	Routes     []nl.Route       // those of the Pod interface but the default; with wire and bridge but its own subnet as well
	OnLink     bool             // with wire and bridge: the own IPv4 subnet is reached without a gateway
}

// Namespace is what of the network namespace is read; *nl.Handle is one.
type Namespace interface {
	Links() ([]nl.Link, error)
	Addresses(index int) ([]nl.Address, error)
	Routes() ([]nl.Route, error)
}

var _ Namespace = (*nl.Handle)(nil)

// Wanted says for whom NICs are looked up.
type Wanted struct {
	UID       int  // of the launcher: the taps must belong to it
	Annotated bool // the Pod has the annotation podvirt.dev/vm
	None      bool // nic.default says binding=none: the VM has no NIC on the pod network
	Host      bool // this is the host's own network namespace
}

// Find returns the NICs of the VM in their order. An *Error says what the Pod or the node lacks.
func Find(ns Namespace, wanted Wanted) ([]NIC, error) {
	if wanted.Host {
		return nil, &Error{Reason: api.ReasonBadConfig, Text: "hostNetwork: a VM Pod needs a network namespace of its own"}
	}
	links, err := ns.Links()
	if err != nil {
		return nil, fmt.Errorf("interfaces of the Pod: %w", err)
	}
	byName := make(map[string]nl.Link, len(links))
	for _, link := range links {
		byName[link.Name] = link
	}
	var found []NIC
	for _, link := range links {
		nic, ours, err := read(ns, link, wanted.UID)
		if err != nil {
			return nil, err
		}
		if !ours {
			continue
		}
		if service, ok := byName[nicalias.ServiceName(nic.Index)]; ok {
			nic.Service = service.Name
			if err := readOwned(ns, &nic, byName[nic.Interface], service); err != nil {
				return nil, err
			}
		}
		found = append(found, nic)
	}
	slices.SortFunc(found, func(a, b NIC) int { return cmp.Compare(a.Index, b.Index) })
	if !wanted.None && !slices.ContainsFunc(found, func(n NIC) bool { return n.Name == api.PodNetwork }) {
		return nil, missing(wanted)
	}
	return found, nil
}

// missing says why there is no tap for the pod network (network.md NW-001, NW-010).
func missing(wanted Wanted) *Error {
	if !wanted.Annotated {
		return &Error{Reason: api.ReasonNodeLacks,
			Text: "no tap for nic default: this Pod has no annotation " + api.KeyVM}
	}
	return &Error{Reason: api.ReasonNodeLacks, Text: api.MissedNetworkStage +
		" (made before it was installed, or the runtime passes no annotations); delete this Pod"}
}

// read makes a NIC of a link; false where the link is not one of ours.
func read(ns Namespace, link nl.Link, uid int) (NIC, bool, error) {
	index, ok := indexOf(link.Name)
	if !ok {
		return NIC{}, false, nil
	}
	alias, err := nicalias.Decode(link.Alias)
	switch {
	case errors.Is(err, nicalias.ErrNotOurs):
		return NIC{}, false, nil
	case errors.Is(err, nicalias.ErrNewer):
		return NIC{}, false, &Error{Reason: api.ReasonNodeLacks, Text: fmt.Sprintf("%s: %v", link.Name, err)}
	case err != nil:
		return NIC{}, false, fmt.Errorf("%s: %w", link.Name, err)
	}
	if err := checkOwner(link, uid); err != nil {
		return NIC{}, false, err
	}
	nic := NIC{NIC: alias, Index: index, Tap: link.Name, MTU: link.MTU, GatewayMAC: link.MAC}
	addresses, err := ns.Addresses(link.Index)
	if err != nil {
		return NIC{}, false, fmt.Errorf("%s: %w", link.Name, err)
	}
	for _, a := range addresses {
		address := a.Prefix.Addr()
		switch {
		case address.Is4():
			nic.Gateway4 = address
		case address.IsLinkLocalUnicast():
			nic.LinkLocal = address
		default:
			nic.Gateway6 = address
		}
	}
	return nic, true, nil
}

// readOwned adds what a NIC has whose guest owns the Pod interface.
func readOwned(ns Namespace, nic *NIC, pod, service nl.Link) error {
	switch api.Binding(nic.Binding) {
	case api.BindingMasquerade:
		return readMasqueraded(ns, nic, pod)
	case api.BindingWire:
		return errors.Join(readService(ns, nic, service), readWire(ns, nic, pod))
	case api.BindingBridge: // the interface has nothing any more
		nic.Gateway4, nic.Gateway6, nic.OnLink = nic.PodGateway4, nic.PodGateway6, nic.PodOnLink
		if nic.Gateway4.IsValid() && !nic.OnLink { // no subnet of the guest's holds it
			nic.Routes = []nl.Route{{Destination: netip.PrefixFrom(nic.Gateway4, nic.Gateway4.BitLen())}}
		}
		return readService(ns, nic, service)
	}
	return nil
}

// readService adds the addresses by which the guest knows the launcher.
func readService(ns Namespace, nic *NIC, service nl.Link) error {
	addresses, err := ns.Addresses(service.Index)
	if err != nil {
		return fmt.Errorf("%s: %w", service.Name, err)
	}
	for _, a := range addresses {
		if address := a.Prefix.Addr(); address.Is4() {
			nic.Server4 = address
		} else {
			nic.LinkLocal = address
		}
	}
	return nil
}

// readMasqueraded adds what the Pod reaches by its interface without the default route.
func readMasqueraded(ns Namespace, nic *NIC, pod nl.Link) error {
	routes, err := ns.Routes()
	if err != nil {
		return fmt.Errorf("routes of %s: %w", pod.Name, err)
	}
	for _, r := range routes {
		if r.Link == pod.Index && r.Destination.Bits() > 0 && !r.Destination.Addr().IsLinkLocalUnicast() {
			nic.Routes = append(nic.Routes, r)
		}
	}
	return nil
}

// readWire adds the routes by the Pod interface.
func readWire(ns Namespace, nic *NIC, pod nl.Link) error {
	routes, err := ns.Routes()
	if err != nil {
		return fmt.Errorf("routes of %s: %w", pod.Name, err)
	}
	for _, r := range routes {
		switch {
		case r.Link != pod.Index, r.Destination.Addr().Is6() && r.Destination.Addr().IsLinkLocalUnicast():
		case r.Destination.Bits() == 0 && r.Gateway.Is4():
			nic.Gateway4 = r.Gateway
		case r.Destination.Bits() == 0:
			nic.Gateway6 = r.Gateway
		case !r.Gateway.IsValid() && r.Destination == nic.Guest4.Masked():
			nic.OnLink = true
		case r.Gateway.IsValid(), r.Destination.Addr().Is4():
			nic.Routes = append(nic.Routes, r)
		}
	}
	// A client installs routes in the order in which it is told: a gateway must be on link before it can be one.
	slices.SortStableFunc(nic.Routes, func(a, b nl.Route) int {
		switch {
		case a.Gateway.IsValid() == b.Gateway.IsValid():
			return 0
		case b.Gateway.IsValid():
			return -1
		}
		return 1
	})
	return nil
}

// indexOf returns the index of the NIC whose tap has this name.
func indexOf(tap string) (int, bool) {
	index, err := strconv.Atoi(strings.TrimPrefix(tap, "tap"))
	return index, err == nil && tap == nicalias.TapName(index)
}

// checkOwner refuses a tap that the kernel would not let this user open. A tap without owner is for everybody who has
// /dev/net/tun (Pods with a user namespace of their own).
func checkOwner(link nl.Link, uid int) error {
	if link.Tap == nil || link.Tap.UID == nil || int(*link.Tap.UID) == uid || uid == 0 {
		return nil
	}
	return &Error{Reason: api.ReasonBadConfig, Text: fmt.Sprintf("%s belongs to uid %d, the launcher runs as %d; set %s: \"%d\"",
		link.Name, *link.Tap.UID, uid, api.KeyTapOwner, uid)}
}

// HostNamespace reports whether the root directory shows the network namespace of the host: the kernel has this sysctl
// only there (net/core/sysctl_net_core.c registers net_core_table for init_net alone).
func HostNamespace(fsys fs.FS) bool {
	_, err := fs.Stat(fsys, "proc/sys/net/core/netdev_max_backlog")
	return err == nil
}
