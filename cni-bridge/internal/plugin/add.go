package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/skel"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"podvirt.dev/api"
	"podvirt.dev/cni-bridge/internal/bind"
	"podvirt.dev/cni-bridge/internal/fault"
	"podvirt.dev/cni-bridge/internal/journal"
	"podvirt.dev/cni-bridge/internal/lan"
	"podvirt.dev/cni-bridge/internal/netconf"
	"podvirt.dev/cni-bridge/internal/nicplan"
	"podvirt.dev/cni-bridge/internal/spoof"
	"podvirt.dev/internal/nicalias"
	"podvirt.dev/internal/nl"
)

func (p Plugin) add(ctx context.Context, conf netconf.Config, args *skel.CmdArgs, err error) error {
	switch {
	case err != nil:
		return err
	case conf.Mode.IsLAN():
		return p.addLAN(ctx, conf, args)
	case conf.Mode == netconf.ModeTuning:
		return p.tune(conf, args)
	case conf.Mode != netconf.ModePod:
		return unsupported(fault.Config, conf.Mode)
	case conf.Previous == nil:
		return fault.New(fault.Config, "mode pod must be chained")
	case !nicplan.IsVM(conf.Annotations):
		return p.print(conf.Previous)
	}
	vm, err := nicplan.Parse(conf.Annotations)
	if err != nil {
		return err
	}
	result, err := previous(conf)
	if err != nil {
		return err
	}
	a := adding{plugin: p, conf: conf, args: args, vm: vm, store: journal.New(conf.StateDir)}
	a.pod.Namespace, a.pod.Name, a.pod.UID = podOf(args.Args)
	for _, server := range result.DNS.Nameservers {
		if address, err := netip.ParseAddr(server); err == nil {
			a.servers = append(a.servers, address)
		}
	}
	entry := journal.Entry{}
	err = locked(a.store, conf, args.ContainerID, args.IfName, func() error {
		entry, err = a.run(ctx)
		return err
	})
	if err != nil {
		return err
	}
	return p.result(conf, args, result, entry)
}

// previous decodes prevResult, which may have another version than the configuration.
func previous(conf netconf.Config) (*current.Result, error) {
	var has struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(conf.Previous, &has); err != nil {
		return nil, fault.Wrap(fault.Decode, "prevResult", err)
	}
	if has.CNIVersion == "" {
		has.CNIVersion = conf.CNIVersion
	}
	raw, err := version.NewResult(has.CNIVersion, conf.Previous)
	if err != nil {
		return nil, fault.Wrap(fault.Decode, "prevResult", err)
	}
	result, err := current.NewResultFromResult(raw)
	if err != nil {
		return nil, fault.Wrap(fault.Decode, "prevResult", err)
	}
	return result, nil
}

// result prints what came in, with the taps as further interfaces of the sandbox.
func (p Plugin) result(conf netconf.Config, args *skel.CmdArgs, result *current.Result, entry journal.Entry) error {
	for _, nic := range entry.NICs {
		result.Interfaces = append(result.Interfaces, &current.Interface{Name: nic.Tap, Mac: nic.MAC, Sandbox: args.Netns})
	}
	return p.convert(conf, result)
}

// convert prints a result in the version of the configuration.
func (p Plugin) convert(conf netconf.Config, result *current.Result) error {
	converted, err := result.GetAsVersion(conf.CNIVersion)
	if err != nil {
		return fault.Wrap(fault.Version, "result", err)
	}
	var out bytes.Buffer
	if err := converted.PrintTo(&out); err != nil {
		return fault.Wrap(fault.IO, "result", err)
	}
	return p.print(out.Bytes())
}

// adding is one ADD of a VM Pod.
type adding struct {
	plugin Plugin
	conf   netconf.Config
	args   *skel.CmdArgs
	vm     api.VM
	pod    nicplan.Pod
	store  journal.Store

	servers []netip.Addr // of names, as the chain says; kubelet's are in the Pod's resolv.conf, where the launcher looks
}

func (a adding) run(ctx context.Context) (journal.Entry, error) {
	old, err := a.store.Load(a.args.ContainerID, a.args.IfName)
	switch {
	case err == nil: // an ADD died, or is repeated: its work goes first, or its changes would be taken for the state before
		if err := undo(ctx, a.store, a.conf, old); err != nil {
			return old, err
		}
	case !errors.Is(err, journal.ErrNone):
		return old, err
	}
	inode, userns, err := identify(a.args.Netns)
	if err != nil {
		return old, err
	}
	var entry journal.Entry
	err = inside(a.args.Netns, func(h *nl.Handle) error {
		spec, err := a.spec(h)
		if err != nil {
			return err
		}
		if userns {
			spec.Owner = nil
		}
		steps, planned, err := bind.Plan(h, spec)
		if err != nil {
			return err
		}
		entry = planned
		entry.Network, entry.ContainerID, entry.IfName = a.conf.Name, a.args.ContainerID, a.args.IfName
		entry.Netns, entry.NetnsInode = a.args.Netns, inode
		entry.Namespace, entry.Pod, entry.PodUID = a.pod.Namespace, a.pod.Name, a.pod.UID
		return a.apply(h, steps, &entry)
	})
	if err != nil {
		return entry, err
	}
	if err := a.claim(entry); err != nil {
		return entry, errors.Join(err, undo(ctx, a.store, a.conf, entry))
	}
	if err := guard(a.conf, entry, func(w *journal.Wire) string { return w.MACAfter }, func(*journal.Wire) bool { return true }); err != nil {
		return entry, errors.Join(err, undo(ctx, a.store, a.conf, entry))
	}
	return entry, nil
}

// claim notes which MACs the VM has on networks of ours.
func (a adding) claim(entry journal.Entry) error {
	for _, nic := range entry.NICs {
		if nic.Wire == nil {
			continue
		}
		network, err := journal.Networks(a.conf.StateDir).Load(entry.ContainerID, nic.Wire.Interface)
		if err != nil || network.LAN == nil || network.LAN.Holds == nic.Wire.MACAfter {
			continue
		}
		network.LAN.Holds = nic.Wire.MACAfter
		if err := claim(a.conf, network); err != nil {
			return err
		}
	}
	return nil
}

// guard tells the spoof check of the node's bridges, from outside the Pod, which MAC the Pod interfaces have.
func guard(conf netconf.Config, entry journal.Entry, which func(*journal.Wire) string, wanted func(*journal.Wire) bool) error {
	for _, nic := range entry.NICs {
		if nic.Wire == nil || nic.Wire.Guarded == "" || !wanted(nic.Wire) {
			continue
		}
		mac, err := net.ParseMAC(which(nic.Wire))
		if err == nil {
			err = spoofLocked(conf, func() error { return spoof.Guard(nic.Wire.Guarded, mac) })
		}
		if err != nil {
			return fault.Wrap(fault.Kernel, "MAC spoof check of "+nic.Wire.Interface, err)
		}
	}
	return nil
}

// spec reads what the namespace has and plans the NICs.
func (a adding) spec(h *nl.Handle) (bind.Spec, error) {
	links, err := podLinks(h)
	if err != nil {
		return bind.Spec{}, err
	}
	interfaces := make([]nicplan.Interface, 0, len(links))
	mtu := make(map[string]int, len(links))
	found := false
	for _, link := range links {
		addresses, err := h.Addresses(link.Index)
		if err != nil {
			return bind.Spec{}, err
		}
		itf := a.network(link)
		for _, address := range addresses {
			if !address.LinkLocal {
				itf.Prefixes = append(itf.Prefixes, address.Prefix)
			}
		}
		interfaces = append(interfaces, itf)
		mtu[link.Name] = link.MTU
		found = found || link.Name == a.args.IfName
	}
	if !found {
		return bind.Spec{}, fault.New(fault.Binding, "%s is not in the Pod's network namespace", a.args.IfName)
	}
	ordered := nicplan.Order(interfaces, a.args.IfName, a.conf.Annotations[nicplan.NetworksAnnotation])
	nics, err := nicplan.Make(a.conf, a.vm, a.pod, ordered)
	if err != nil {
		return bind.Spec{}, err
	}
	newLog("ADD", a.conf, a.args).warn(nicplan.Unheeded(a.conf.Annotations[nicplan.NetworksAnnotation], ordered)...)
	owner := nicplan.Owner(a.conf, a.vm)
	spec := bind.Spec{Owner: &owner, GatewayMAC: a.conf.Pod.GatewayMAC, Reserved: a.conf.Pod.Reserved, PortBase: a.conf.Pod.PortBase()}
	for _, nic := range nics {
		if err := errors.Join(overlaps(h, nic, ordered), a.hides(nic)); err != nil {
			return bind.Spec{}, err
		}
		if nic.MAC == nil {
			link, err := h.Link(nic.Interface)
			if err != nil {
				return bind.Spec{}, err
			}
			nic.MAC = link.MAC
		}
		spec.NICs = append(spec.NICs, bind.NIC{NIC: nic, MTU: mtu[nic.Interface]})
	}
	return spec, nil
}

// spoofLocked holds the lock of the table of guarded ports, which the network modes change as well.
func spoofLocked(conf netconf.Config, act func() error) (err error) {
	unlock, err := lockNetworks(conf, lan.SpoofLock)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	return act()
}

// network is an interface of the Pod with what our network mode knows about it, where that made it.
func (a adding) network(link nl.Link) nicplan.Interface {
	itf := nicplan.Interface{Name: link.Name, MAC: link.MAC, MTU: link.MTU}
	made, err := journal.Networks(a.conf.StateDir).Load(a.args.ContainerID, link.Name)
	if err != nil || made.LAN == nil || made.Netns != a.args.Netns {
		return itf
	}
	itf.Derive = made.LAN.MAC == ""
	if made.LAN.Guard {
		itf.Guarded = made.LAN.Port
	}
	return itf
}

// podLinks are the interfaces that guest NICs can be made of: not lo, not our taps, not the devices that the kernel
// puts into every namespace once a tunnel module is loaded (net.core.fb_tunnels_only_for_init_net).
func podLinks(h *nl.Handle) ([]nl.Link, error) {
	all, err := h.Links()
	if err != nil {
		return nil, err
	}
	fallback := map[string]bool{
		"tunl0": true, "sit0": true, "gre0": true, "gretap0": true, "erspan0": true, "ip_vti0": true, "ip6_vti0": true, "ip6tnl0": true,
		"ip6gre0": true,
	}
	var links []nl.Link
	for _, link := range all {
		_, err := nicalias.Decode(link.Alias)
		if !link.Loopback && !fallback[link.Name] && errors.Is(err, nicalias.ErrNotOurs) && link.Master == 0 {
			links = append(links, link)
		}
	}
	return links, nil
}

// overlaps refuses a network between tap and guest that hides something the Pod can reach (NW-017).
func overlaps(h *nl.Handle, nic nicplan.NIC, interfaces []nicplan.Interface) error {
	routes, err := h.Routes()
	if err != nil {
		return err
	}
	for _, in := range []nicplan.Inside{nic.V4, nic.V6} {
		if !in.On() {
			continue
		}
		for _, itf := range interfaces {
			for _, prefix := range itf.Prefixes {
				if in.Network.Contains(prefix.Addr()) {
					return fault.New(fault.Overlap, "guest network %s overlaps the pod address %s", in.Network, prefix.Addr())
				}
			}
		}
		for _, route := range routes {
			if route.Destination.Bits() > 0 && route.Destination.Overlaps(in.Network) && !coversAll(route.Destination, in.Network) {
				return fault.New(fault.Overlap, "guest network %s overlaps the route to %s", in.Network, route.Destination)
			}
		}
	}
	return nil
}

// hides refuses a network between tap and guest that hides a name server from the guest.
func (a adding) hides(nic nicplan.NIC) error {
	for _, in := range []nicplan.Inside{nic.V4, nic.V6} {
		for _, server := range a.servers {
			if in.On() && in.Network.Contains(server) {
				return fault.New(fault.Overlap, "guest network %s contains the DNS server %s", in.Network, server)
			}
		}
	}
	return nil
}

// coversAll is a route wider than the guest network, such as 10.0.0.0/8 by the default gateway: the more specific
// network of the tap wins beside it, and only what is inside the small one is hidden.
func coversAll(route, network netip.Prefix) bool {
	return route.Bits() < network.Bits()
}

// apply runs the steps between the two writes of the journal; a failure undoes all of them.
func (a adding) apply(h *nl.Handle, steps []bind.Step, entry *journal.Entry) (err error) {
	defer func() {
		if err == nil {
			return
		}
		if undoErr := bind.Undo(h, *entry); undoErr != nil {
			err = fault.Wrap(fault.Undo, err.Error(), undoErr)
			return // the journal stays for GC
		}
		err = errors.Join(err, a.store.Remove(entry.ContainerID, entry.IfName))
	}()
	all := []bind.Step{{Name: "journal", Do: func(*nl.Handle) error { return a.store.Save(*entry) }}}
	all = append(all, steps...)
	all = append(all, bind.Step{Name: "journal done", Do: func(*nl.Handle) error {
		entry.Done = true
		return a.store.Save(*entry)
	}})
	for _, step := range all {
		if err := step.Do(h); err != nil {
			return err
		}
		if a.plugin.AfterStep == nil {
			continue
		}
		if err := a.plugin.AfterStep(step.Name); err != nil {
			return err
		}
	}
	return nil
}
