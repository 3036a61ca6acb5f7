package api

import "slices"

// When a changed setting is in force.
const (
	live    = "live"
	newPods = "new Pods"
)

func podSettings() []Setting {
	const group = "VM Pods"
	image := pattern(`[a-zA-Z0-9][^\s",]{0,511}`, "not an image reference")
	return []Setting{
		{Key: "launcher.image", Group: group, Value: image, Default: "the release's digest", InForce: newPods,
			Meaning: "what the alias image `podvirt.dev/launcher` becomes"},
		{Key: "launcher.runtime-class", Group: group, Value: named("RuntimeClass"), Default: "empty", InForce: newPods,
			Meaning: "filled into VM Pods that have none"},
		{Key: "launcher.port-base", Group: group, Value: integer(1024, 65532), Default: "49152", InForce: newPods,
			Meaning: "first of the launcher's four ports; `ports` of a NIC may name neither these nor 49152 to 49155"},
		{Key: "console.default", Group: group, Value: word("none log"), Default: "`none`", InForce: newPods,
			Meaning: "`podvirt.dev/console` where it is not set"},
		{Key: "machine.default", Group: group, Value: machineType(), Default: "`q35` = newest of the launcher (arm64 `virt`)", InForce: "new VMs",
			Meaning: "`podvirt.dev/machine` where it is not set"},
		{Key: "raw-overrides", Group: group, Value: word("deny admin").later("deny"), Default: "`deny`", InForce: newPods,
			Meaning: "may `raw-libvirt` and `raw-qemu` be used by holders of `virtualmachines/raw`"},
		{Key: "emulation", Group: group, Value: word("forbid allow"), Default: "`forbid`", InForce: newPods,
			Meaning: "may VMs run without KVM"},
		{Key: "state.storage-class", Group: group, Value: named("StorageClass").later(""), Default: "empty = as for disks", InForce: "CLI, UI",
			Meaning: "for `/vm/state` claims made by CLI and UI"},
	}
}

// named is the name of a Kubernetes object, or empty.
func named(kind string) Value {
	v := pattern(namePattern, "not the name of a "+kind)
	v.Empty = true
	return v
}

func nodeSettings() []Setting {
	const group = "CPU, memory, nodes, scheduler"
	model := `(?:` + alternatives(cpuModels) + `)(?:-v[0-9]{1,2})?`
	return []Setting{
		{Key: "cpu.default-model", Group: group, Value: pattern(model, "no such model").or("host-model host-passthrough max " + cpuModels),
			Default: "`host-model`", InForce: newPods, Meaning: "for VMs that name none; case-sensitive"},
		{Key: "cpu.obsolete-models", Group: group, Value: pattern(`-?`+model, "no such model").or(cpuModels), Commas: true,
			Default: "empty", InForce: live, Meaning: "adds to the built-in list of models that are refused; `-model` takes one off"},
		{Key: "cpu.min-model", Group: group, Value: pattern(model, "no such model").or(cpuModels).later("Penryn"), Default: "`Penryn`",
			InForce: live,
			Meaning: "its features get no label"},
		{Key: "cpu.labels", Group: group, Value: word("none models features all").notNow("features all"), Default: "`none`", InForce: live,
			Meaning: "node labels beyond the four that always exist"},
		{Key: "cpu.allocation-ratio", Group: group, Value: integer(1, 1000), Default: "10", InForce: newPods,
			Meaning: "CPU request = vCPUs / ratio where none is given"},
		{Key: "cpu.auto-limit-namespaces", Group: group, Value: text(1024).later(""), Default: "empty", InForce: newPods,
			Meaning: "label selector of namespaces where CPU limit = vCPUs is written if none is given"},
		{Key: "memory.overcommit-percent", Group: group, Value: integer(10, 1000), Default: "100", InForce: newPods,
			Meaning: "memory request = guest memory × 100 / value + overhead where none is given"},
		{Key: "memory.guest-overhead", Group: group, Value: word("counted not-counted"), Default: "`counted`", InForce: newPods,
			Meaning: "leave the overhead out of the request, never out of the limit"},
		{Key: "memory.auto-limits", Group: group, Value: onOff(), Default: "`on`", InForce: newPods,
			Meaning: "memory limit = guest memory + overhead where none is given"},
		{Key: "memory.overhead-factor", Group: group, Value: pattern(`[1-3]\.[0-9]|4\.0`, "not a number from 1.0 to 4.0 with one decimal"),
			Default: "1.0", InForce: newPods, Meaning: "last factor on the overhead"},
		{Key: "memory.free-page-reporting", Group: group, Value: onOff().later("on"), Default: "`on`", InForce: newPods,
			Meaning: "default of `memory-balloon: reporting`"},
		{Key: "memory.ksm-nodes", Group: group, Value: text(1024).or("none all").later("none"), Default: "`none`", InForce: live,
			Meaning: "nodes whose KSM podvirt drives"},
		{Key: "memory.ksm-free-percent", Group: group, Value: integer(1, 100).later("20"), Default: "20", InForce: live,
			Meaning: "merging works while less memory than this is available"},
		{Key: "memory.ksm-pages", Group: group, Value: pattern(`[0-9]{1,9}-[0-9]{1,9}`, "not MIN-MAX pages; example: 64-1250").later("64-1250"),
			Default: "`64-1250`", InForce: live, Meaning: "pages per scan"},
		{Key: "memory.ksm-sleep", Group: group, Value: integer(1, 1e6).later("100"), Default: "100", InForce: live, Meaning: "ms between scans"},
		{Key: "nodes.startup-taint", Group: group, Value: onOff(), Default: "`off`", InForce: live,
			Meaning: "remove `podvirt.dev/not-ready` when facts are there"},
		{Key: "nodes.min-write-interval", Group: group, Value: duration("5s").atLeast(1e9, "at least 1s"), Default: "`5s`", InForce: live,
			Meaning: "shortest time between two writes of one node annotation"},
		{Key: "scheduler.render-affinity", Group: group, Value: onOff().later("off"), Default: "`off`", InForce: newPods,
			Meaning: "node affinity for autoscalers and the default scheduler"},
		{Key: "scheduler.numa-cell-by-user", Group: group, Value: onOff().later("off"), Default: "`off`", InForce: newPods,
			Meaning: "accept a NUMA cell chosen by hand"},
	}
}

func deviceSettings() []Setting {
	const group = "Devices"
	rows := []Setting{
		{Key: "device.NAME", Group: group, Value: text(MaxText), InForce: live, Meaning: "one class of PCI or character devices"},
		{Key: "vgpu.NAME", Group: group, Value: text(MaxText), InForce: live, Meaning: "one class of mediated devices"},
		{Key: "usb.NAME", Group: group, Value: text(MaxText).later(""), InForce: live, Meaning: "one class of USB devices"},
		{Key: "devices.vsock-cid-base", Group: group, Value: integer(3, 1<<31), Default: "65536", InForce: newPods, Meaning: "first CID"},
		{Key: "devices.mdev", Group: group, Value: onOff(), Default: "`on`", InForce: live,
			Meaning: "`off`: no mediated device is made or removed"},
		{Key: "devices.unsafe-interrupts", Group: group, Value: word("forbid allow"), Default: "`forbid`", InForce: live,
			Meaning: "pass-through without interrupt remapping"},
		{Key: "devices.tdx-quote-socket", Group: group, Value: pattern(absolutePath, "not an absolute path").later(""), Default: "none",
			InForce: newPods,
			Meaning: "quote generation service"},
	}
	for _, name := range []string{"kvm", "tun", "vhost-net", "vhost-vsock"} {
		key := "devices.capacity." + name
		units := integer(0, 100000)
		rows = append(rows,
			Setting{Key: key, Group: group, Value: units, Default: "1000", InForce: live, Meaning: "units of `podvirt.dev/" + name + "` per node"},
			Setting{Key: key + ".node.NAME", Group: group, Value: units, InForce: live, Meaning: "the same for one node"})
	}
	return rows
}

// importTargets are host patterns (*.example.org) and CIDRs.
func importTargets() Value {
	const (
		host  = `\*|(?:\*\.)?[A-Za-z0-9](?:[A-Za-z0-9.\-]{0,250}[A-Za-z0-9])?`
		octet = `(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])`
		v4    = octet + `(?:\.` + octet + `){3}(?:/(?:3[0-2]|[12]?[0-9]))?`
		v6    = `[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]{1,40}(?:/(?:12[0-8]|1[01][0-9]|[1-9]?[0-9]))?`
	)
	return pattern(host+"|"+v4+"|"+v6, "neither CIDR nor host pattern")
}

func storageSettings() []Setting {
	const group = "Storage, snapshots, boot sources"
	per := pattern(QuantityPattern+`(?:/s)?`, "not a quantity per second")
	next := "next import"
	return []Setting{
		{Key: "storage.pools", Group: group, Lines: true, Default: "empty", InForce: live, Meaning: "pools of `csi-hostpath`, a YAML list"},
		{Key: "storage.default-class", Group: group, Value: named("StorageClass").later(""), Default: "empty", InForce: "new claims",
			Meaning: "for VM disks that name none"},
		{Key: "storage.filesystem-overhead", Group: group, Value: fraction().later(""), Default: "0 for our driver, 0.055 for others",
			InForce: "new claims",
			Meaning: "added to sizes of claims on file systems"},
		{Key: "storage.filesystem-overhead.NAME", Group: group, Value: fraction().later(""), InForce: "new claims",
			Meaning: "the same for one class"},
		{Key: "storage.preallocation", Group: group, Value: word("none falloc full").later("none"), Default: "`none`", InForce: "new claims",
			Meaning: "for claims and classes that do not say"},
		{Key: "storage.import.max-per-node", Group: group, Value: integer(1, 64), Default: "4", InForce: live,
			Meaning: "imports at once on a node"},
		{Key: "storage.import.max-per-namespace", Group: group, Value: integer(1, 64), Default: "2", InForce: live,
			Meaning: "imports at once of a namespace"},
		{Key: "storage.import.memory", Group: group, Value: quantity("256Mi").atLeast(64<<20, "less than 64Mi"), Default: "256Mi", InForce: next,
			Meaning: "memory of one import"},
		{Key: "storage.import.cpu", Group: group, Value: quantity("1").later("1"), Default: "1", InForce: next, Meaning: "CPU of one import"},
		{Key: "storage.import.bandwidth", Group: group, Value: per, Default: "unlimited", InForce: next,
			Meaning: "bandwidth of one import"},
		{Key: "storage.import.insecure-registries", Group: group, Commas: true, Default: "empty", InForce: next,
			Value:   pattern(`[A-Za-z0-9.\-\[\]:]{1,253}`, "not host[:port]; wildcards are not allowed"),
			Meaning: "plain HTTP or unverified TLS allowed"},
		{Key: "storage.import.proxy-http", Group: group, Value: text(1024).later(""), Default: "environment of the driver", InForce: next,
			Meaning: "proxy of imports"},
		{Key: "storage.import.proxy-https", Group: group, Value: text(1024).later(""), Default: "environment of the driver", InForce: next,
			Meaning: "proxy of imports"},
		{Key: "storage.import.no-proxy", Group: group, Value: text(253).later(""), Commas: true, Default: "environment of the driver",
			InForce: next,
			Meaning: "hosts without proxy"},
		{Key: "storage.import.ca", Group: group, Value: named("ConfigMap"), Default: "none", InForce: next,
			Meaning: "further CAs for all imports"},
		{Key: "storage.import.allow", Group: group, Value: importTargets(), Commas: true, Default: "`*`", InForce: "next connection",
			Meaning: "where imports may go"},
		{Key: "storage.import.deny", Group: group, Value: importTargets(), Commas: true, Default: "loopback, link-local, node, Pod, Service ranges",
			InForce: "next connection", Meaning: "where they may not; what is written is added to the default"},
		{Key: "storage.import.require-landlock", Group: group, Value: onOff(), Default: "`on`", InForce: live,
			Meaning: "no import by the driver on kernels without Landlock"},
		{Key: "storage.clone-bandwidth", Group: group, Value: per.later(""), Default: "unlimited", InForce: live,
			Meaning: "copies between nodes"},
		{Key: "storage.orphans-report", Group: group, Value: duration("1h").later("1h"), Default: "`1h`", InForce: live,
			Meaning: "age of an orphan that is reported"},
		{Key: "storage.persistent-reservations", Group: group, Value: onOff().later("off"), Default: "`off`", InForce: live,
			Meaning: "run the reservation helper"},
		{Key: "snapshot.deadline", Group: group, Value: duration("5m").or("0").later("5m"), Default: "`5m`", InForce: "next snapshot",
			Meaning: "a snapshot fails after this long"},
		{Key: "snapshot.freeze-timeout", Group: group, Value: duration("10s").later("10s"), Default: "`10s`", InForce: "next snapshot",
			Meaning: "the launcher thaws by itself"},
		{Key: "snapshot.require-freeze", Group: group, Value: onOff().later("off"), Default: "`off`", InForce: "next snapshot",
			Meaning: "no snapshot without a frozen guest"},
		{Key: "boot-sources", Group: group, Value: onOff().later("off"), Default: "`on`", InForce: live,
			Meaning: "refresh of the shipped boot sources"},
		{Key: "boot-sources.namespace", Group: group, Value: named("Namespace").later("podvirt-images"), Default: "`podvirt-images`", InForce: live,
			Meaning: "where they live"},
		{Key: "boot-source.NAME", Group: group, Value: text(MaxText).later(""), InForce: live, Meaning: "change or add one in short form"},
	}
}

func fraction() Value { return pattern(`0(?:\.[0-9]{1,6})?`, "not a number from 0 to 0.9") }

func networkSettings() []Setting {
	const group = "Network"
	binding := word("masquerade bridge wire passt macvtap sriov").notNow("passt macvtap sriov")
	directory := pattern(absolutePath, "not an absolute path")
	return []Setting{
		{Key: "network.default-binding", Group: group, Value: binding, Default: "`masquerade`", InForce: newPods,
			Meaning: "binding of `nic.default`"},
		{Key: "network.secondary-binding", Group: group, Value: word("masquerade bridge wire passt macvtap sriov").later("wire bridge"), Default: "`wire`",
			InForce: newPods, Meaning: "binding of every other NIC"},
		{Key: "network.allowed-bindings", Group: group, Value: word("masquerade wire bridge passt macvtap sriov vhostuser vdpa none"), Commas: true,
			Default: "all but `passt`", InForce: newPods, Meaning: "what users may choose"},
		{Key: "network.v4-cidr", Group: group, Value: pattern(ipv4Pattern+`/[0-9]{1,2}`, "not an IPv4 prefix; example: 10.0.2.0/24"),
			Default: "`10.0.2.0/24`", InForce: newPods, Meaning: "inside network of masquerade"},
		{Key: "network.v6-cidr", Group: group, Value: pattern(ipv6Pattern+`/[0-9]{1,3}`, "not an IPv6 prefix; example: fd10:0:2::/120"),
			Default: "`fd10:0:2::/120`", InForce: newPods, Meaning: "inside network of masquerade"},
		{Key: "network.spoof-check", Group: group, Value: word("on off required").later("on"), Default: "`on`", InForce: newPods,
			Meaning: "pod network with wire, bridge"},
		{Key: "network.mac-spoof-check", Group: group, Value: word("on off required").later("off"), Default: "`off`", InForce: newPods,
			Meaning: "our bridges"},
		{Key: "network.mac-prefix", Group: group, Value: pattern(`[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){0,2}`, "not 1 to 3 octets; example: 02"),
			Default: "`02`", InForce: newPods, Meaning: "first octets of derived MACs"},
		{Key: "network.mac-salt", Group: group, Value: text(253), Default: "UID of Namespace `kube-system`", InForce: newPods,
			Meaning: "two clusters on one VLAN differ; `none`"},
		{Key: "network.mac-conflict", Group: group, Value: word("refuse report").later("refuse"), Default: "`refuse`", InForce: live,
			Meaning: "what a duplicate MAC meets"},
		{Key: "network.max-nics", Group: group, Value: integer(1, 64).later("32"), Default: "32", InForce: newPods, Meaning: "per VM"},
		{Key: "network.bridge-resource-prefix", Group: group, Value: pattern(namePattern, "not a DNS name").later("bridge.podvirt.dev"), Commas: true,
			Default: "`bridge.podvirt.dev`", InForce: live, Meaning: "capacity of bridges is published under these"},
		{Key: "network.bridges-ignored", Group: group, Value: text(64).later(""), Commas: true, Default: "`docker*,cni*,cbr*,virbr*,podman*`",
			InForce: live,
			Meaning: "bridges that are not published"},
		{Key: "network.compat-names", Group: group, Value: pattern(dnsLabelPattern, "not a program name"), Commas: true, Default: "empty",
			InForce: live,
			Meaning: "further names of the CNI binary"},
		{Key: "network.hotplug", Group: group, Value: onOff().later("off"), Default: "`on`", InForce: live, Meaning: "NIC hot-plug by the agent"},
		{Key: "network.repair", Group: group, Value: onOff().later("off"), Default: "`on`", InForce: live,
			Meaning: "drift of node networks is corrected"},
		{Key: "network.install-method", Group: group, Value: word("auto drop-in wrap edit off"), Default: "`auto`", InForce: live,
			Meaning: "how the CNI configuration is extended"},
		{Key: "network.conf-dir", Group: group, Value: directory, Default: "`/etc/cni/net.d`", InForce: live,
			Meaning: "CNI configuration of the node"},
		{Key: "network.bin-dir", Group: group, Value: directory, Default: "`/opt/cni/bin`", InForce: live, Meaning: "CNI plugins of the node"},
		{Key: "network.dns", Group: group, Value: onOff().later("off"), Default: "`off`", InForce: live, Meaning: "secondary DNS"},
		{Key: "network.dns-zone", Group: group, Value: pattern(domainPattern, "not a domain").later(""), Default: "`vm.<cluster domain>`", InForce: live,
			Meaning: "its zone"},
		{Key: "network.dns-address", Group: group, Value: pattern(ipv4Pattern+"|"+ipv6Pattern, "not an address").later(""), Default: "none",
			InForce: live,
			Meaning: "address of the name server in it"},
		{Key: "network.dns-ttl", Group: group, Value: duration("30s").later("30s"), Default: "`30s`", InForce: live, Meaning: "time to live"},
		{Key: "vm-network.NAME", Group: group, Lines: true, Value: text(0).later(""), InForce: newPods,
			Meaning: "secondary network without Multus, JSON"},
		{Key: "node-network.NAME", Group: group, Lines: true, Value: text(0).later(""), InForce: live,
			Meaning: "one policy for networks of nodes, YAML"},
	}
}

func migrationSettings() []Setting {
	const group = "Migration, drain, upgrade, node loss"
	rows := []Setting{
		{Key: "migration.allowed", Value: boolean(), Default: "`true`", Meaning: "may VMs be moved at all"},
		{Key: "migration.parallel-per-cluster", Value: integer(1, 1000), Default: "5", Meaning: "running migrations in the cluster"},
		{Key: "migration.parallel-outbound-per-node", Value: integer(1, 100), Default: "2", Meaning: "leaving one node"},
		{Key: "migration.parallel-inbound-per-node", Value: integer(0, 100), Default: "0 = no limit", Meaning: "arriving at one node"},
		{Key: "migration.bandwidth", Value: quantity("100Mi"), Default: "0 = no limit", Meaning: "bytes/s per migration"},
		{Key: "migration.timeout-per-gib", Value: duration("150s").atLeast(1e9, "at least 1s"), Default: "`150s`",
			Meaning: "× GiB to copy = time for the whole"},
		{Key: "migration.progress-timeout", Value: duration("150s").atLeast(5e9, "at least 5s"), Default: "`150s`",
			Meaning: "no new minimum for so long = stalled"},
		{Key: "migration.max-downtime", Value: duration("900ms"), Default: "`900ms`", Meaning: "longest acceptable pause"},
		{Key: "migration.auto-converge", Value: boolean(), Default: "`false`", Meaning: "slow the guest down"},
		{Key: "migration.post-copy", Value: boolean(), Default: "`false`", Meaning: "switch to post-copy"},
		{Key: "migration.force", Value: word("none pause"), Default: "`none`", Meaning: "out of time: give up, or pause and finish"},
		{Key: "migration.multifd", Value: integer(1, 16).wrong("not one of auto, off, 1 to 16").or("auto off"), Default: "`auto`",
			Meaning: "parallel streams"},
		{Key: "migration.compression", Value: word("none zstd"), Default: "`none`", Meaning: "needs multifd"},
		{Key: "migration.network", Value: pattern(namePattern+`/`+namePattern, "not NAMESPACE/NAD"), Default: "empty = pod network",
			Meaning: "dedicated network"},
		{Key: "migration.network-required", Value: boolean(), Default: "`false`", Meaning: "refuse instead of falling back"},
		{Key: "migration.tls", Value: word("required off"), Default: "`required`", Meaning: "`off` is reported as Degraded"},
		{Key: "migration.pending-timeout-unschedulable", Value: duration("5m"), Default: "`5m`",
			Meaning: "life of a target that cannot be placed"},
		{Key: "migration.pending-timeout", Value: duration("15m"), Default: "`15m`", Meaning: "life of a target that does not start"},
		{Key: "migration.retry-min", Value: duration("30s"), Default: "`30s`", Meaning: "back-off per VM"},
		{Key: "migration.retry-max", Value: duration("10m"), Default: "`10m`", Meaning: "back-off per VM"},
		{Key: "migration.unsafe-cpu", Value: word("deny admin"), Default: "`deny`", Meaning: "may the CPU check be overridden"},
		{Key: "migration.quota", Value: word("wait fail"), Default: "`wait`", Meaning: "a quota leaves no room for the target"},
		{Key: "eviction.default", Value: word("migrate migrate-if-possible none external"), Default: "`migrate-if-possible`",
			Meaning: "for VMs that do not say"},
		{Key: "eviction.single-node", Value: word("migrate migrate-if-possible none external"), Default: "`none`",
			Meaning: "in a cluster of one node"},
		{Key: "drain.trigger", Value: word("cordon taint"), Commas: true, Default: "`cordon`", Meaning: "what starts moving VMs away"},
		{Key: "drain.delay", Value: duration("0s"), Default: "`0s`", Meaning: "wait after the trigger"},
		{Key: "upgrade.methods", Value: word("migrate restart"), Commas: true, Default: "`migrate`",
			Meaning: "how outdated VMs get the new launcher"},
		{Key: "upgrade.batch-size", Value: integer(1, 100000), Default: "10", Meaning: "restarts per batch"},
		{Key: "upgrade.batch-interval", Value: duration("1m"), Default: "`1m`", Meaning: "time between batches"},
		{Key: "upgrade.window", Value: text(253), Default: "empty = always", Meaning: "cron + duration"},
		{Key: "upgrade.canary", Value: text(1024), Default: "empty", Meaning: "label selector: try on these first"},
		{Key: "upgrade.canary-time", Value: duration("1h"), Default: "`1h`", Meaning: "for that long"},
		{Key: "upgrade.max-failures", Value: integer(1, 1000), Default: "3", Meaning: "failures in a row that halt it"},
		{Key: "ha.fence-alert-after", Value: duration("5m"), Default: "`5m`", Meaning: "when a VM held by the fence alerts"},
		{Key: "rebalance", Value: onOff(), Default: "`off`", Meaning: "move VMs for balance and pressure"},
		{Key: "rebalance.cpu-high", Value: integer(1, 100), Default: "80", Meaning: "percent above which a node is full"},
		{Key: "rebalance.memory-high", Value: integer(1, 100), Default: "85", Meaning: "percent above which a node is full"},
		{Key: "rebalance.per-hour", Value: integer(1, 1000), Default: "6", Meaning: "moves per hour"},
		{Key: "rebalance.cooldown", Value: duration("1h"), Default: "`1h`", Meaning: "per VM"},
	}
	for i := range rows {
		rows[i].Group, rows[i].InForce, rows[i].Value = group, live, rows[i].Value.later("")
	}
	return rows
}

func outwardSettings() []Setting {
	const group = "Logs, TLS, metrics"
	level := integer(0, 9).outside("0 to 9")
	var rows []Setting
	rows = append(rows, Setting{
		Key: "verbosity.launcher", Group: group, Value: level, Default: "2", InForce: newPods, Meaning: "log detail",
	})
	for _, program := range []string{"scheduler", "controller", "csi-hostpath", "cni-bridge", "device-plugin"} {
		rows = append(rows, Setting{Key: "verbosity." + program, Group: group, Value: level.later("2"), Default: "2",
			InForce: live, Meaning: "log detail"})
	}
	lifetime := func(usual string) Value { return duration(usual).atLeast(600e9, "at least 10m").later(usual) }
	return slices.Concat(rows, []Setting{
		{Key: "verbosity.node.NAME", Group: group, Value: level.later(""), InForce: live, Meaning: "wins on that node"},
		{Key: "tls.profile", Group: group, Value: word("old intermediate modern custom").later("intermediate"), Default: "`intermediate`",
			InForce: "new connections",
			Meaning: "Mozilla's meaning"},
		{Key: "tls.min-version", Group: group, Value: word("1.2 1.3").later(""), InForce: "new connections", Meaning: "only with `custom`"},
		{Key: "tls.ciphers", Group: group, Value: text(253).later(""), Commas: true, InForce: "new connections", Meaning: "only with `custom`"},
		{Key: "certs.ca-duration", Group: group, Value: lifetime("48h"), Default: "`48h`", InForce: live, Meaning: "own serving certificates"},
		{Key: "certs.ca-renew-before", Group: group, Value: lifetime("24h"), Default: "`24h`", InForce: live,
			Meaning: "own serving certificates"},
		{Key: "certs.server-duration", Group: group, Value: lifetime("24h"), Default: "`24h`", InForce: live,
			Meaning: "own serving certificates"},
		{Key: "certs.server-renew-before", Group: group, Value: lifetime("12h"), Default: "`12h`", InForce: live,
			Meaning: "own serving certificates"},
		{Key: "metrics.compat-names", Group: group, Value: word("current off").later("current"), Default: "`current`", InForce: live,
			Meaning: "`kubevirt_*` names"},
		{Key: "metrics.vm-labels", Group: group, Value: text(317).later(""), Commas: true, Default: "empty", InForce: live,
			Meaning: "label keys on `kubevirt_vm_labels`"},
		{Key: "metrics.allow", Group: group, Value: text(253).later(""), Commas: true, Default: "all", InForce: live,
			Meaning: "what is exported"},
		{Key: "metrics.deny", Group: group, Value: text(253).later(""), Commas: true, Default: "none", InForce: live, Meaning: "what is not"},
	})
}
