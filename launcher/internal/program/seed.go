package program

import (
	"errors"
	"net/netip"
	"os"
	"time"

	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/dhcp"
	"podvirt.dev/launcher/internal/domain"
	"podvirt.dev/launcher/internal/nics"
	"podvirt.dev/launcher/internal/seed"
)

// seedFile is in memory: a seed holds secrets.
const seedFile = api.PathRun + "/seed.iso"

// seed makes the image that cloud-init reads, where /vm/cloud-init is mounted, and adds it to the disks.
func (s *starter) seed(logger klog.Logger, p *plan, found []nics.NIC) error {
	guest := s.vm.Guest
	switch guest.CloudInit {
	case api.CloudInitNoCloud:
	case api.CloudInitConfigDrive:
		return &lackError{"cloud-init config-drive is not in this launcher image; use nocloud"}
	default:
		return nil
	}
	input := seed.Input{InstanceID: guest.InstanceID, Hostname: s.vm.Hostname}
	if guest.SSHKeys != api.SSHKeysOff && guest.SSHKeys != api.SSHKeysDynamic {
		input.SSHUsers = s.vm.SSHUsers
	}
	shared, err := guestOf(s.vm, found)
	if err != nil {
		return err
	}
	for _, nic := range found {
		input.NICs = append(input.NICs, seedNIC(nic, options(s.vm, nic.Name), shared))
	}
	image, err := seed.Build(os.DirFS("/"), input)
	if err != nil {
		return badConfig(err)
	}
	s.warn(logger, image.Warnings...)
	if err := image.Write(seedFile, time.Now()); err != nil {
		return err
	}
	p.host.Disks = append(p.host.Disks, seedDisk(guest.SeedBus))
	return nil
}

// seedNIC says how a NIC gets its addresses: by DHCP, or, where that is off, from the seed.
func seedNIC(nic nics.NIC, o api.NIC, shared dhcp.Guest) seed.NIC {
	told := dhcp.Plan(nic, o, shared)
	n := seed.NIC{Name: nic.Name, MAC: nic.MAC.String(), DHCP: told.DHCP, DNS: told.DNS, Search: told.Search}
	for _, family := range []struct {
		guest   netip.Prefix
		gateway netip.Addr
	}{{nic.Guest4, nic.Gateway4}, {nic.Guest6, nic.Gateway6}} {
		if !family.guest.IsValid() {
			continue
		}
		n.Addresses = append(n.Addresses, family.guest)
		if family.gateway.IsValid() && shared.DefaultRoute == nic.Name {
			n.Gateways = append(n.Gateways, family.gateway)
		}
	}
	return n
}

// seedDisk is read-only; on virtio it is a disk, since there is no virtio CD-ROM, and small kernels know virtio alone.
func seedDisk(bus string) domain.Disk {
	readOnly := true
	o := api.Disk{Name: domain.SeedDisk, Serial: "cidata", Bus: bus, ReadOnly: &readOnly, IOThread: "none", Queues: 1}
	if bus == "" {
		o.Bus = "virtio"
	}
	if o.Bus != "virtio" {
		o.Type = api.DiskTypeCDROM
	}
	return domain.Disk{Options: o, Source: seedFile, Format: "raw"}
}

// badConfig is for files that the user wrote.
func badConfig(err error) error {
	if _, ok := errors.AsType[api.Errors](err); ok {
		return err
	}
	return api.Errors{{Key: api.PathCloudInit, Text: err.Error()}}
}
