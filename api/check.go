package api

import (
	"fmt"
	"slices"
	"strings"
)

// checkAnnotations applies the rules between options and between annotations that need no view of the Pod. Each rule
// has its twin in CEL (package podvirt.dev/api/internal/policy); a test compares the two.
func checkAnnotations(p *parser, vm *VM) {
	checkCPU(p, vm)
	checkFirmware(p, vm)
	checkKernel(p, vm)
	checkTPM(p, vm)
	for i := range vm.Disks {
		checkDisk(p, &vm.Disks[i])
	}
	for i := range vm.NICs {
		checkNIC(p, &vm.NICs[i])
	}
	checkUnique(p, vm, "boot")
	checkUnique(p, vm, "acpi-index")
	checkDefaultRoute(p, vm)
}

func checkCPU(p *parser, vm *VM) {
	if e := vm.CPU.Emulator; (e == EmulatorIsolated || e == EmulatorIsolatedEven) && !vm.CPU.Dedicated {
		p.value("emulator-thread", p.word("emulator-thread"), "needs cpu-dedicated")
	}
	t := vm.CPU.Topology
	if t == nil {
		return
	}
	raw := p.values["cpu-topology"].raw
	for _, figure := range []struct {
		name  string
		value int
	}{{"sockets", t.Sockets}, {"dies", t.Dies}, {"clusters", t.Clusters}, {"cores", t.Cores}, {"threads", t.Threads}} {
		if figure.value == 0 {
			p.value("cpu-topology", raw, figure.name+" is 0; must be at least 1")
		}
	}
	if t.VCPUs() > MaxVCPUs {
		p.value("cpu-topology", raw, fmt.Sprintf("%d vCPUs; the machine type allows %d", t.VCPUs(), MaxVCPUs))
	}
	if limit := vm.CPU.Max; limit > 0 && t.VCPUs() > 0 {
		switch unit := t.Cores * t.Threads; {
		case limit < t.VCPUs():
			p.value("cpu-max", p.word("cpu-max"), fmt.Sprintf("%d is below the %d vCPUs it starts with", limit, t.VCPUs()))
		case limit%unit != 0:
			p.value("cpu-max", p.word("cpu-max"), fmt.Sprintf("%d is not a multiple of cores x threads = %d", limit, unit))
		}
	}
}

// MaxVCPUs is the most that any machine type of the launcher's QEMU allows; a node may allow fewer (maxVCPUs of its
// facts).
const MaxVCPUs = 4096

func checkFirmware(p *parser, vm *VM) {
	v := p.values["firmware"]
	if v == nil {
		return
	}
	kind := vm.Firmware.Kind
	if kind == "" {
		kind = defaultFirmware(vm.CPU.Arch)
	}
	if vm.Firmware.SecureBoot && kind != FirmwareUEFI {
		p.value("firmware", v.raw, "secure-boot needs uefi")
	}
	if kind == FirmwareBIOS && vm.CPU.Arch == "arm64" {
		p.value("firmware", v.raw, "arm64 has no bios; use uefi")
	}
	if vm.Firmware.SecureBoot && isPC(vm.Machine) {
		p.value("firmware", v.raw, "secure-boot needs machine q35")
	}
	if vm.Firmware.SecureBoot && isFalse(vm.SMM) {
		p.value("features", p.values["features"].raw, "smm=false contradicts firmware secure-boot")
	}
}

// isPC says whether a machine type is of the family pc, which has neither PCI Express nor protected system management memory.
func isPC(machine string) bool { return machine == "pc" || strings.HasPrefix(machine, "pc-i440fx-") }

func checkTPM(p *parser, vm *VM) {
	if vm.TPM.Version == "1.2" && vm.TPM.Model == "crb" {
		p.optionValue("tpm", "model", "crb", "a TPM 1.2 has only tis")
	}
}

func checkKernel(p *parser, vm *VM) {
	if v := p.values["kernel"]; v != nil && vm.Kernel.Path == "" {
		p.value("kernel", v.raw, "path is missing; example: path=boot/vmlinuz")
	}
	switch shim := vm.Kernel.Shim != ""; {
	case vm.Kernel.Path == "":
	case shim && !vm.Firmware.SecureBoot:
		p.optionValue("kernel", "shim", vm.Kernel.Shim, "needs firmware secure-boot")
	case !shim && vm.Firmware.SecureBoot:
		p.value("kernel", p.values["kernel"].raw, "firmware secure-boot needs shim")
	}
	if v := p.values["kernel-args"]; v != nil && p.values["kernel"] == nil && !p.failed("kernel") {
		p.value("kernel-args", v.raw, "set without kernel")
	}
}

// failed says whether an annotation was given and is wrong.
func (p *parser) failed(key string) bool {
	return slices.ContainsFunc(p.errs, func(e Error) bool { return e.Key == Prefix+key })
}

// defaultFirmware is what a guest of the architecture boots with; "" is amd64 or the node's.
func defaultFirmware(arch string) FirmwareKind {
	if arch == "arm64" {
		return FirmwareUEFI
	}
	return FirmwareBIOS
}

func checkDisk(p *parser, d *Disk) {
	checkCDROM(p, d)
	checkDiskModes(p, d)
	key := "disk." + d.Name
	if limit := serialLimit(d.Bus, d.Type); len(d.Serial) > limit && d.Bus != "" {
		p.optionValue(key, "serial", d.Serial, fmt.Sprintf("%d characters, %s allows %d", len(d.Serial), d.Bus, limit))
	}
	checkBlockSize(p, key, d.BlockSize)
	checkLimits(p, key)
}

func checkCDROM(p *parser, d *Disk) {
	key := "disk." + d.Name
	if d.Type == DiskTypeCDROM {
		switch d.Bus {
		case "virtio":
			p.optionValue(key, "bus", d.Bus, "there is no virtio CD-ROM; sata, scsi, usb")
		case "nvme":
			p.optionValue(key, "bus", d.Bus, "there is no NVMe CD-ROM; sata, scsi, usb")
		}
		if d.Empty > 0 {
			p.optionValue(key, "empty", p.values[key].options["empty"], "a CD-ROM cannot be written")
		}
	}
	if d.TrayOpen && d.Type == DiskTypeDisk {
		p.optionValue(key, "tray", "open", "only a CD-ROM has a tray")
	}
}

// checkDiskModes is about how the host reads and writes the disk.
func checkDiskModes(p *parser, d *Disk) {
	key := "disk." + d.Name
	if d.IO == "native" && slices.Contains([]string{"writethrough", "writeback", "unsafe"}, d.Cache) {
		p.optionValue(key, "io", d.IO, "needs cache none or directsync")
	}
	direct := slices.Contains([]string{"", "none", "directsync"}, d.Cache)
	if isTrue(d.Shareable) && (!direct || d.Format == "qcow2") {
		p.fail(key, Prefix+key+": shareable: needs cache none or directsync and a raw disk")
	}
	if (d.IOThread == "dedicated" || d.IOThread == "pool") && (d.Bus == "sata" || d.Bus == "usb") {
		p.optionValue(key, "iothread", d.IOThread, "not on bus "+d.Bus)
	}
}

// checkLimits refuses a limit on all operations beside one on reads or writes, and a burst without its limit.
func checkLimits(p *parser, key string) {
	has := func(option string) bool { return p.values[key].options[option] != "" }
	for _, unit := range []string{"iops", "bps"} {
		for _, direction := range []string{"-read", "-write"} {
			if has(unit) && has(unit+direction) {
				p.fail(key, Prefix+key+": "+unit+": excludes "+unit+direction)
			}
		}
		for _, direction := range []string{"", "-read", "-write"} {
			limit := unit + direction
			if has(limit+"-max") && !has(limit) {
				p.fail(key, Prefix+key+": "+limit+"-max: needs "+limit)
			}
			if has(limit+"-max-length") && !has(limit+"-max") {
				p.fail(key, Prefix+key+": "+limit+"-max-length: needs "+limit+"-max")
			}
		}
	}
}

// checkBlockSize refuses a logical block above the physical one: blocksize=4096/512.
func checkBlockSize(p *parser, key, size string) {
	figures := strings.Split(size, "/")
	if len(figures) >= 2 && toInt(figures[0]) > toInt(figures[1]) {
		p.optionValue(key, "blocksize", size, "logical above physical")
	}
}

// serialLimit is how many characters of a serial number the bus carries.
func serialLimit(bus string, kind DiskType) int {
	if (bus == "" || bus == "virtio") && kind != DiskTypeCDROM {
		return 20
	}
	return 36
}

func checkNIC(p *parser, n *NIC) {
	key := "nic." + n.Name
	wrong := func(option, value, text string) { p.optionValue(key, option, value, text) }
	if n.Name != PodNetwork && n.Binding == BindingMasquerade {
		wrong("binding", string(n.Binding), "masquerade works only on the pod network; use wire")
	}
	checkMAC(p, key, n.MAC)
	if n.Queues > 1 && n.Model != "" && n.Model != "virtio" && n.Model != "vmxnet3" && n.Model != "igb" {
		wrong("queues", p.values[key].options["queues"], "model "+n.Model+" has one queue")
	}
	if n.TXRing > 256 && n.Binding != BindingVhostUser {
		wrong("tx-ring", p.values[key].options["tx-ring"], "above 256 only for vhostuser")
	}
	if n.Link != "" && n.Binding == BindingSRIOV {
		wrong("link", n.Link, "link has no meaning with sriov")
	}
	checkPorts(p, key, n)
	checkPrefixes(p, key, n)
	if n.Binding == BindingVhostUser && n.Socket == "" {
		p.fail(key, Prefix+key+": vhostuser needs socket=")
	}
}

func checkMAC(p *parser, key, mac string) {
	octets := strings.Split(mac, ":")
	switch {
	case mac == "" || len(octets) == 1:
	case len(octets) != 6:
		p.optionValue(key, "mac", mac, fmt.Sprintf("%d octets; a MAC has 6", len(octets)))
	case strings.Contains("13579bdf", mac[1:2]):
		p.optionValue(key, "mac", mac, mac+" is a multicast address")
	}
}

// MaxPorts is how many items option ports may have.
const MaxPorts = 128

func checkPorts(p *parser, key string, n *NIC) {
	if len(n.Ports) == 0 {
		return
	}
	if n.Binding != "" && n.Binding != BindingMasquerade && n.Binding != BindingPasst {
		p.optionValue(key, "ports", p.values[key].options["ports"],
			"ports has no meaning with "+string(n.Binding)+"; use a NetworkPolicy")
	}
	if len(n.Ports) > MaxPorts {
		p.fail(key, fmt.Sprintf("%s: ports: %d items; at most %d", Prefix+key, len(n.Ports), MaxPorts))
	}
	for i, r := range n.Ports {
		item := p.values[key].parts["ports"][i]
		switch {
		case r.First < 1 || r.First > 65535 || r.Last < 1 || r.Last > 65535:
			p.optionValue(key, "ports", item, "not a port (1 to 65535)")
		case r.First > r.Last:
			p.optionValue(key, "ports", item, "start above end")
		case r.First <= PortStatus && r.Last >= PortBase && r.Protocol == "tcp":
			p.optionValue(key, "ports", item, fmt.Sprintf("kept for the launcher (%d to %d)", PortBase, PortStatus))
		}
	}
}

// checkPrefixes wants room for a gateway and a guest.
func checkPrefixes(p *parser, key string, n *NIC) {
	for _, family := range []struct {
		option, value  string
		smallest, bits int64
	}{{"v4-cidr", n.V4CIDR, 30, 32}, {"v6-cidr", n.V6CIDR, 126, 128}} {
		_, length, found := strings.Cut(family.value, "/")
		switch {
		case !found:
		case toInt(length) > family.bits:
			p.optionValue(key, family.option, family.value, fmt.Sprintf("prefix longer than %d bits", family.bits))
		case toInt(length) > family.smallest:
			p.optionValue(key, family.option, family.value, "/"+length+" has no room for gateway and guest")
		}
	}
}

// checkUnique refuses a number that two devices give: boot over disks, NICs and devices, acpi-index over NICs.
func checkUnique(p *parser, vm *VM, option string) {
	holder := map[int]string{}
	for _, key := range deviceKeys(vm) {
		n := p.values[key].int(option)
		if n == 0 {
			continue
		}
		first, used := holder[n]
		switch {
		case !used:
			holder[n] = key
		case option == "boot":
			p.optionValue(key, option, p.values[key].options[option], "also used by "+first)
		default:
			p.optionValue(key, option, p.values[key].options[option], "also on "+first)
		}
	}
}

// deviceKeys returns the keys of disks, NICs and devices in the order in which the first of two counts.
func deviceKeys(vm *VM) []string {
	var keys []string
	for _, d := range vm.Disks {
		keys = append(keys, "disk."+d.Name)
	}
	for _, d := range vm.Devices {
		keys = append(keys, "device."+d.Name)
	}
	for _, n := range vm.NICs {
		keys = append(keys, "nic."+n.Name)
	}
	return keys
}

func checkDefaultRoute(p *parser, vm *VM) {
	first := slices.IndexFunc(vm.NICs, func(n NIC) bool { return n.DefaultRoute == "true" })
	for i, n := range vm.NICs {
		if n.DefaultRoute == "true" && i != first {
			p.optionValue("nic."+n.Name, "default-route", "true", "also on nic."+vm.NICs[first].Name)
		}
	}
}

func isTrue(b *bool) bool { return b != nil && *b }

func isFalse(b *bool) bool { return b != nil && !*b }
