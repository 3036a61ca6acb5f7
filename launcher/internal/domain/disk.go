package domain

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"libvirt.org/go/libvirtxml"

	"podvirt.dev/api"
)

// maxDiskQueues is the most queues that a disk gets by itself (vm.md 2.3).
const maxDiskQueues = 8

func (b *builder) disk(index int, d Disk) (libvirtxml.DomainDisk, error) {
	o := d.Options
	bus := o.Bus
	if bus == "nvme" {
		return libvirtxml.DomainDisk{}, fmt.Errorf("%w: disk.%s: emulated NVMe", ErrUnsupported, o.Name)
	}
	disk := libvirtxml.DomainDisk{
		Device: deviceOf(o),
		Driver: b.diskDriver(d),
		Source: sourceOf(d.Source, d.Block),
		Target: &libvirtxml.DomainDiskTarget{Dev: targetName(bus, index), Bus: bus},
		Serial: Serial(o), WWN: o.WWN, Vendor: o.Vendor, Product: o.Product,
		BlockIO: blockIO(o.BlockSize),
		IOTune:  ioTune(o.Limits),
		Alias:   alias("disk", o.Name),
	}
	if d.Source == "" {
		disk.Source = nil // an empty drive
	}
	b.chain(&disk, d)
	if err := b.place(&disk, o); err != nil {
		return disk, err
	}
	if order := b.bootOrder("disk", o.Name); order > 0 {
		disk.Boot = &libvirtxml.DomainDeviceBoot{Order: order}
	}
	if on(o.ReadOnly, o.Type == api.DiskTypeCDROM) {
		disk.ReadOnly = &libvirtxml.DomainDiskReadOnly{}
	}
	if on(o.Shareable, false) {
		disk.Shareable = &libvirtxml.DomainDiskShareable{}
	}
	if bus == "usb" && on(o.Removable, false) {
		disk.Target.Removable = "on"
	}
	if o.Rotational != nil && (bus == "sata" || bus == "scsi") {
		disk.Target.RotationRate = 1 // 1 means: does not rotate
		if *o.Rotational {
			disk.Target.RotationRate = 7200
		}
	}
	if o.TrayOpen {
		disk.Target.Tray = "open"
	}
	return disk, nil
}

// place says where on its bus the guest finds the disk.
func (b *builder) place(disk *libvirtxml.DomainDisk, o api.Disk) error {
	switch o.Bus {
	case "virtio":
		disk.Model, disk.Address = b.virtio(), b.address(diskKey(o.Name))
	case "scsi":
		if o.Name == SeedDisk {
			disk.Address = drive(scsiUnits)
		} else if place, known := b.host.Addresses[scsiKey(o.Name)]; known {
			disk.Address = drive(place.Slot)
		}
	case "sata":
		port := b.sataPort(o.Name)
		if port >= sataPorts {
			return fmt.Errorf("%w: disk.%s: the SATA controller has %d ports; use bus=scsi", ErrUnsupported, o.Name, sataPorts)
		}
		disk.Address = drive(port)
	}
	return nil
}

// chain writes the layers out to the last one, so that QEMU follows no file name that stands inside an image.
func (b *builder) chain(disk *libvirtxml.DomainDisk, d Disk) {
	if d.Source == "" {
		return
	}
	end := &libvirtxml.DomainDiskBackingStore{}
	if d.Backing == nil {
		disk.BackingStore = end
		return
	}
	disk.BackingStore = &libvirtxml.DomainDiskBackingStore{
		Format:       &libvirtxml.DomainDiskFormat{Type: d.Backing.Format},
		Source:       sourceOf(d.Backing.Source, d.Backing.Block),
		BackingStore: end,
	}
}

func deviceOf(o api.Disk) string {
	switch o.Type {
	case api.DiskTypeCDROM:
		return "cdrom"
	case api.DiskTypeLUN:
		return "lun"
	default:
		return "disk"
	}
}

func sourceOf(path string, block bool) *libvirtxml.DomainDiskSource {
	if block {
		return &libvirtxml.DomainDiskSource{Block: &libvirtxml.DomainDiskSourceBlock{Dev: path}}
	}
	return &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: path}}
}

func (b *builder) diskDriver(d Disk) *libvirtxml.DomainDiskDriver {
	o := d.Options
	cache := o.Cache
	if cache == "" {
		cache = "none"
		if !d.DirectIO {
			cache = "writethrough"
		}
	}
	drv := &libvirtxml.DomainDiskDriver{
		Name: "qemu", Type: d.Format, Cache: cache, IO: ioMode(o.IO, cache), ErrorPolicy: errorPolicy(o.Error),
		Discard: orElse(o.Discard, "unmap"), DetectZeros: o.DetectZeroes,
	}
	if o.Type == api.DiskTypeCDROM {
		drv.Discard = ""
	}
	if drv.ErrorPolicy == "stop" || drv.ErrorPolicy == "report" || drv.ErrorPolicy == "ignore" {
		drv.RErrorPolicy = drv.ErrorPolicy
	}
	if hasIOThread(o) && o.Bus == "virtio" {
		drv.IOThread = new(uint(1))
	}
	if o.Bus == "virtio" {
		queues := o.Queues
		if queues == 0 {
			queues = min(b.vm.VCPUs, maxDiskQueues)
		}
		drv.Queues = new(uint(queues))
	}
	return drv
}

// ioMode is native where QEMU allows it: only with O_DIRECT (vm.md 2.3).
func ioMode(asked, cache string) string {
	if asked != "" {
		return asked
	}
	if cache == "none" || cache == "directsync" {
		return "native"
	}
	return "threads"
}

func errorPolicy(word string) string {
	switch word {
	case "":
		return "stop"
	case "enospc":
		return "enospace"
	default:
		return word
	}
}

// hasIOThread: IO threads serve virtio and virtio-scsi disks.
func hasIOThread(o api.Disk) bool {
	return (o.Bus == "virtio" || o.Bus == "scsi") && o.IOThread != "none"
}

// targetName names the disk for libvirt; the guest never sees it.
func targetName(bus string, index int) string {
	prefix := "sd"
	if bus == "virtio" {
		prefix = "vd"
	}
	name := ""
	for n := index + 1; n > 0; n = (n - 1) / 26 {
		name = string(rune('a'+(n-1)%26)) + name
	}
	return prefix + name
}

// Serial is what /dev/disk/by-id shows: the given serial, else the disk's name, else its readable start and a hash where
// the bus does not allow its length (vm.md 2.3, VM-077).
func Serial(o api.Disk) string {
	if o.Serial != "" {
		return o.Serial
	}
	limit := 36
	if o.Bus == "virtio" || o.Bus == "sata" { // virtio 1.3, 5.2.6.1; ATA8-ACS 7.16.7.4
		limit = 20
	}
	if len(o.Name) <= limit {
		return o.Name
	}
	const hashed = 8
	sum := sha256.Sum256([]byte(o.Name))
	return o.Name[:limit-hashed-1] + "-" + hex.EncodeToString(sum[:])[:hashed]
}

// DefaultBlockSize is the logical block size of a disk that says nothing else, in bytes.
const DefaultBlockSize = 512

// LogicalBlockSize is the logical block size, in bytes, that the guest sees (vm.md 2.3, blocksize).
func LogicalBlockSize(o api.Disk) int {
	if io := blockIO(o.BlockSize); io != nil {
		return int(io.LogicalBlockSize)
	}
	return DefaultBlockSize
}

// blockIO reads LOGICAL, LOGICAL/PHYSICAL or LOGICAL/PHYSICAL/DISCARD; the words were checked by the parser.
func blockIO(text string) *libvirtxml.DomainDiskBlockIO {
	if text == "" || text == "match" {
		return nil
	}
	var figures []uint
	for part := range strings.SplitSeq(text, "/") {
		n, err := strconv.ParseUint(part, 10, 32)
		if err != nil {
			return nil
		}
		figures = append(figures, uint(n))
	}
	out := &libvirtxml.DomainDiskBlockIO{LogicalBlockSize: figures[0], PhysicalBlockSize: figures[0]}
	if len(figures) > 1 {
		out.PhysicalBlockSize = figures[1]
	}
	if len(figures) > 2 {
		out.DiscardGranularity = &figures[2]
	}
	return out
}

func ioTune(l api.IOLimits) *libvirtxml.DomainDiskIOTune {
	if l == (api.IOLimits{}) {
		return nil
	}
	n := func(v int64) uint64 { return uint64(max(v, 0)) }
	sec := func(d time.Duration) uint64 { return uint64(d / time.Second) }
	return &libvirtxml.DomainDiskIOTune{
		TotalIopsSec: n(l.IOPS), ReadIopsSec: n(l.IOPSRead), WriteIopsSec: n(l.IOPSWrite),
		TotalIopsSecMax: n(l.IOPSMax), ReadIopsSecMax: n(l.IOPSReadMax), WriteIopsSecMax: n(l.IOPSWriteMax),
		TotalIopsSecMaxLength: sec(l.IOPSMaxLength), ReadIopsSecMaxLength: sec(l.IOPSReadMaxLength),
		WriteIopsSecMaxLength: sec(l.IOPSWriteMaxLength),
		TotalBytesSec:         n(l.BPS), ReadBytesSec: n(l.BPSRead), WriteBytesSec: n(l.BPSWrite),
		TotalBytesSecMax: n(l.BPSMax), ReadBytesSecMax: n(l.BPSReadMax), WriteBytesSecMax: n(l.BPSWriteMax),
		TotalBytesSecMaxLength: sec(l.BPSMaxLength), ReadBytesSecMaxLength: sec(l.BPSReadMaxLength),
		WriteBytesSecMaxLength: sec(l.BPSWriteMaxLength),
		SizeIopsSec:            n(l.IOPSSize), GroupName: l.Group,
	}
}

func orElse(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}
