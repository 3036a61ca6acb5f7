package api

func machineRows() []Annotation {
	return append(chipsetRows(), firmwareRows()...)
}

func chipsetRows() []Annotation {
	const group = "Machine"
	return []Annotation{
		{
			Key: "machine", Group: group, Change: NewPod, Readers: []Program{Scheduler},
			Value:   machineType(),
			Default: "`machine.default`, built-in `q35` (arm64 `virt`), resolved to the image's newest and kept in `/vm/state/machine`",
			Meaning: "chipset: `q35`, `pc`, `virt`, `microvm`, or a versioned name",
		},
		{
			Key: "features", Group: group, Change: NewPod, Kind: Options,
			Options: []Option{
				{Name: "acpi", Value: boolean().later("true")}, {Name: "apic", Value: boolean().later("true")},
				{Name: "apic-eoi", Value: boolean().later("")}, {Name: "smm", Value: boolean()},
				{Name: "pae", Value: boolean().later("true")}, {Name: "pvspinlock", Value: boolean().later("")},
				{Name: "kvm-hidden", Value: boolean().later("false")}, {Name: "pmu", Value: boolean().later("")},
				{Name: "vmport", Value: boolean().later("")},
			},
			Default: "acpi, apic, pae on; smm follows secure-boot; rest the machine's default",
			Meaning: "hypervisor features",
		},
		{
			Key: "hyperv", Group: group, Change: NewPod, Readers: []Program{Scheduler}, Kind: Options,
			Value:   word("off windows all passthrough").later("off"),
			Options: hypervOptions(),
			Default: "`off`",
			Meaning: "enlightenments: `windows` = those of the Windows preferences, `all` = what the node's QEMU offers and can migrate",
		},
		{
			Key: "clock", Group: group, Change: Restart, Readers: []Program{Scheduler}, Kind: Options,
			Value: word("utc localtime").later("utc"),
			Options: []Option{
				{Name: "offset", Value: pattern(`-?`+durationPattern, "not a duration; example: 2h").later("")},
				{Name: "timezone", Value: pattern(`[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*`, "no such zone").later("")},
				{Name: "sync-on-resume", Value: boolean().later("true")},
				{Name: "tsc-hz", Value: pattern(`[1-9][0-9]{0,14}`, "not a whole number of Hz").or("lowest host").later("host")},
			},
			Default: "`utc,sync-on-resume=true,tsc-hz=host`",
			Meaning: "guest RTC base; TSC frequency (`tsc-hz` only in a new Pod)",
		},
		{
			Key: "timers", Group: group, Change: NewPod, Kind: Options,
			Options: []Option{
				{Name: "hpet", Value: word("on off delay catchup merge discard").later("off")},
				{Name: "pit", Value: word("on off delay catchup discard").later("delay")},
				{Name: "rtc", Value: word("on off delay catchup").later("catchup")},
				{Name: "kvm", Value: word("on off delay catchup").later("on")},
				{Name: "hyperv", Value: word("on off delay catchup").later("off")},
				{Name: "tsc", Value: word("on off delay catchup").later("")},
				{Name: "rtc-track", Value: word("guest wall").later("")},
			},
			Default: "hpet off, pit delay, rtc catchup, kvm on",
			Meaning: "timers and their tick policies",
		},
	}
}

func firmwareRows() []Annotation {
	const group = "Machine"
	return []Annotation{
		{
			Key: "firmware", Group: group, Change: NewPod, Kind: Options,
			Value: word("bios uefi none").later("bios uefi"),
			Options: []Option{
				{Name: "secure-boot", Value: boolean(), Meaning: "the firmware starts only what is signed; needs `uefi` and machine `q35`"},
				{Name: "enrolled-keys", Value: boolean(), Meaning: "Microsoft's keys from the start; `false`: your own"},
				{Name: "serial", Value: boolean(), Meaning: "firmware output on the serial console"},
				{Name: "menu", Value: duration("10s"), Meaning: "boot menu for that long"},
			},
			Default: "`bios` (arm64 `uefi`; `none` with `kernel` on microvm)",
			Meaning: "firmware the guest boots with",
		},
		{
			Key: "kernel", Group: group, Change: Restart, Kind: Options,
			Options: []Option{
				{Name: "path", Value: kernelFile()}, {Name: "initrd", Value: kernelFile()},
				{Name: "dtb", Value: kernelFile().later("")}, {Name: "shim", Value: kernelFile(), Meaning: "what Secure Boot trusts to check the kernel"},
			},
			Default: "off",
			Meaning: "direct kernel boot from files below `/vm/kernel`",
		},
		{
			Key: "kernel-args", Group: group, Change: Restart,
			Value:   text(MaxText),
			Default: "none",
			Meaning: "kernel command line, with `kernel` only",
		},
		{
			Key: "tpm", Group: group, Change: NewPod, Kind: Options,
			Value: word("off 2.0 1.2"),
			Options: []Option{
				{Name: "model", Value: word("crb tis")}, {Name: "persistent", Value: word("auto required")},
			},
			Default: "`off`; crb with uefi, tis with bios",
			Meaning: "emulated TPM; kept where `/vm/state` is mounted",
		},
		{
			Key: "launch-security", Group: group, Change: NewPod, Readers: []Program{Scheduler}, Kind: Options,
			Value: word("sev sev-es sev-snp tdx").later(""),
			Options: []Option{
				{Name: "policy", Value: pattern(hexPattern, "not a hexadecimal number; example: 0x30000").later("")},
				{Name: "attest", Value: boolean().later("false")},
			},
			Default: "none",
			Meaning: "launch security; session and DH blobs from `/vm/launch`",
		},
	}
}

func machineType() Value {
	v := pattern(machinePattern, "no such machine; example: pc-q35-10.0").or("q35 pc virt microvm").notNow("microvm")
	v.Empty = true
	return v
}

func kernelFile() Value {
	return pattern(relativePath, "not a path below /vm/kernel; example: boot/vmlinuz")
}

func hypervOptions() []Option {
	names := []string{
		"relaxed", "vapic", "vpindex", "runtime", "synic", "stimer", "stimer-direct", "reset", "frequencies",
		"reenlightenment", "tlbflush", "tlbflush-direct", "tlbflush-extended", "ipi", "evmcs", "avic", "xmm-input", "emsr-bitmap",
	}
	options := make([]Option, 0, len(names)+2)
	for _, name := range names {
		options = append(options, Option{Name: name, Value: boolean().later("false")})
	}
	return append(options,
		Option{Name: "spinlocks", Value: integer(4095, 1<<31).outside("below 4095").later(""), Meaning: "8191 is usual"},
		Option{Name: "vendor-id", Value: text(12).later("")},
	)
}

func deviceRows() []Annotation {
	const group = "Devices"
	return append(defaultsRows(group), []Annotation{
		{
			Key: "video", Group: group, Change: Restart, Kind: Options,
			Value: word("auto none vga virtio bochs cirrus ramfb qxl"),
			Options: []Option{
				{Name: "vram", Value: quantity("16Mi").atLeast(1<<20, "below 1Mi").atMost(1<<30, "above 1Gi")}, {Name: "heads", Value: integer(1, 16)},
				{Name: "resolution", Value: pattern(sizePattern, "not WIDTHxHEIGHT; example: 1280x800")},
			},
			Default: "`auto`: bios vga, uefi bochs, arm64 virtio; `none` with `kernel`",
			Meaning: "graphics card; `none` = headless, no VNC",
		},
		{
			Key: "vnc", Group: group, Change: Live, Kind: Options,
			Options: []Option{
				{Name: "share", Value: word("shared exclusive force").later("shared")},
				{Name: "keymap", Value: pattern(`[a-z]{2}(?:-[a-z]{2})?`, "not a keymap; example: en-us").later("")},
			},
			Default: "`share=shared`",
			Meaning: "what a second viewer meets",
		},
		{
			Key: "inputs", Group: group, Change: Restart, Kind: Options,
			Options: []Option{
				{Name: "tablet", Value: word("usb virtio").later("usb")}, {Name: "keyboard", Value: word("usb virtio ps2").later("ps2")},
				{Name: "mouse", Value: word("usb virtio ps2").later("ps2")},
			},
			Default: "`tablet=usb` where video is on",
			Meaning: "pointing and keyboard devices",
		},
		{
			Key: "sound", Group: group, Change: Restart, Value: word("off ich9 ac97 hda virtio").later("off"),
			Default: "`off`", Meaning: "sound card; output discarded unless a VNC viewer takes it",
		},
		{
			Key: "usb", Group: group, Change: Restart, Kind: Options,
			Value:   word("auto none xhci").later("auto"),
			Options: []Option{{Name: "redirect", Value: integer(0, 4).later("0")}},
			Default: "`auto` (xhci only if something needs it)",
			Meaning: "USB controller; slots for redirection from the client",
		},
		{
			Key: "rng", Group: group, Change: Restart, Kind: Options,
			Value:   onOff(),
			Options: []Option{{Name: "rate", Value: rate("1Mi/s")}},
			Default: "`on`", Meaning: "virtio-rng from the node's random pool",
		},
		{
			Key: "watchdog", Group: group, Change: Restart, Kind: Options,
			Value:   word("off i6300esb itco diag288"),
			Options: []Option{{Name: "action", Value: word("reset poweroff shutdown pause inject-nmi dump none")}},
			Default: "`off`; action `reset`", Meaning: "watchdog device and what it does when it expires",
		},
		{
			Key: "panic", Group: group, Change: Restart, Kind: Options,
			Value: word("off").later(""),
			Options: []Option{
				{Name: "pvpanic", Value: boolean().later("true")}, {Name: "isa", Value: boolean().later("false")},
				{Name: "hyperv", Value: boolean().later("false")},
			},
			Default: "`pvpanic`", Meaning: "the guest tells of its panic; what follows is `on-crash`",
		},
		{
			Key: "vsock", Group: group, Change: NewPod, Kind: Options,
			Value:   word("off on kernel").later("off"),
			Options: []Option{{Name: "cid", Value: integer(3, 1<<32-2).outside("reserved; use 3 or more").later("")}},
			Default: "`off`",
			Meaning: "`on`: unix sockets in `/run/podvirt/vsock`; `kernel`: vhost-vsock with a CID from the device plugin",
		},
	}...)
}

func defaultsRows(group string) []Annotation {
	return []Annotation{
		{
			Key: "disk-defaults", Group: group, Change: Restart, Kind: Options, Options: diskOptions(), Later: true,
			Default: "none", Meaning: "options for every disk that does not say otherwise",
		},
		{
			Key: "cdrom-defaults", Group: group, Change: Restart, Kind: Options, Options: diskOptions(), Later: true,
			Default: "none", Meaning: "options for every CD-ROM that does not say otherwise",
		},
		{
			Key: "nic-defaults", Group: group, Change: Restart, Kind: Options, Options: nicOptions(), Later: true,
			Default: "none", Meaning: "options for every NIC that does not say otherwise",
		},
	}
}

// rate is a quantity of bytes per second.
func rate(example string) Value {
	return pattern(QuantityPattern+`/s`, "not a quantity per second; example: "+example)
}

// later marks every option as not honoured by this version.
func later(options []Option) []Option {
	for i := range options {
		options[i].Value = options[i].Value.later("")
	}
	return options
}
