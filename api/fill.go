package api

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// vm gives the annotations that passed their grammar the types of [VM].
func (p *parser) vm() VM {
	vm := VM{
		Name:     p.word("vm"),
		Identity: Identity(p.word("identity")),
		UUID:     strings.ToLower(p.word("uuid")),
		Hostname: p.word("hostname"),
		GenID:    strings.ToLower(p.word("genid")),
		SMBIOS:   p.smbios(),
		CPU:      p.cpu(),
		Memory: Memory{
			Guest:     toMiB(toBytes(p.word("memory"))),
			Overhead:  toMiB(toBytes(p.word("memory-overhead"))),
			Hugepages: p.word("hugepages"),
		},
		Machine: p.word("machine"),
		Firmware: Firmware{
			Kind:         FirmwareKind(p.word("firmware")),
			SecureBoot:   p.option1("firmware", "secure-boot") == "true",
			EnrolledKeys: toBool(p.option1("firmware", "enrolled-keys")),
			Serial:       p.option1("firmware", "serial") == "true",
			Menu:         toDuration(p.option1("firmware", "menu")),
		},
		SMM: toBool(p.option1("features", "smm")),
		Kernel: Kernel{
			Path: p.option1("kernel", "path"), Initrd: p.option1("kernel", "initrd"), Shim: p.option1("kernel", "shim"),
			Args: p.word("kernel-args"),
		},
		TPM: TPM{
			Version: p.word("tpm"), Model: p.option1("tpm", "model"), Required: p.option1("tpm", "persistent") == "required",
		},
		Console: Console{
			Mode:   ConsoleMode(p.word("console")),
			Device: ConsoleDevice(p.option1("console", "device")),
			Rate:   toBytes(strings.TrimSuffix(p.option1("console", "rate"), "/s")),
		},
		Virtio:    p.word("virtio"),
		Serial:    int(toInt(p.word("serial"))),
		Agent:     toBool(p.word("agent")),
		Video:     p.video(),
		RNG:       RNG{On: toBool(p.word("rng")), Rate: toBytes(strings.TrimSuffix(p.option1("rng", "rate"), "/s"))},
		Watchdog:  Watchdog{Model: p.word("watchdog"), Action: p.option1("watchdog", "action")},
		Lifecycle: p.lifecycle(),
		Guest: Guest{
			CloudInit:  CloudInit(p.word("cloud-init")),
			InstanceID: p.option1("cloud-init", "instance-id"),
			SeedBus:    p.option1("cloud-init", "bus"),
			SSHKeys:    SSHKeys(p.word("ssh-keys")),
		},
		Verbosity: toIntPointer(p.word("verbosity")),
		Metrics:   toBool(p.word("metrics")),
		TapOwner:  toOwner(p.word("tap-owner")),
		Placement: Placement{Cells: toInts(p.word("numa-cell")), TSCHz: toInt(p.word("tsc-hz"))},
	}
	p.devices(&vm)
	return vm
}

func (p *parser) smbios() SMBIOS {
	v := p.values["smbios"]
	if v == nil {
		return SMBIOS{}
	}
	fields := maps.Clone(v.options)
	delete(fields, "oem")
	return SMBIOS{Fields: fields, OEM: v.parts["oem"]}
}

func (p *parser) cpu() CPU {
	cpu := CPU{
		Accelerator: Accelerator(p.word("accelerator")),
		Arch:        p.word("arch"),
		Model:       p.word("cpu-model"),
		Max:         int(toInt(p.word("cpu-max"))),
		Dedicated:   p.word("cpu-dedicated") == "true",
		Emulator:    EmulatorThread(p.word("emulator-thread")),
	}
	if v := p.values["cpu-features"]; v != nil {
		cpu.Features = v.set
	}
	if v := p.values["cpu-topology"]; v != nil {
		figure := func(name string) int {
			if v.options[name] == "" {
				return 1
			}
			return int(toInt(v.options[name]))
		}
		cpu.Topology = &Topology{
			Sockets: figure("sockets"), Dies: figure("dies"), Clusters: figure("clusters"),
			Cores: figure("cores"), Threads: figure("threads"),
		}
	}
	switch numa := p.word("numa"); {
	case isDigits(numa):
		cpu.NUMA = NUMA{Policy: NUMACells, Cells: int(toInt(numa))}
	default:
		cpu.NUMA = NUMA{Policy: NUMAPolicy(numa)}
	}
	return cpu
}

func (p *parser) video() Video {
	v := Video{
		Model: p.word("video"),
		VRAM:  toMiB(toBytes(p.option1("video", "vram"))),
		Heads: int(toInt(p.option1("video", "heads"))),
	}
	width, height, _ := strings.Cut(p.option1("video", "resolution"), "x")
	v.Width, v.Height = int(toInt(width)), int(toInt(height))
	return v
}

func (p *parser) lifecycle() Lifecycle {
	l := Lifecycle{
		StartPaused:     p.word("start") == "paused",
		ShutdownTimeout: toDuration(p.option1("shutdown", "timeout")),
		ShutdownThen:    p.option1("shutdown", "then"),
		OnPoweroff:      OnPoweroff(p.word("on-poweroff")),
		OnReboot:        OnReboot(p.word("on-reboot")),
		OnCrash:         OnCrash(p.word("on-crash")),
		CrashDump:       p.option1("on-crash", "dump") == "true",
	}
	if means := p.word("shutdown"); means != "" {
		for m := range strings.SplitSeq(means, "+") {
			l.Shutdown = append(l.Shutdown, ShutdownMeans(m))
		}
	}
	return l
}

// devices fills in one entry per device annotation, sorted by name.
func (p *parser) devices(vm *VM) {
	keys := make([]string, 0, len(p.values))
	for key := range p.values {
		if strings.Contains(key, ".") {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		kind, name, _ := strings.Cut(key, ".")
		v := p.values[key]
		switch kind {
		case "disk":
			vm.Disks = append(vm.Disks, v.disk(name))
		case "nic":
			vm.NICs = append(vm.NICs, v.nic(name))
		case "share":
			vm.Shares = append(vm.Shares, Share{
				Name: name, Cache: v.options["cache"], XAttr: toBool(v.options["xattr"]), ReadOnly: toBool(v.options["readonly"]),
				Squash: toBool(v.options["squash"]), Threads: v.int("threads"), QueueSize: v.int("queue-size"),
			})
		case "config":
			vm.Configs = append(vm.Configs, ConfigDisk{
				Name: name, Label: v.options["label"], Serial: v.options["serial"], FS: v.options["fs"],
			})
		case "device":
			vm.Devices = append(vm.Devices, Device{
				Name: name, Resource: v.options["resource"], Index: toIntPointer(v.options["index"]), PCI: v.options["pci"],
				ROM: v.options["rom"], Display: v.options["display"], RamFB: v.options["ramfb"], NUMA: v.options["numa"],
				Migrate: v.options["migrate"], Tag: v.options["tag"], Boot: v.int("boot"),
			})
		}
	}
}

func (v *parsed) disk(name string) Disk {
	return Disk{
		Name: name, Type: DiskType(v.options["type"]), Bus: v.options["bus"], Boot: v.int("boot"),
		PVC: v.options["pvc"], Image: v.options["image"], Optional: v.options["optional"] == "true",
		Empty: toBytes(v.options["empty"]), File: v.options["file"],
		Overlay: Overlay(v.options["overlay"]), Format: v.options["format"], Cache: v.options["cache"], IO: v.options["io"],
		Serial: v.options["serial"], WWN: strings.ToLower(strings.TrimPrefix(v.options["wwn"], "0x")),
		Vendor: v.options["vendor"], Product: v.options["product"],
		ReadOnly: toBool(v.options["readonly"]), Shareable: toBool(v.options["shareable"]),
		Removable: toBool(v.options["removable"]), ChangedBlocks: toBool(v.options["cbt"]),
		Discard: v.options["discard"], DetectZeroes: v.options["detect-zeroes"], BlockSize: v.options["blocksize"],
		Rotational: toBool(v.options["rotational"]), Error: v.options["error"], IOThread: v.options["iothread"],
		Queues: v.int("queues"), Limits: v.limits(), Reservation: toBool(v.options["reservation"]),
		TrayOpen: v.options["tray"] == "open", PCI: v.options["pci"], Tag: v.options["tag"],
	}
}

func (v *parsed) limits() IOLimits {
	count := func(name string) int64 { return toInt(v.options[name]) }
	bytes := func(name string) int64 { return toBytes(v.options[name]) }
	length := func(name string) time.Duration { return toDuration(v.options[name]) }
	return IOLimits{
		IOPS: count("iops"), IOPSRead: count("iops-read"), IOPSWrite: count("iops-write"),
		IOPSMax: count("iops-max"), IOPSReadMax: count("iops-read-max"), IOPSWriteMax: count("iops-write-max"),
		IOPSMaxLength: length("iops-max-length"), IOPSReadMaxLength: length("iops-read-max-length"),
		IOPSWriteMaxLength: length("iops-write-max-length"),
		BPS:                bytes("bps"), BPSRead: bytes("bps-read"), BPSWrite: bytes("bps-write"),
		BPSMax: bytes("bps-max"), BPSReadMax: bytes("bps-read-max"), BPSWriteMax: bytes("bps-write-max"),
		BPSMaxLength: length("bps-max-length"), BPSReadMaxLength: length("bps-read-max-length"),
		BPSWriteMaxLength: length("bps-write-max-length"),
		IOPSSize:          bytes("iops-size"), Group: v.options["throttle-group"],
	}
}

func (v *parsed) nic(name string) NIC {
	nic := NIC{
		Name: name, Binding: Binding(v.options["binding"]), Network: v.options["network"], Model: v.options["model"],
		MAC: strings.ReplaceAll(strings.ToLower(v.options["mac"]), "-", ":"), Queues: v.int("queues"), Vhost: v.options["vhost"],
		RXRing: v.int("rx-ring"), TXRing: v.int("tx-ring"), MTU: v.int("mtu"), Link: v.options["link"],
		RateIn: toBytes(v.options["rate-in"]), RateOut: toBytes(v.options["rate-out"]), Boot: v.int("boot"), ROM: v.options["rom"],
		V4CIDR: v.options["v4-cidr"], V6CIDR: v.options["v6-cidr"], IPFamily: v.options["ip-family"],
		DHCP: v.options["dhcp"], RA: v.options["ra"], DHCPDNS: v.parts["dhcp-dns"], DHCPSearch: v.parts["dhcp-search"],
		DHCPNTP: v.parts["dhcp-ntp"], DHCPTFTP: v.options["dhcp-tftp"], DHCPBootfile: v.options["dhcp-bootfile"],
		DefaultRoute: v.options["default-route"], Renew: toBool(v.options["renew"]), SpoofCheck: v.options["spoof-check"],
		PCI: v.options["pci"], Tag: v.options["tag"], ACPIIndex: v.int("acpi-index"), Resource: v.options["resource"],
		Failover: v.options["failover"], Socket: v.options["socket"], SocketMode: v.options["socket-mode"],
	}
	for _, part := range v.parts["ports"] {
		nic.Ports = append(nic.Ports, toPortRange(part))
	}
	for option, text := range v.options {
		number, private := strings.CutPrefix(option, "dhcp-")
		if private && isDigits(number) {
			if nic.DHCPPrivate == nil {
				nic.DHCPPrivate = map[int]string{}
			}
			nic.DHCPPrivate[int(toInt(number))] = text
		}
	}
	return nic
}

// word returns the value of a plain annotation or the main word of options, "" where there is none.
func (p *parser) word(key string) string {
	if v := p.values[key]; v != nil {
		return v.word
	}
	return ""
}

// option1 returns one option of a whole-VM annotation, "" where there is none.
func (p *parser) option1(key, option string) string {
	if v := p.values[key]; v != nil {
		return v.options[option]
	}
	return ""
}

// int returns an option that is a number or a word such as auto, which gives 0.
func (v *parsed) int(option string) int { return int(toInt(v.options[option])) }

func toBool(word string) *bool {
	var yes bool
	switch word {
	case "":
		return nil
	case "true", "on":
		yes = true
	}
	return &yes
}

func toIntPointer(word string) *int {
	if word == "" {
		return nil
	}
	n := int(toInt(word))
	return &n
}

func toInts(list string) []int {
	if list == "" {
		return nil
	}
	var numbers []int
	for number := range strings.SplitSeq(list, ",") {
		numbers = append(numbers, int(toInt(number)))
	}
	return numbers
}

func toOwner(text string) *Owner {
	if text == "" {
		return nil
	}
	uid, gid, both := strings.Cut(text, ":")
	if !both {
		gid = uid
	}
	return &Owner{UID: int(toInt(uid)), GID: int(toInt(gid))}
}

// toPortRange reads P, P-Q, each with /PROTOCOL.
func toPortRange(text string) PortRange {
	ports, protocol, found := strings.Cut(text, "/")
	if !found {
		protocol = "tcp"
	}
	first, last, isRange := strings.Cut(ports, "-")
	if !isRange {
		last = first
	}
	return PortRange{First: int(toInt(first)), Last: int(toInt(last)), Protocol: protocol}
}

// String returns the range as it stands in option ports.
func (r PortRange) String() string {
	text := strconv.Itoa(r.First)
	if r.Last != r.First {
		text += "-" + strconv.Itoa(r.Last)
	}
	if r.Protocol != "tcp" {
		text += "/" + r.Protocol
	}
	return text
}
