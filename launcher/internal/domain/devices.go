package domain

import (
	"path/filepath"
	"strings"

	"libvirt.org/go/libvirtxml"

	"podvirt.dev/api"
)

// Models of virtio devices. A modern one speaks virtio 1.0 only, also where it sits on the root bus.
const (
	modern       = "virtio-non-transitional"
	transitional = "virtio-transitional" // 0.9 too, for guests like CentOS 6
)

// virtio is the model of every virtio device of the VM.
func (b *builder) virtio() string {
	if b.vm.Virtio == api.VirtioTransitional {
		return transitional
	}
	return modern
}

func (b *builder) devices() (*libvirtxml.DomainDeviceList, error) {
	list := &libvirtxml.DomainDeviceList{
		Emulator:    b.host.Emulator,
		Controllers: b.controllers(),
		Serials:     b.serials(),
		Consoles:    b.consoles(),
		MemBalloon: &libvirtxml.DomainMemBalloon{
			Model: b.virtio(), FreePageReporting: b.pageReporting(),
			Stats: &libvirtxml.DomainMemBalloonStats{Period: 10}, Address: b.address(keyBalloon),
		},
		Panics: []libvirtxml.DomainPanic{{Model: "pvpanic", Address: b.address(keyPanic)}},
	}
	if on(b.vm.Agent, true) {
		list.Channels = []libvirtxml.DomainChannel{{
			Source: unixSocket(filepath.Join(b.host.RunDir, agentSocket)),
			Target: &libvirtxml.DomainChannelTarget{VirtIO: &libvirtxml.DomainChannelTargetVirtIO{Name: "org.qemu.guest_agent.0"}},
		}}
	}
	if on(b.vm.RNG.On, true) {
		list.RNGs = []libvirtxml.DomainRNG{b.rng()}
	}
	b.watchdog(list)
	b.tpm(list)
	b.video(list)
	for i, d := range b.host.Disks {
		disk, err := b.disk(i, d)
		if err != nil {
			return nil, err
		}
		list.Disks = append(list.Disks, disk)
	}
	for _, n := range b.host.NICs {
		list.Interfaces = append(list.Interfaces, b.nic(n))
	}
	return list, b.hostDevices(list)
}

// pageReporting gives free guest memory back to the node, except where it is pinned in huge pages or by a host device.
func (b *builder) pageReporting() string {
	if b.vm.HugepagesBacked || b.vfio() {
		return "off"
	}
	return "on"
}

func (b *builder) controllers() []libvirtxml.DomainController {
	list := []libvirtxml.DomainController{{
		Type: "virtio-serial", Index: new(uint(0)), Model: b.virtio(), Address: b.address(keySerial),
	}}
	scsi := libvirtxml.DomainController{Type: "scsi", Index: new(uint(0)), Model: b.virtio(), Address: b.address(keySCSI)}
	if b.ioThreads() > 0 {
		scsi.Driver = &libvirtxml.DomainControllerDriver{IOThread: 1}
	}
	list = append(list, scsi)
	usb := libvirtxml.DomainController{Type: "usb", Index: new(uint(0)), Model: "none"}
	if b.needsUSB() {
		usb.Model, usb.Address = "qemu-xhci", b.address(keyUSB)
	}
	return append(append(list, usb), b.sparePorts()...)
}

// sparePorts are the PCIe ports into which devices can be plugged later. They come last in the list, so that the bus
// numbers of what is plugged in stay, however many there are.
func (b *builder) sparePorts() []libvirtxml.DomainController {
	var list []libvirtxml.DomainController
	if !b.pcie() {
		return nil
	}
	for i := range spareRootPorts {
		index := uint(i + 1)
		address := &libvirtxml.DomainAddressPCI{
			Domain: new(uint(0)), Bus: new(uint(0)), Slot: new(uint(slotPorts)), Function: new(uint(i)),
		}
		if i == 0 {
			address.MultiFunction = "on"
		}
		list = append(list, libvirtxml.DomainController{
			Type: "pci", Index: &index, Model: "pcie-root-port", Address: &libvirtxml.DomainAddress{PCI: address},
		})
	}
	return list
}

// pcie says whether the machine type has PCI Express: pc, also by a versioned name, has not.
func (b *builder) pcie() bool {
	machine := orElse(b.host.Machine, b.vm.Machine)
	return machine != "pc" && !strings.HasPrefix(machine, "pc-i440fx")
}

func (b *builder) needsUSB() bool {
	if b.hasVideo() {
		return true // the tablet
	}
	for _, d := range b.host.Disks {
		if d.Options.Bus == "usb" {
			return true
		}
	}
	return false
}

func (b *builder) hasVideo() bool { return b.vm.Video.Model != api.VideoNone }

func (b *builder) video(list *libvirtxml.DomainDeviceList) {
	if !b.hasVideo() {
		list.Videos = []libvirtxml.DomainVideo{{Model: libvirtxml.DomainVideoModel{Type: "none"}}}
		return
	}
	model := b.vm.Video.Model
	if model == api.VideoAuto || model == "" {
		model = "vga"
		if b.vm.Firmware.Kind == api.FirmwareUEFI {
			model = "bochs"
		}
	}
	video := libvirtxml.DomainVideoModel{Type: model, Heads: uint(max(b.vm.Video.Heads, 1)), Primary: "yes"}
	switch {
	case model == "virtio" || model == "ramfb":
	case b.vm.Video.VRAM > 0:
		video.VRam = uint(b.vm.Video.VRAM) << 10
	default:
		video.VRam = 16 << 10 // KiB; what the overhead formula counts (vm.md 2.5)
	}
	if b.vm.Video.Width > 0 && model != "cirrus" {
		video.Resolution = &libvirtxml.DomainVideoResolution{X: uint(b.vm.Video.Width), Y: uint(b.vm.Video.Height)}
	}
	out := libvirtxml.DomainVideo{Model: video}
	if model != "ramfb" {
		out.Address = b.address(keyVideo)
	}
	list.Videos = []libvirtxml.DomainVideo{out}
	list.Graphics = []libvirtxml.DomainGraphic{{VNC: &libvirtxml.DomainGraphicVNC{
		Listeners: []libvirtxml.DomainGraphicListener{{Socket: &libvirtxml.DomainGraphicListenerSocket{
			Socket: filepath.Join(b.host.RunDir, vncSocket),
		}}},
	}}}
	list.Inputs = []libvirtxml.DomainInput{{Type: "tablet", Bus: "usb"}}
}

// serials are the console and the further serial ports, each on pipes that outlive the launcher.
func (b *builder) serials() []libvirtxml.DomainSerial {
	var list []libvirtxml.DomainSerial
	for i := range 1 + b.vm.Serial {
		if i == 0 && b.vm.Console.Device == api.ConsoleVirtio {
			continue
		}
		target := &libvirtxml.DomainSerialTarget{Port: new(uint(i)), Type: "isa-serial"}
		if i == 0 && b.vm.Console.Device == api.ConsolePCI {
			target.Type = "pci-serial"
		}
		list = append(list, libvirtxml.DomainSerial{Source: b.serialPipes(i), Target: target})
	}
	return list
}

func (b *builder) consoles() []libvirtxml.DomainConsole {
	if b.vm.Console.Device == api.ConsoleVirtio {
		return []libvirtxml.DomainConsole{{
			Source: b.serialPipes(0), Target: &libvirtxml.DomainConsoleTarget{Type: "virtio", Port: new(uint(0))},
		}}
	}
	return nil
}

func (b *builder) serialPipes(n int) *libvirtxml.DomainChardevSource {
	return &libvirtxml.DomainChardevSource{Pipe: &libvirtxml.DomainChardevSourcePipe{Path: filepath.Join(b.host.RunDir, SerialPipes(n))}}
}

func unixSocket(path string) *libvirtxml.DomainChardevSource {
	return &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{Mode: "bind", Path: path}}
}

func (b *builder) rng() libvirtxml.DomainRNG {
	rng := libvirtxml.DomainRNG{
		Model:   b.virtio(),
		Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}},
		Address: b.address(keyRNG),
	}
	if rate := b.vm.RNG.Rate; rate > 0 {
		rng.Rate = &libvirtxml.DomainRNGRate{Bytes: uint(rate), Period: 1000}
	}
	return rng
}

func (b *builder) watchdog(list *libvirtxml.DomainDeviceList) {
	w := b.vm.Watchdog
	if w.Model == "" || w.Model == api.WatchdogOff {
		return
	}
	action := w.Action
	if action == "" {
		action = "reset"
	}
	dog := libvirtxml.DomainWatchdog{Model: w.Model, Action: action}
	if w.Model == "i6300esb" {
		dog.Address = b.address(keyWatchdog)
	}
	list.Watchdogs = []libvirtxml.DomainWatchdog{dog}
}

// tpm is emulated by swtpm, which libvirt starts and which keeps what the TPM holds in a directory.
func (b *builder) tpm(list *libvirtxml.DomainDeviceList) {
	if !b.vm.TPM.On() {
		return
	}
	list.TPMs = []libvirtxml.DomainTPM{{
		Model: "tpm-" + b.vm.TPM.Model,
		Backend: &libvirtxml.DomainTPMBackend{Emulator: &libvirtxml.DomainTPMBackendEmulator{
			Version: b.vm.TPM.Version, PersistentState: "yes",
			Source: &libvirtxml.DomainTPMBackendSource{Dir: &libvirtxml.DomainTPMBackendSourceDir{Path: b.host.TPMDir}},
		}},
	}}
}

func (b *builder) nic(n NIC) libvirtxml.DomainInterface {
	o := n.Options
	model := o.Model
	if model == "" || model == "virtio" {
		model = b.virtio()
	}
	iface := libvirtxml.DomainInterface{
		MAC:     &libvirtxml.DomainInterfaceMAC{Address: n.MAC},
		Source:  &libvirtxml.DomainInterfaceSource{Ethernet: &libvirtxml.DomainInterfaceSourceEthernet{}},
		Target:  &libvirtxml.DomainInterfaceTarget{Dev: n.Tap, Managed: "no"},
		Model:   &libvirtxml.DomainInterfaceModel{Type: model},
		Alias:   alias("nic", o.Name),
		Address: b.address(nicKey(o.Name)),
		ROM:     &libvirtxml.DomainROM{Enabled: "no"},
	}
	if model == b.virtio() {
		iface.Driver = b.nicDriver(n)
	}
	if n.MTU > 0 {
		iface.MTU = &libvirtxml.DomainInterfaceMTU{Size: uint(n.MTU)}
	}
	if o.Link == "down" {
		iface.Link = &libvirtxml.DomainInterfaceLink{State: "down"}
	}
	if o.ACPIIndex > 0 {
		iface.ACPI = &libvirtxml.DomainDeviceACPI{Index: uint(o.ACPIIndex)}
	}
	if order := b.bootOrder("nic", o.Name); order > 0 {
		iface.Boot = &libvirtxml.DomainDeviceBoot{Order: order}
	}
	if o.ROM == "on" || (o.ROM != "off" && iface.Boot != nil) {
		iface.ROM = nil // QEMU's default: the PXE ROM of the model
	}
	return iface
}

func (b *builder) nicDriver(n NIC) *libvirtxml.DomainInterfaceDriver {
	d := &libvirtxml.DomainInterfaceDriver{
		Name: "qemu", RXQueueSize: uint(n.Options.RXRing), TXQueueSize: uint(n.Options.TXRing),
	}
	if n.Vhost && n.Options.Vhost != "off" {
		d.Name = "vhost"
	}
	queues := n.Options.Queues
	if queues == 0 {
		queues = min(b.vm.VCPUs, 16)
	}
	if n.MultiQueue {
		// The kernel opens such a tap only with the flag it was made with, and libvirt sets that for two queues and more
		// (linux: drivers/net/tun.c tun_set_iff). A guest with one CPU leaves the second one alone.
		d.Queues = uint(max(queues, 2))
	}
	return d
}

// bootOrder is the place of a device among those that firmware tries; 0: it is not tried.
func (b *builder) bootOrder(kind, name string) uint {
	for i, d := range b.vm.BootOrder {
		if d.Kind == kind && d.Name == name {
			return uint(i + 1)
		}
	}
	return 0
}

func on(b *bool, otherwise bool) bool {
	if b == nil {
		return otherwise
	}
	return *b
}
