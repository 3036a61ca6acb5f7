package nicplan

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net"

	"podvirt.dev/api"
)

// mac is the guest's MAC: as written, or derived; nil where that of the Pod interface is kept.
func (p *planner) mac(o api.NIC, name string, itf Interface) net.HardwareAddr {
	word, asked := o.MAC, p.asked[itf.Name]
	switch {
	case word == "" && asked != nil: // which the interface has, unless its plugin is without the capability mac
		return asked
	case word == "" && (p.masqueraded(o, name) || itf.Derive):
		word = "vm"
	case word == "":
		word = "cni"
	}
	vm := p.vm.Name
	if vm == "" || p.vm.Identity == api.IdentityPod || word == "pod" {
		vm = p.pod.Name
	}
	switch word {
	case "cni":
		return nil
	case "vm", "pod":
		return DeriveMAC(p.config.MACPrefix, p.config.MACSalt, p.pod.Namespace, vm, name)
	}
	return p.written(word, name, asked)
}

// written is a MAC that the annotation of a NIC spells out.
func (p *planner) written(word, name string, asked net.HardwareAddr) net.HardwareAddr {
	mac, err := net.ParseMAC(word)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		p.refuse(name, "mac=%s: not a unicast MAC", word)
		return nil
	}
	if asked != nil && asked.String() != mac.String() {
		p.refuse(name, "mac=%s: differs from %s in %s", word, asked, NetworksAnnotation)
	}
	return mac
}

// Unheeded says of which interfaces the plugin did not set the MAC that the networks annotation asks for.
func Unheeded(networks string, interfaces []Interface) []string {
	var texts []string
	asked := askedMACs(networks)
	for _, itf := range interfaces {
		if mac := asked[itf.Name]; mac != nil && mac.String() != itf.MAC.String() {
			texts = append(texts, fmt.Sprintf("%s: its plugin gave it %s, not the %s of %s; the guest has the latter all the same",
				itf.Name, itf.MAC, mac, NetworksAnnotation))
		}
	}
	return texts
}

// sameMAC refuses a MAC that somebody asks for and that the VM has twice. Interfaces that have one MAC by themselves, as those
// of one ipvlan have, are let be.
func (p *planner) sameMAC(nics []NIC, interfaces []Interface) {
	of := make(map[string]net.HardwareAddr, len(interfaces))
	for _, itf := range interfaces {
		of[itf.Name] = itf.MAC
	}
	had := map[string]NIC{}
	for _, nic := range nics {
		mac := nic.MAC
		if mac == nil {
			mac = of[nic.Interface]
		}
		first, twice := had[mac.String()]
		if twice && (p.wants(first) || p.wants(nic)) {
			p.refuse(nic.Name, "mac=%s: also on nic.%s", mac, first.Name)
		}
		if !twice {
			had[mac.String()] = nic
		}
	}
}

// wants says whether the NIC's MAC was written by somebody, in its own annotation or in that of the networks.
func (p *planner) wants(nic NIC) bool { return nic.MAC != nil || p.asked[nic.Interface] != nil }

func (p *planner) masqueraded(o api.NIC, name string) bool {
	return name == Default && cmp.Or(o.Binding, p.config.Pod.DefaultBinding) == api.BindingMasquerade
}

// DeriveMAC is NW-075: the prefix of 1 to 3 octets, filled up with the first octets of SHA-256 over salt, namespace,
// name of the VM and name of the NIC. Each of them goes in behind its length, so that no two sets of names run together.
func DeriveMAC(prefix net.HardwareAddr, salt, namespace, vm, nic string) net.HardwareAddr {
	hash := sha256.New()
	for _, part := range []string{salt, namespace, vm, nic} {
		hash.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		hash.Write([]byte(part))
	}
	return append(append(net.HardwareAddr{}, prefix...), hash.Sum(nil)[:6-len(prefix)]...)
}
