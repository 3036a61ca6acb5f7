// Package nicplan decides, from a Pod's annotations and the interfaces it has, which guest NICs there will be. It reads
// no kernel and changes nothing.
package nicplan

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"podvirt.dev/api"
	"podvirt.dev/cni-bridge/internal/fault"
	"podvirt.dev/cni-bridge/internal/netconf"
)

// Default is the name of the NIC on the pod network.
const Default = "default"

// Pod names the Pod, by the runtime's CNI_ARGS.
type Pod struct {
	Namespace, Name, UID string
}

// Interface is one of the Pod that a guest NIC may be made of.
type Interface struct {
	Name     string
	MAC      net.HardwareAddr
	MTU      int            // bytes
	Prefixes []netip.Prefix // its addresses without link-local ones
	Guarded  string         // port on the node by which only its MAC may leave; "": none
	Derive   bool           // of a network of ours that was asked for no MAC: the guest's is derived
}

// NIC is one guest NIC as it shall be.
type NIC struct {
	Index       int // of tap and service tap
	Name        string
	Interface   string
	Binding     api.Binding
	MAC         net.HardwareAddr // nil: that of the Pod interface
	SingleQueue bool
	Ports       []api.PortRange // what comes in with masquerade; nil: everything
	Mesh        []api.PortRange // TCP ports of a mesh's proxy in the Pod, with masquerade
	V4, V6      Inside          // with masquerade
	DHCP, RA    bool            // the launcher answers
	RateIn      uint64          // bit/s towards the guest; 0: no limit
	RateOut     uint64          // bit/s from it
	Own         []netip.Prefix  // with wire and bridge: the addresses of the Pod interface, which the guest gets
	Guarded     string          // as the interface's
}

// Inside is one family of the network between tap and guest; the zero value: the guest does not get this family.
type Inside struct {
	Network        netip.Prefix
	Gateway, Guest netip.Prefix // first and second address of the network
	Pod            []netip.Addr // the addresses that lead to the guest
}

// On says whether the guest gets the family.
func (i Inside) On() bool { return i.Network.IsValid() }

// IsVM says whether the annotations are those of a VM Pod (network.md 2.1).
func IsVM(annotations map[string]string) bool {
	for key := range annotations {
		if api.IsVMKey(key) {
			return true
		}
	}
	return false
}

// Owner is who may open the taps.
func Owner(c netconf.Config, vm api.VM) api.Owner {
	if vm.TapOwner != nil {
		return *vm.TapOwner
	}
	return c.Pod.Owner
}

// Parse reads the annotations that matter for the network; mistakes in them are an error with code 100 and all lines.
// The others are the launcher's to report.
func Parse(annotations map[string]string) (api.VM, error) {
	vm, errs := api.ParseKeys(annotations, ours)
	return vm, refused(errs)
}

func ours(key string) bool {
	return strings.HasPrefix(key, api.Prefix+"nic.") || slices.Contains([]string{
		api.KeyVM, api.KeyIdentity, api.KeyTapOwner, api.KeyNICDefaults,
	}, key)
}

func refused(errs api.Errors) error {
	if len(errs) == 0 {
		return nil
	}
	first, _, _ := strings.Cut(errs[0].Text, "\n")
	err := fault.New(fault.Annotation, "annotation refused: %s", first)
	if len(errs) > 1 {
		err = fault.New(fault.Annotation, "%d annotations refused", len(errs))
		err.Details = errs.Error()
	}
	return err
}

// Make plans the NICs of a VM: interfaces are those of the Pod, the one of the pod network first.
func Make(c netconf.Config, vm api.VM, pod Pod, interfaces []Interface) ([]NIC, error) {
	p := planner{config: c, vm: vm, pod: pod, asked: askedMACs(c.Annotations[NetworksAnnotation])}
	options := make(map[string]api.NIC, len(vm.NICs))
	for _, o := range vm.NICs {
		options[o.Name] = o
	}
	var nics []NIC
	names := make([]string, 0, len(interfaces))
	for i, itf := range interfaces {
		name := itf.Name
		if i == 0 {
			name = Default
		}
		names = append(names, name)
		nic := p.nic(options[name], name, itf)
		if nic.Binding == api.BindingNone {
			continue
		}
		if mtu := options[name].MTU; mtu > itf.MTU {
			p.refuse(name, "mtu=%d: above the %d of %s", mtu, itf.MTU, itf.Name)
		}
		nic.Index = len(nics)
		nics = append(nics, nic)
	}
	p.sameMAC(nics, interfaces)
	for _, o := range vm.NICs {
		if !slices.Contains(names, o.Name) {
			p.refuse(o.Name, "no such NIC: %s%s", strings.Join(names, ", "), netconf.Nearest(o.Name, names))
		}
	}
	if len(nics) > c.Pod.MaxNICs {
		return nil, fault.New(fault.Limit, "%d NICs, at most %d", len(nics), c.Pod.MaxNICs)
	}
	return nics, refused(api.Errors{}.Join(p.errs))
}

type planner struct {
	config netconf.Config
	asked  map[string]net.HardwareAddr // by interface, of the networks annotation
	vm     api.VM
	pod    Pod
	errs   api.Errors
}

func (p *planner) refuse(nic, format string, args ...any) {
	key := api.Prefix + "nic." + nic
	p.errs = append(p.errs, api.Error{Key: key, Text: key + ": " + fmt.Sprintf(format, args...)})
}

func (p *planner) nic(o api.NIC, name string, itf Interface) NIC {
	nic := NIC{
		Name: name, Interface: itf.Name, Ports: o.Ports, MAC: p.mac(o, name, itf), Guarded: itf.Guarded,
		RateIn: uint64(o.RateIn), RateOut: uint64(o.RateOut),
		SingleQueue: o.Queues == 1 || o.Model != "" && o.Model != "virtio",
		DHCP:        o.DHCP != "off" && len(itf.Prefixes) > 0, RA: o.RA != "off" && len(itf.Prefixes) > 0,
	}
	nic.Binding = p.binding(o, name)
	if nic.Binding == api.BindingWire || nic.Binding == api.BindingBridge {
		nic.Own = itf.Prefixes
	}
	if nic.Binding != api.BindingMasquerade {
		return nic
	}
	nic.V4 = p.inside(o, name, itf, cmp.Or(o.V4CIDR, p.config.Pod.V4CIDR.String()), "4")
	nic.V6 = p.inside(o, name, itf, cmp.Or(o.V6CIDR, p.config.Pod.V6CIDR.String()), "6")
	nic.Mesh = p.meshPorts()
	p.ports(o, name, nic.Mesh)
	return nic
}

func (p *planner) binding(o api.NIC, name string) api.Binding {
	binding := o.Binding
	if binding == "" {
		binding = p.config.Pod.SecondaryBinding
		if name == Default {
			binding = p.config.Pod.DefaultBinding
		}
	}
	allowed := p.config.Pod.AllowedBindings
	switch {
	case binding == api.BindingMasquerade && name != Default:
		p.refuse(name, "binding=masquerade: masquerade works only on the pod network; use wire")
	case binding == api.BindingNone:
	case !slices.Contains(allowed, binding):
		words := make([]string, 0, len(allowed))
		for _, b := range allowed {
			words = append(words, string(b))
		}
		p.refuse(name, "binding=%s: %s is not in network.allowed-bindings: %s", binding, binding, strings.Join(words, ", "))
	case binding == api.BindingWire, binding == api.BindingBridge, binding == api.BindingMasquerade:
	default:
		p.refuse(name, "binding=%s: not supported by this version; use masquerade, wire or bridge", binding)
	}
	return binding
}

// inside lays out one family. "auto" follows the addresses of the Pod interface; a family asked for and missing there
// is an error.
func (p *planner) inside(o api.NIC, name string, itf Interface, cidr, family string) Inside {
	var in Inside
	for _, prefix := range itf.Prefixes {
		if prefix.Addr().Is4() == (family == "4") {
			in.Pod = append(in.Pod, prefix.Addr())
		}
	}
	asked := o.IPFamily != "" && o.IPFamily != "auto"
	switch {
	case asked && !strings.Contains(o.IPFamily, family):
		return Inside{}
	case asked && len(in.Pod) == 0:
		p.refuse(name, "ip-family=%s: %s has no IPv%s address", o.IPFamily, itf.Name, family)
		return Inside{}
	case len(in.Pod) == 0:
		return Inside{}
	}
	network, err := netip.ParsePrefix(cidr)
	if err != nil || network.Addr().Is4() != (family == "4") || network.Addr().BitLen()-network.Bits() < 2 {
		p.refuse(name, "v%s-cidr=%s: not a prefix with room for gateway and guest", family, cidr)
		return Inside{}
	}
	in.Network = network.Masked()
	gateway := in.Network.Addr().Next()
	in.Gateway = netip.PrefixFrom(gateway, network.Bits())
	in.Guest = netip.PrefixFrom(gateway.Next(), network.Bits())
	return in
}

func (p *planner) ports(o api.NIC, name string, mesh []api.PortRange) {
	for _, r := range o.Ports {
		for _, kept := range mesh {
			if r.Protocol == kept.Protocol && r.First <= kept.Last && kept.First <= r.Last {
				p.refuse(name, "ports=%s: kept for Istio's proxy (%s)", portText(r), portsText(mesh))
				break
			}
		}
		for _, kept := range p.config.Pod.Reserved {
			if r.Protocol == kept.Protocol && r.First <= kept.Last && kept.First <= r.Last {
				p.refuse(name, "ports=%s: kept for the launcher (%d to %d)", portText(r), kept.First, kept.Last)
			}
		}
	}
}

func portText(r api.PortRange) string {
	text := fmt.Sprint(r.First)
	if r.Last != r.First {
		text += fmt.Sprintf("-%d", r.Last)
	}
	if r.Protocol != "tcp" {
		text += "/" + r.Protocol
	}
	return text
}
