package api

import (
	"regexp"
	"strings"
)

func identityRows() []Annotation {
	const group = "Identity"
	return []Annotation{
		{
			Key: "vm", Group: group, Change: NewPod, Readers: []Program{Scheduler, CNIBridge, Controller},
			Value:   pattern(dnsLabelPattern, "not a DNS label of at most 63 characters; example: db1"),
			Default: "the label of the same name",
			Meaning: "VM name for programs that see no labels; every VM Pod carries label and annotation",
		},
		{
			Key: "identity", Group: group, Change: NewPod, Readers: []Program{Scheduler, CNIBridge, Controller},
			Value:   word("vm pod"),
			Default: "`vm`; admission and CLI write `pod` for Pods of a StatefulSet",
			Meaning: "source of UUID, MACs, instance-id and guest host name: the VM's name, or the Pod's (pools)",
		},
		{
			Key: "uuid", Group: group, Change: NewPod,
			Value:   pattern(uuidPattern, "not a UUID"),
			Default: "`/vm/state/uuid`, else UUIDv5 of namespace/name",
			Meaning: "SMBIOS system UUID",
		},
		{
			Key: "hostname", Group: group, Change: Restart,
			Value:   pattern(dnsLabelPattern, "not a DNS label; example: db1"),
			Default: "`spec.hostname`, else VM name",
			Meaning: "guest host name (meta-data, DHCP)",
		},
		{
			Key: "smbios", Group: group, Change: Restart, Kind: Options,
			Options: smbiosOptions(),
			Default: "manufacturer `podvirt`, product `VM`, serial = uuid",
			Meaning: "SMBIOS types 1, 2, 3 and 11",
		},
		{
			Key: "genid", Group: group, Change: NewPod,
			Value:   pattern(uuidPattern, "not a UUID").or("auto off"),
			Default: "`auto`",
			Meaning: "VM generation ID; `auto` changes on resume from a copy, restore, clone",
		},
	}
}

func smbiosOptions() []Option {
	value := text(64).outside("value longer than 64 characters")
	names := []string{
		"manufacturer", "product", "version", "serial", "sku", "family",
		"board-manufacturer", "board-product", "board-version", "board-serial", "board-asset", "board-location",
		"chassis-manufacturer", "chassis-version", "chassis-serial", "chassis-asset", "chassis-sku",
	}
	options := make([]Option, 0, len(names)+1)
	for _, name := range names {
		options = append(options, Option{Name: name, Value: value})
	}
	return append(options, Option{Name: "oem", Value: value.list(), Meaning: "type 11, several joined with +"})
}

func cpuRows() []Annotation {
	const group = "CPU"
	return []Annotation{
		{
			Key: "accelerator", Group: group, Change: NewPod, Readers: []Program{Scheduler},
			Value:   word("kvm tcg"),
			Default: "`kvm`",
			Meaning: "never falls back; `tcg` (emulation) only where `podvirt-config` says `emulation: allow`",
		},
		{
			Key: "arch", Group: group, Change: NewPod, Readers: []Program{Scheduler},
			Value:   word("amd64 arm64 s390x riscv64"),
			Default: "the node's",
			Meaning: "architecture of the guest; another one than the node's needs `accelerator: tcg`",
		},
		{
			Key: "cpu-model", Group: group, Change: NewPod, Readers: []Program{Scheduler},
			Value:   pattern(`(?:`+alternatives(cpuModels)+`)-v[0-9]{1,2}`, "no such model").or("host-model host-passthrough max " + cpuModels),
			Default: "`cpu.default-model`, built-in `host-model`; `max` with TCG",
			Meaning: "CPU the guest sees: a word, or a name the node's QEMU knows",
		},
		{
			Key: "cpu-features", Group: group, Change: NewPod, Readers: []Program{Scheduler}, Kind: Set,
			Value:    word(cpuFeatures).wrong("no such feature"),
			Policies: []string{"require", "force", "optional", "disable", "forbid"},
			Default:  "none",
			Meaning:  "policy per CPU feature: `name[=policy],…`; `require` where none is written",
		},
		{
			Key: "cpu-topology", Group: group, Change: NewPod, Readers: []Program{Scheduler}, Kind: Options,
			Options: []Option{
				{Name: "sockets", Value: integer(0, 4096)}, {Name: "dies", Value: integer(0, 4096)},
				{Name: "clusters", Value: integer(0, 4096)}, {Name: "cores", Value: integer(0, 4096)},
				{Name: "threads", Value: integer(0, 4096)},
			},
			Default: "1 socket × N cores × 1 thread; N is the CPU limit rounded up, or 1",
			Meaning: "vCPUs = the product",
		},
		{
			Key: "cpu-max", Group: group, Change: NewPod, Readers: []Program{Scheduler},
			Value:   integer(1, 4096).later(""),
			Default: "4 × start value, at most the machine's and the node model's maximum",
			Meaning: "ceiling for hot-plug",
		},
		{
			Key: "cpu-dedicated", Group: group, Change: NewPod, Readers: []Program{Scheduler},
			Value:   boolean(),
			Default: "`false`",
			Meaning: "one exclusive host CPU per vCPU: equal whole CPU requests and limits, in a Pod of class Guaranteed",
		},
		{
			Key: "emulator-thread", Group: group, Change: NewPod, Readers: []Program{Scheduler},
			Value:   word("shared isolated isolated-even"),
			Default: "`shared`",
			Meaning: "one more CPU for QEMU's own and IO threads, or as many as make the sum even",
		},
		{
			Key: "realtime", Group: group, Change: NewPod, Readers: []Program{Scheduler},
			Value:   pattern(vcpuListPattern, "not true, false or a list of vCPUs; example: 0-3,^1").or("true false").later("false"),
			Default: "`false`",
			Meaning: "vCPU threads SCHED_FIFO 1, memory locked, no balloon",
		},
		{
			Key: "iothreads", Group: group, Change: Restart, Kind: Options,
			Value:   word("none shared auto pool").later("shared"),
			Options: []Option{{Name: "count", Value: integer(1, 256).later("")}},
			Default: "`shared` (1)",
			Meaning: "`auto`: one per disk that asks, at most 2 × vCPUs; `pool`: N threads serve all disks",
		},
		{
			Key: "numa", Group: group, Change: NewPod, Readers: []Program{Scheduler},
			Value:   integer(1, 64).wrong("not one of none, single, mirror and no number of cells; example: 2").or("none single mirror").notNow("mirror"),
			Default: "`single` with hugepages or dedicated CPUs where it fits a cell, else `none`",
			Meaning: "one host cell; guest cells copy the host cells used; exactly N cells of equal share",
		},
	}
}

// alternatives makes a pattern of words.
func alternatives(words string) string {
	quoted := strings.Fields(words)
	for i := range quoted {
		quoted[i] = regexp.QuoteMeta(quoted[i])
	}
	return strings.Join(quoted, "|")
}

func memoryRows() []Annotation {
	const group = "Memory"
	return []Annotation{
		{
			Key: "memory", Group: group, Change: Live, Readers: []Program{Scheduler},
			Value:   memorySize().atLeast(16<<20, "below 16Mi"),
			Default: "hugepages limit, else memory limit less overhead",
			Meaning: "memory the guest sees at boot; rounded up to whole MiB; 16Mi or more",
		},
		{
			Key: "memory-max", Group: group, Change: NewPod, Readers: []Program{Scheduler},
			Value:   memorySize().later(""),
			Default: "4 × `memory` for guests of 1Gi and more, else `memory`",
			Meaning: "ceiling for virtio-mem",
		},
		{
			Key: "memory-min", Group: group, Change: Live,
			Value:   memorySize().later(""),
			Default: "`memory` / 4",
			Meaning: "floor for the balloon and for resize down",
		},
		{
			Key: "hugepages", Group: group, Change: NewPod, Readers: []Program{Scheduler},
			Value:   word("2Mi 1Gi 64Ki 512Mi 16Gi 1Mi 32Mi"),
			Default: "from `limits.hugepages-*`",
			Meaning: "back guest memory with huge pages",
		},
		{
			Key: "memory-backing", Group: group, Change: NewPod, Kind: Options,
			Options: []Option{
				{Name: "source", Value: word("anonymous memfd").later("anonymous")}, {Name: "shared", Value: boolean().later("false")},
				{Name: "prealloc", Value: boolean().later("false")}, {Name: "locked", Value: boolean().later("false")},
			},
			Default: "memfd and shared when a share, vhost-user or hugepages need it",
			Meaning: "what guest memory is made of",
		},
		{
			Key: "memory-balloon", Group: group, Change: Live, Kind: Options,
			Value: word("on off").later("on"),
			Options: []Option{
				{Name: "stats", Value: duration("10s").later("10s")}, {Name: "reporting", Value: boolean().later("true")},
				{Name: "auto", Value: boolean().later("false")},
			},
			Default: "`on,stats=10s,reporting=true,auto=false`",
			Meaning: "balloon, statistics period, free page reporting, automatic inflation",
		},
		{
			Key: "memory-merge", Group: group, Change: NewPod,
			Value:   boolean().later(""),
			Default: "`true` where the node runs KSM (`memory.ksm-nodes`, default none)",
			Meaning: "KSM may merge guest pages",
		},
		{
			Key: "memory-overhead", Group: group, Change: NewPod,
			Value:   memorySize(),
			Default: "`0`",
			Meaning: "added to the computed overhead",
		},
	}
}

// memorySize is a quantity that guest memory arithmetic can hold: below 1Ei.
func memorySize() Value {
	v := quantity("4Gi")
	v.Max, v.Above = 1<<60, "above 1Ei"
	return v
}
