package api

import "strconv"

func perDeviceRows() []Annotation {
	const group = "Per device"
	return []Annotation{
		{
			Key: "disk.NAME", Group: group, Change: Restart, Readers: []Program{Scheduler, CSIHostpath, Controller}, Kind: Options,
			Options: diskOptions(),
			Meaning: "one disk or CD-ROM; NAME is the last part of its path",
		},
		{
			Key: "nic.NAME", Group: group, Change: NewPod, Readers: []Program{Scheduler, CNIBridge, Controller}, Kind: Options,
			Options: nicOptions(),
			Meaning: "one NIC; NAME is the Pod interface, `default` the pod network",
		},
		{
			Key: "share.NAME", Group: group, Change: NewPod, Kind: Options,
			Options: later([]Option{
				{Name: "cache", Value: word("auto always never")}, {Name: "xattr", Value: boolean()},
				{Name: "readonly", Value: boolean()}, {Name: "squash", Value: boolean()},
				{Name: "threads", Value: integer(1, 64)}, {Name: "queue-size", Value: integer(2, 1024)},
			}),
			Meaning: "one virtiofs share",
		},
		{
			Key: "config.NAME", Group: group, Change: NewPod, Kind: Options,
			Options: later([]Option{
				{Name: "label", Value: text(11)}, {Name: "serial", Value: text(36)}, {Name: "fs", Value: word("iso vfat")},
			}),
			Meaning: "one small read-only disk of files",
		},
		{
			Key: "device.NAME", Group: group, Change: NewPod, Kind: Options,
			Options: []Option{
				{"resource", pattern(`claim/[^\s",]+|`+resourcePattern, "want domain/name or claim/CLAIM/REQUEST"), "required", "which allocation"},
				{"index", integer(0, 63), "next free", "which unit of several"},
				{"pci", pciAddress(), "stable layout", "guest address"},
				{"boot", bootNumber(), "none", "boot from it"},
				{"rom", word("auto on off"), "`auto`", "option ROM"},
				{"display", onOff(), "`off`", "guest picture of a vGPU in VNC"},
				{"ramfb", onOff(), "as `display`", "picture before the guest's driver loads"},
				{"numa", word("auto off").later("off"), "`off`", "hang it under the guest cell of its host cell"},
				{"migrate", word("auto off").later("off"), "`off`", "use the device's own migration"},
				{"tag", text(63).later(""), "none", "role in the guest's device metadata"},
			},
			Meaning: "how one host device appears in the guest",
		},
	}
}

func bootNumber() Value { return integer(1, 9999).outside("must be at least 1") }

func pciAddress() Value { return pattern(pciPattern, "not a PCI address; example: 0000:03:00.0") }

func diskOptions() []Option {
	options := []Option{
		{"type", word("disk cdrom lun").later("disk cdrom"), "from the path", "`lun`: raw SCSI pass-through"},
		{"bus", word("virtio scsi sata usb nvme").notNow("nvme"), "`virtio`; CD-ROM `sata` (`scsi` on `virt`); lun `scsi`", "bus of the device"},
		{"boot", bootNumber(), "", "place in the boot order over disks and NICs, lower first"},
		{"pvc", pattern(namePattern, "not a claim name").later(""), "", "hot-plugged claim"},
		{"image", pattern(imagePattern, "not an image reference").later(""), "", "hot-plugged image"},
		{"optional", boolean().later("false"), "`false`", "start without this hot-plugged disk"},
		{"empty", quantity("10Gi").atLeast(1<<20, "below 1Mi"), "", "new throw-away disk of that size in `/vm/scratch`"},
		{"file", pattern(relativePath, "not a relative path; example: disk.img"),
			"`disk.img`; the only file below `disk/`", "file inside the volume"},
		{"overlay", word("true false start"),
			"`true` for images, else `false`", "writes go to a qcow2 in `/vm/scratch`; `start`: made anew at every start"},
		{"format", word("raw qcow2"), "raw; images by header", "content of claims is never probed"},
		{"cache", word("none writethrough writeback directsync unsafe"), "`none` where O_DIRECT works, else `writethrough`", "host caching"},
		{"io", word("native threads io_uring").later("native threads"), "`native` where cache allows, else `threads`", "I/O engine"},
		{"serial", text(36), "disk name", "serial number; virtio 20 characters"},
		{"wwn", pattern(`(?:0x)?[0-9a-fA-F]{16}`, "not 16 hexadecimal digits"), "", "world wide name (scsi, sata)"},
		{"vendor", text(8), "", "SCSI vendor"},
		{"product", text(16), "", "SCSI product"},
		{"readonly", boolean(), "`false`; CD-ROM `true`", "the guest cannot write"},
		{"shareable", boolean(), "`false`", "several VMs may write"},
		{"removable", boolean(), "`false`", "removable medium (usb, scsi)"},
		{"cbt", boolean().later("false"), "`false`", "changed block tracking"},
		{"discard", word("unmap ignore"), "`unmap`; preallocated `ignore`", "give freed space back"},
		{"detect-zeroes", word("off on unmap"), "`off`", "turn writes of zeroes into discards"},
		{"blocksize", pattern(`(?:512|1024|2048|4096)(?:/(?:512|1024|2048|4096))?(?:/[1-9][0-9]{2,7})?`,
			"not a block size; example: 512/4096").or("match"), "logical 512, physical of the device", "logical/physical/discard granularity"},
		{"rotational", boolean(), "`false`", "spinning disk"},
		{"error", word("stop report ignore enospc"), "`stop`", "what an I/O error does"},
		{"iothread", word("none shared dedicated pool").later("shared"), "`shared`", "thread that serves the disk"},
		{"queues", integer(1, 256).wrong("not auto and no whole number; example: 4").or("auto"), "vCPUs, at most 8", "virtio queues"},
		{"reservation", boolean().later("false"), "`false`", "SCSI persistent reservations (type lun)"},
		{"tray", word("closed open"), "`closed`", "CD-ROM tray"},
		{"pci", pciAddress().later(""), "stable layout", "fixed guest address"},
		{"tag", text(63).later(""), "", "goes to the guest's device metadata"},
	}
	return append(options, limitOptions()...)
}

// limitOptions are the throttling options of a disk: iops and bps, each alone, -read and -write, with bursts.
func limitOptions() []Option {
	var options []Option
	for _, unit := range []struct {
		name  string
		value Value
	}{{"iops", integer(1, 1<<40)}, {"bps", quantity("100Mi")}} {
		for _, direction := range []string{"", "-read", "-write"} {
			name := unit.name + direction
			options = append(options,
				Option{name, unit.value, "none", "limit"},
				Option{name + "-max", unit.value, "none", "burst"},
				Option{name + "-max-length", duration("10s").atLeast(1e9, "at least 1s"), "none", "length of the burst"})
		}
	}
	return append(options,
		Option{"iops-size", quantity("64Ki"), "none", "bytes that count as one operation"},
		Option{"throttle-group", pattern(DeviceNamePattern, "not a name"), "none", "disks of one group share their limits"})
}

func nicOptions() []Option {
	address := pattern(ipv4Pattern+"|"+ipv6Pattern, "not an address")
	options := []Option{
		{"binding", word("masquerade wire bridge passt macvtap sriov vhostuser vdpa none").later("masquerade wire bridge none"),
			"`network.default-binding`; others `network.secondary-binding`", "how the Pod interface becomes a NIC"},
		{"network", pattern(namePattern, "not a network name").later(""), "none", "makes the interface from `vm-network.NAME`"},
		{"model", word("virtio e1000e e1000 igb rtl8139 vmxnet3 ne2k_pci pcnet"), "`virtio`", "device seen by the guest"},
		{"mac", macAddress(), "Multus' request, else `vm` on masquerade, else `cni`", "hardware address, or where it comes from"},
		{"queues", integer(1, 256).wrong("not auto and no whole number; example: 4").outside("1 to 256").or("auto"),
			"vCPUs, at most 16", "queue pairs"},
		{"vhost", word("auto on off"), "on if the container has `podvirt.dev/vhost-net`", "kernel back end"},
		{"rx-ring", word("256 512 1024"), "256", "receive ring"},
		{"tx-ring", word("256 512 1024"), "256", "transmit ring; above 256 only for vhostuser"},
		{"mtu", integer(68, 65521).wrong("not auto and no whole number; example: 1400").or("auto"),
			"MTU of the Pod interface", "told by virtio, DHCP, RA"},
		{"link", word("up down"), "`up`", "carrier of the virtual cable"},
		{"rate-in", bitRate(), "none", "limit towards the guest, bit/s"},
		{"rate-out", bitRate(), "none", "limit from the guest, bit/s"},
		{"boot", bootNumber(), "none", "boot order; gives the NIC its PXE ROM"},
		{"rom", word("auto on off"), "on with `boot`", "option ROM"},
		{"ports", pattern(portPattern, "not a port (1 to 65535)").list(),
			"all", "with masquerade, passt: only these come in; `P`, `P-Q`, each with `/udp` or `/sctp`"},
		{"v4-cidr", pattern(ipv4Pattern+`/[0-9]{1,2}`, "not an IPv4 prefix; example: 10.0.2.0/24"),
			"`network.v4-cidr`", "inside network of masquerade"},
		{"v6-cidr", pattern(ipv6Pattern+`/[0-9]{1,3}`, "not an IPv6 prefix; example: fd10:0:2::/120"),
			"`network.v6-cidr`", "inside network of masquerade"},
		{"ip-family", word("auto 4 6 46"), "families of the Pod interface", "which families the guest is given"},
		{"dhcp", word("auto on off"), "on when the Pod interface has an address", "the launcher answers DHCPv4 and DHCPv6"},
		{"ra", word("auto on off"), "as `dhcp`", "the launcher answers router solicitations"},
		{"dhcp-dns", address.or("auto none").list(), "the Pod's resolv.conf", "name servers"},
		{"dhcp-search", pattern(domainPattern, "not a domain").or("auto none").list(), "the Pod's resolv.conf", "search domains"},
		{"dhcp-ntp", address.list(), "none", "time servers"},
		{"dhcp-tftp", text(255), "none", "boot server"},
		{"dhcp-bootfile", text(255), "none", "boot file"},
		{"default-route", word("auto true false"), "`default`, or the first NIC where there is none", "the guest's default route is here"},
		{"renew", boolean().later("false"), "`false`", "link flap after migration"},
		{"spoof-check", onOff().later(""), "`on` on the pod network with wire, bridge", "drops foreign source addresses"},
		{"pci", pciAddress().later(""), "stable layout", "guest address"},
		{"tag", text(63).later(""), "none", "role in the guest's device metadata"},
		{"acpi-index", integer(1, 16383), "none", "guest name eno<n>"},
		{"resource", pattern(resourcePattern, "want domain/name").later(""), "NAD's resourceName", "resource that holds the device"},
		{"failover", pattern(DeviceNamePattern, "not a NIC name").later(""), "none", "standby pair of a VF"},
		{"socket", pattern(absolutePath, "not an absolute path").later(""), "none", "vhostuser socket"},
		{"socket-mode", word("client server").later(""), "`server`", "who listens"},
	}
	for n := 224; n <= 254; n++ {
		options = append(options, Option{"dhcp-" + strconv.Itoa(n), text(255), "none", "private DHCP option"})
	}
	return options
}

func macAddress() Value {
	return pattern(octetsPattern, "not a MAC address; example: 02:00:00:00:00:01").or("vm pod cni")
}

func bitRate() Value {
	return quantity("100M").atLeast(8000, "below 8k").or("none")
}
