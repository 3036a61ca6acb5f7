package api

func lifecycleRows() []Annotation {
	const consoles, group = "Consoles and guest channels", "Lifecycle"
	return []Annotation{
		{
			Key: "console", Group: consoles, Change: NewPod, Kind: Options,
			Value: word("none log attach"),
			Options: []Option{
				{Name: "device", Value: word("auto isa pci virtio")}, {Name: "rate", Value: rate("1Mi/s")},
			},
			Default: "`console.default` of podvirt-config, built-in `none`; rate `1Mi/s`",
			Meaning: "first serial port: discarded, to the container's stdout, or also from stdin (`log` and `none` change at once)",
		},
		{
			Key: "serial", Group: consoles, Change: Restart, Value: integer(0, 3),
			Default: "`0`", Meaning: "further serial ports, reached by `ctl console --port N`",
		},
		{
			Key: "agent", Group: consoles, Change: Restart, Kind: Options,
			Value:   onOff(),
			Options: []Option{{Name: "deny", Value: word("exec file user net").list().later("")}},
			Default: "`on`", Meaning: "guest agent channel; what podvirt refuses to ask it",
		},
		{
			Key: "downward-metrics", Group: consoles, Change: NewPod, Kind: Options,
			Value:   word("off").later("off"),
			Options: []Option{{Name: "channel", Value: boolean().later("false")}, {Name: "disk", Value: boolean().later("false")}},
			Default: "`off`", Meaning: "node and VM figures for the guest (vhostmd format)",
		},
		{
			Key: "vmcoreinfo", Group: consoles, Change: NewPod, Value: boolean().later("true"),
			Default: "`true`", Meaning: "lets dumps be opened by crash and WinDbg tools",
		},
		{
			Key: "virtio", Group: consoles, Change: NewPod, Value: word("modern transitional"),
			Default: "`modern`", Meaning: "virtio 1.0 only, or also 0.9 for old guests",
		},
		{
			Key: "hotplug-ports", Group: consoles, Change: NewPod, Value: integer(0, 64).later("4"),
			Default: "`4`", Meaning: "spare PCIe ports for devices added later",
		},
		{
			Key: "start", Group: group, Change: NewPod, Value: word("running paused"),
			Default: "`running`", Meaning: "state after start",
		},
		{
			Key: "shutdown", Group: group, Change: Live, Kind: Options,
			Value: word("agent acpi ctrl-alt-del").notNow("ctrl-alt-del").list(),
			Options: []Option{
				{Name: "timeout", Value: duration("170s").atLeast(1, "must be more than 0s")}, {Name: "then", Value: word("off wait")},
			},
			Default: "`agent+acpi`, timeout = grace period less 10 s, at least 1 s (admission), 20 s when unknown, `then=off`",
			Meaning: "order and patience of a graceful stop",
		},
		{
			Key: "on-poweroff", Group: group, Change: Live, Value: word("exit restart hold"),
			Default: "`exit`", Meaning: "the guest powered itself off: end the container; start again at once; keep the Pod, VM off",
		},
		{
			Key: "on-reboot", Group: group, Change: Live, Value: word("reset restart exit"),
			Default: "`reset`", Meaning: "the guest asked for a reboot: same QEMU; new QEMU with annotations read again; end with code 30",
		},
		{
			Key: "on-crash", Group: group, Change: Live, Kind: Options,
			Value:   word("exit restart reset hold"),
			Options: []Option{{Name: "dump", Value: boolean().later("false")}},
			Default: "`exit`", Meaning: "after a panic; `dump` first writes to `/vm/dumps/crash`",
		},
		{
			Key: "resume", Group: group, Change: Live, Value: word("auto required discard").later(""),
			Default: "`auto`", Meaning: "what a start does with a saved memory image in `/vm/state`",
		},
	}
}

func guestRows() []Annotation {
	const group = "Guest and types"
	return []Annotation{
		{
			Key: "cloud-init", Group: group, Change: Restart, Kind: Options,
			Value: word("nocloud config-drive off").later("nocloud off"),
			Options: []Option{
				{Name: "instance-id", Value: text(253)}, {Name: "bus", Value: word("virtio sata scsi")},
			},
			Default: "`nocloud` if `/vm/cloud-init` or keys in `/vm/ssh-keys` exist; instance-id namespace/name",
			Meaning: "form of the seed",
		},
		{
			Key: "ssh-keys", Group: group, Change: Live, Value: word("both static dynamic off").notNow("dynamic"),
			Default: "`both`", Meaning: "when keys of `/vm/ssh-keys` are applied: in the seed, by the guest agent",
		},
		{
			Key: "instance-type", Group: group, Change: NewPod, Value: pattern(reference, "not NAME or NAMESPACE/NAME").later(""),
			Default: "none", Meaning: "ConfigMap with sizes",
		},
		{
			Key: "preference", Group: group, Change: NewPod, Value: pattern(reference, "not NAME or NAMESPACE/NAME").later(""),
			Default: "none", Meaning: "ConfigMap with defaults for a guest OS",
		},
	}
}

func escapeRows() []Annotation {
	const group = "Escape and diagnosis"
	return []Annotation{
		{
			Key: "raw-libvirt", Group: group, Change: NewPod,
			Value:   pattern(jsonListPattern, "not a JSON list").later(""),
			Default: "none", Meaning: "changes to the domain, last step before it is defined: list of `{op, path, value}`",
		},
		{
			Key: "raw-qemu", Group: group, Change: NewPod,
			Value:   pattern(jsonListPattern, "not a JSON list").later(""),
			Default: "none", Meaning: "arguments appended to QEMU's",
		},
		{
			Key: "verbosity", Group: group, Change: Live, Value: integer(0, 9).outside("0 to 9"),
			Default: "`verbosity.launcher`, built-in 2", Meaning: "launcher log on stderr",
		},
		{
			Key: "metrics", Group: group, Change: NewPod, Value: onOff(),
			Default: "`on`", Meaning: "HTTP `/metrics`, `/status`, `/probe/*` on port 49155 of the pod IP",
		},
	}
}

// otherChapterRows are keys on a VM Pod whose home is another chapter than vm.md.
func otherChapterRows() []Annotation {
	const group = "Network, migration, repair"
	return []Annotation{
		{
			Key: "tap-owner", Group: group, Change: NewPod, Readers: []Program{CNIBridge},
			Value:   pattern(ownerPattern, "not UID or UID:GID; example: 107:107"),
			Default: "`107:107`", Meaning: "owner of the taps, where `runAsUser` differs; root is not allowed",
		},
		{
			Key: "eviction", Group: group, Change: Live, Readers: []Program{Controller, Scheduler},
			Value:   word("migrate migrate-if-possible none external").later("none"),
			Default: "`eviction.default` of podvirt-config", Meaning: "what an eviction or drain does to this VM",
		},
		{
			Key: "maintenance", Group: group, Change: Live, Readers: []Program{Controller},
			Value:   word("move restart return off").later(""),
			Default: "`move`", Meaning: "what `kubectl vm node drain` does with a VM that does not live-migrate",
		},
		{
			Key: "migration", Group: group, Change: Live, Readers: []Program{Controller}, Kind: Options,
			Options: later(migrationOptions()),
			Default: "none", Meaning: "this VM's own migration limits",
		},
		{
			Key: "migrate", Group: group, Change: Live, Readers: []Program{Controller}, Kind: Options,
			Value: word("true").later(""),
			Options: later([]Option{
				{Name: "to", Value: pattern(namePattern, "not a node name")},
				{Name: "node-selector", Value: pattern(`[^\s"+,:]+(?::[^\s"+,:]*)?`, "not KEY:VALUE").list()},
				{Name: "unsafe-cpu", Value: boolean()}, {Name: "dry-run", Value: boolean()},
			}),
			Default: "absent", Meaning: "asks the controller to migrate now",
		},
		{
			Key: "upgrade", Group: group, Change: Live, Readers: []Program{Controller}, Value: word("auto manual").later(""),
			Default: "`auto`", Meaning: "may the controller move this VM to a newer launcher by itself",
		},
		{
			Key: "fencing", Group: group, Change: NewPod, Readers: []Program{Controller}, Value: word("auto strict").later("auto"),
			Default: "`auto`", Meaning: "`strict`: the finalizer stays until the end of the guest is proven",
		},
		{
			Key: "recreate", Group: group, Change: Live, Readers: []Program{Controller}, Value: boolean().later("false"),
			Default: "`false`", Meaning: "a bare Pod that the kubelet failed after a node restart is made again",
		},
	}
}

func migrationOptions() []Option {
	return []Option{
		{Name: "allowed", Value: boolean()}, {Name: "bandwidth", Value: quantity("100Mi")},
		{Name: "timeout-per-gib", Value: duration("150s")}, {Name: "progress-timeout", Value: duration("150s")},
		{Name: "max-downtime", Value: duration("500ms")}, {Name: "auto-converge", Value: boolean()},
		{Name: "post-copy", Value: boolean()}, {Name: "force", Value: word("none pause")},
		{Name: "multifd", Value: integer(1, 16).wrong("not one of auto, off, 1 to 16").or("auto off")},
		{Name: "compression", Value: word("none zstd")},
	}
}

// writtenRows are notes that programs leave on a VM Pod; a user's value is refused at admission where only one program
// may write it.
func writtenRows() []Annotation {
	const group = "Written by podvirt"
	note := func(key string, value Value, writer Program, meaning string, readers ...Program) Annotation {
		return Annotation{
			Key: key, Group: group, Change: NewPod, Value: value, Writer: writer, Readers: readers, Default: "absent", Meaning: meaning,
		}
	}
	json := pattern(jsonPattern, "not JSON")
	return []Annotation{
		note("numa-cell", pattern(cellListPattern, "not a list of cells; example: 0,1"), Scheduler,
			"host cell per guest cell", Scheduler, DevicePlugin),
		note("tsc-hz", pattern(`[1-9][0-9]{0,14}`, "not a whole number of Hz").later(""), Scheduler, "TSC frequency kept for this VM", Scheduler),
		note("migration-cpu", json.later(""), Controller, "CPU the source's guest has", Scheduler),
		note("incoming", pattern(uuidPattern, "not a UUID").later(""), Controller, "UID of the source Pod; the launcher waits for a stream"),
		note("migration-state", json, Controller, "the running migration"),
		note("migration-history", json, Controller, "the last attempts"),
		note("frozen", text(MaxText), Controller, "a snapshot holds the guest's file systems"),
		note("status", json, Controller, "what the launcher reports, for CLI and UI"),
		note("instance-type-resolved", text(512), Admission, "namespace/name@resourceVersion"),
		note("preference-resolved", text(512), Admission, "namespace/name@resourceVersion"),
		note("defaults-version", text(64), Admission, "version of the policies that filled in the defaults"),
	}
}
