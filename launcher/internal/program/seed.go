package program

import (
	"errors"
	"os"
	"time"

	"k8s.io/klog/v2"

	"podvirt.dev/api"
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
	input := seed.Input{InstanceID: guest.InstanceID, Hostname: hostname(s.vm)}
	if guest.SSHKeys != api.SSHKeysOff && guest.SSHKeys != api.SSHKeysDynamic {
		input.SSHUsers = s.vm.SSHUsers
	}
	for _, nic := range found {
		o := options(s.vm, nic.Name)
		input.NICs = append(input.NICs, seed.NIC{
			Name: nic.Name, MAC: nic.MAC.String(),
			DHCP: o.DHCP != "off" && (nic.Guest4.IsValid() || nic.Guest6.IsValid()),
		})
	}
	image, err := seed.Build(os.DirFS("/"), input)
	if err != nil {
		return badConfig(err)
	}
	for _, w := range image.Warnings {
		logger.Info("warning", "text", w)
	}
	if err := image.Write(seedFile, time.Now()); err != nil {
		return err
	}
	p.host.Disks = append(p.host.Disks, seedDisk(guest.SeedBus))
	return nil
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
	var errs api.Errors
	if errors.As(err, &errs) {
		return err
	}
	return api.Errors{{Key: api.PathCloudInit, Text: err.Error()}}
}
