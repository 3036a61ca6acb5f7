package domain

import (
	"errors"
	"fmt"

	"libvirt.org/go/libvirtxml"
)

// Cable is what can be asked of a NIC of a running domain.
type Cable struct {
	Up     bool // carrier
	Queues int  // queue pairs
}

// Cables returns the NICs of a domain by their names, out of its XML.
func Cables(xml string, names []string) (map[string]Cable, error) {
	byAlias, err := interfaces(xml)
	if err != nil {
		return nil, err
	}
	cables := make(map[string]Cable, len(names))
	for _, name := range names {
		nic, ok := byAlias[alias("nic", name).Name]
		if !ok {
			continue
		}
		cable := Cable{Up: nic.Link == nil || nic.Link.State != "down", Queues: 1}
		if nic.Driver != nil {
			cable.Queues = max(1, int(nic.Driver.Queues))
		}
		cables[name] = cable
	}
	return cables, nil
}

// SetLink returns the XML of a NIC of the domain with its carrier up or down, everything else as it is.
func SetLink(xml, name string, up bool) (string, error) {
	byAlias, err := interfaces(xml)
	if err != nil {
		return "", err
	}
	nic, ok := byAlias[alias("nic", name).Name]
	if !ok {
		return "", errors.New("the guest has no NIC " + name)
	}
	nic.Link = &libvirtxml.DomainInterfaceLink{State: "down"}
	if up {
		nic.Link.State = "up"
	}
	return nic.Marshal()
}

func interfaces(xml string) (map[string]libvirtxml.DomainInterface, error) {
	var d libvirtxml.Domain
	if err := d.Unmarshal(xml); err != nil {
		return nil, fmt.Errorf("description of the domain: %w", err)
	}
	byAlias := map[string]libvirtxml.DomainInterface{}
	if d.Devices == nil {
		return byAlias, nil
	}
	for _, nic := range d.Devices.Interfaces {
		if nic.Alias != nil {
			byAlias[nic.Alias.Name] = nic
		}
	}
	return byAlias, nil
}
