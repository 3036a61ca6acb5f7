package domain

import (
	"fmt"

	"libvirt.org/go/libvirtxml"

	"podvirt.dev/launcher/internal/hostdev"
)

func deviceKey(name string) string { return "device." + name }

// vfio says whether a device of the host is mapped into the guest, which keeps all its memory where it is.
func (b *builder) vfio() bool {
	for _, d := range b.host.Devices {
		if d.Kind != hostdev.Char {
			return true
		}
	}
	return false
}

// hostDevices adds the devices that the container was given (devices.md 2.5). None is managed by libvirt: the device plugin
// has bound it, and the kernel resets it when VFIO opens and closes it.
func (b *builder) hostDevices(list *libvirtxml.DomainDeviceList) error {
	for _, d := range b.host.Devices {
		switch d.Kind {
		case hostdev.PCI, hostdev.Mdev:
			device, err := b.hostDevice(d)
			if err != nil {
				return err
			}
			list.Hostdevs = append(list.Hostdevs, device)
		case hostdev.Char:
			port := uint(len(list.Serials))
			list.Serials = append(list.Serials, libvirtxml.DomainSerial{
				Source: &libvirtxml.DomainChardevSource{Dev: &libvirtxml.DomainChardevSourceDev{Path: d.ID}},
				Target: &libvirtxml.DomainSerialTarget{Port: &port, Type: "isa-serial"},
				Alias:  alias("device", d.Name),
			})
		}
	}
	return nil
}

func (b *builder) hostDevice(d hostdev.Device) (libvirtxml.DomainHostdev, error) {
	out := libvirtxml.DomainHostdev{Managed: "no", Alias: alias("device", d.Name), Address: b.address(deviceKey(d.Name))}
	if d.Kind == hostdev.Mdev {
		out.SubsysMDev = &libvirtxml.DomainHostdevSubsysMDev{
			Model: "vfio-pci", Display: d.Display, RamFB: ramFB(d),
			Source: &libvirtxml.DomainHostdevSubsysMDevSource{Address: &libvirtxml.DomainAddressMDev{UUID: d.ID}},
		}
	} else {
		var domain, bus, slot, function uint
		if _, err := fmt.Sscanf(d.ID, "%x:%x:%x.%x", &domain, &bus, &slot, &function); err != nil {
			return out, fmt.Errorf("%s: not a PCI address", d.ID)
		}
		out.SubsysPCI = &libvirtxml.DomainHostdevSubsysPCI{
			Driver: &libvirtxml.DomainHostdevSubsysPCIDriver{Name: "vfio"},
			Source: &libvirtxml.DomainHostdevSubsysPCISource{
				Address: &libvirtxml.DomainAddressPCI{Domain: &domain, Bus: &bus, Slot: &slot, Function: &function},
			},
		}
		switch d.ROM {
		case "on":
			out.ROM = &libvirtxml.DomainROM{Bar: "on"}
		case "off":
			out.ROM = &libvirtxml.DomainROM{Enabled: "no"}
		}
	}
	if order := b.bootOrder("device", d.Name); order > 0 {
		out.Boot = &libvirtxml.DomainDeviceBoot{Order: order}
	}
	return out, nil
}

// ramFB is as display where it is not said: a picture needs one before the guest's driver is there.
func ramFB(d hostdev.Device) string {
	if d.RamFB == "" {
		return d.Display
	}
	return d.RamFB
}
