package policy

import (
	"fmt"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"

	"podvirt.dev/api"
)

// rules are the twins of check.go in package api: rules between options and between annotations. They look only at
// annotations whose grammar is right (variables.good, variables.o). Each is a list of whole lines.
func rules() []admissionv1.Variable {
	return []admissionv1.Variable{
		{Name: "disks", Expression: sortedGood(api.KeyDisk)},
		{Name: "nics", Expression: sortedGood(api.KeyNIC)},
		{Name: "vcpus", Expression: vcpus()},
		{Name: "cpuRules", Expression: cpuRules()},
		{Name: "firmwareRules", Expression: firmwareRules()},
		{Name: "kernelRules", Expression: kernelRules()},
		{Name: "diskRules", Expression: diskRules()},
		{Name: "limitRules", Expression: limitRules()},
		{Name: "nicRules", Expression: nicRules()},
		{Name: "portRules", Expression: portRules()},
		{Name: "uniqueRules", Expression: uniqueRules()},
		{Name: "rules", Expression: "variables.cpuRules + variables.firmwareRules + variables.kernelRules + variables.diskRules + variables.limitRules + " +
			"variables.nicRules + variables.portRules + variables.uniqueRules"},
	}
}

func sortedGood(prefix string) string {
	return fmt.Sprintf(`variables.good.filter(k, k.startsWith(%s)).sort()`, str(prefix))
}

// option is one option of the device annotation k, "" where it is not given.
func option(name string) string { return fmt.Sprintf(`variables.o[k][?%s].orValue("")`, str(name)) }

// whole is the beginning of a line about a whole value: podvirt.dev/KEY: "VALUE": .
func whole(key string) string {
	return fmt.Sprintf(`%s + %s + ": "`, str(key+": "), quoted(fmt.Sprintf("variables.a[%s]", str(key))))
}

// good is the value of an annotation with one value, "" where it is not given or wrong.
func good(key string) string { return fmt.Sprintf(`variables.word[?%s].orValue("")`, str(key)) }

// mainOf is the main word of an annotation with options, "" where it is not given or wrong.
func mainOf(key string) string { return fmt.Sprintf(`variables.mainWord[?%s].orValue("")`, str(key)) }

// optionOf is one option of an annotation about the whole VM, "" where it is not given or wrong.
func optionOf(key, name string) string {
	return fmt.Sprintf(`variables.o[?%s].optMap(o, o[?%s].orValue("")).orValue("")`, str(key), str(name))
}

// figure is one figure of the CPU topology t, 1 where it is not given.
func figure(name string) string { return fmt.Sprintf(`int(t[?%s].orValue("1"))`, str(name)) }

const topologyNames = `["sockets", "dies", "clusters", "cores", "threads"]`

func vcpuProduct() string {
	return figure("sockets") + " * " + figure("dies") + " * " + figure("clusters") + " * " + figure("cores") + " * " + figure("threads")
}

// vcpus is the product of the topology, else the CPU limit rounded up less what QEMU's own threads get of it, and at
// least 1.
func vcpus() string {
	return fmt.Sprintf(`variables.o[?%[1]s].optMap(t, %[2]s).orValue(variables.limits[?"cpu"].optMap(q, [quantity(string(q)).asApproximateFloat()]
  .map(f, double(int(f)) < f ? int(f) + 1 : int(f))[0]).optMap(n, n - (%[3]s == "isolated" ? 1 : %[3]s == "isolated-even" ? 1 + n %% 2 : 0))
  .optMap(n, n < 1 ? 1 : n).orValue(1))`,
		str(api.KeyCPUTopology), vcpuProduct(), good(api.KeyEmulatorThread))
}

func cpuRules() string {
	begin := whole(api.KeyCPUTopology)
	return fmt.Sprintf(`variables.o[?%[1]s].optMap(t,
  %[2]s.filter(n, n in t && int(t[n]) == 0).map(n, %[3]s + n + " is 0; must be at least 1")
  + [%[4]s].filter(n, n > %[5]d).map(n, %[3]s + string(n) + " vCPUs; the machine type allows %[5]d")
  + [%[4]s].filter(n, n > 0 && %[6]s != "").map(n, [int(%[6]s), %[7]s]).map(p,
      p[0] < %[4]s ? %[8]s + string(p[0]) + " is below the " + string(%[4]s) + " vCPUs it starts with" :
      p[0] %% p[1] != 0 ? %[8]s + string(p[0]) + " is not a multiple of cores x threads = " + string(p[1]) : "").filter(l, l != "")
).orValue([]) + (%[9]s.startsWith("isolated") && %[10]s != "true" ? [%[11]s + "needs cpu-dedicated"] : [])`,
		str(api.KeyCPUTopology), topologyNames, begin, vcpuProduct(), api.MaxVCPUs, good(api.KeyCPUMax),
		figure("cores")+" * "+figure("threads"), whole(api.KeyCPUMax), good(api.KeyEmulatorThread), good(api.KeyCPUDedicated), whole(api.KeyEmulatorThread))
}

func firmwareRules() string {
	return fmt.Sprintf(`[%[1]s].filter(k, k in variables.o).map(k,
  (variables.o[k][?"secure-boot"].orValue("") == "true" && (%[2]s == "bios" || %[2]s == "none" || (%[2]s == "" && %[3]s != "arm64"))
  ? [%[4]s + "secure-boot needs uefi"] : [])
  + (%[2]s == "bios" && %[3]s == "arm64" ? [%[4]s + "arm64 has no bios; use uefi"] : [])
  + (variables.o[k][?"secure-boot"].orValue("") == "true" && %[5]s.matches(r'^pc(?:-i440fx-.*)?$') ? [%[4]s + "secure-boot needs machine q35"] : [])
  + (variables.o[k][?"secure-boot"].orValue("") == "true" && %[6]s == "false" ? [%[7]s + "smm=false contradicts firmware secure-boot"] : [])
  ).flatten()
  + (%[8]s == "1.2" && %[9]s == "crb" ? [%[10]s] : [])`,
		str(api.KeyFirmware), mainOf(api.KeyFirmware), good(api.KeyArch), whole(api.KeyFirmware), good(api.KeyMachine),
		optionOf(api.KeyFeatures, "smm"), whole(api.KeyFeatures),
		mainOf(api.KeyTPM), optionOf(api.KeyTPM, "model"), str(api.KeyTPM+": model=crb: a TPM 1.2 has only tis"))
}

func kernelRules() string {
	return fmt.Sprintf(`[%[1]s].filter(k, k in variables.good && !("path" in variables.o[k])).map(k, %[2]s + "path is missing; example: path=boot/vmlinuz")
  + [%[3]s].filter(k, k in variables.good && !(%[1]s in variables.a)).map(k, %[4]s + "set without kernel")
  + [%[1]s].filter(k, k in variables.good && "path" in variables.o[k]).map(k,
      "shim" in variables.o[k] && %[5]s != "true" ? k + ": shim=" + %[6]s + ": needs firmware secure-boot" :
      !("shim" in variables.o[k]) && %[5]s == "true" ? %[2]s + "firmware secure-boot needs shim" : "").filter(l, l != "")`,
		str(api.KeyKernel), whole(api.KeyKernel), str(api.KeyKernelArgs), whole(api.KeyKernelArgs),
		optionOf(api.KeyFirmware, "secure-boot"), shown(option("shim")))
}

// each maps the keys of a variable through tests; each test is a condition on k and what to say, with k in front.
func each(keys string, tests ...string) string {
	return fmt.Sprintf("%s.map(k, [\n  %s\n].filter(l, l != \"\").map(l, k + \": \" + l)).flatten()", keys, strings.Join(tests, ",\n  "))
}

// say gives the text where the condition holds, else "".
func say(condition, text string) string { return fmt.Sprintf(`%s ? %s : ""`, condition, text) }

// saying begins the text with OPTION=VALUE as written.
func saying(name, text string) string {
	return fmt.Sprintf(`%s + %s + %s`, str(name+"="), shown(option(name)), text)
}

func diskRules() string {
	kind, bus, cache := option("type"), option("bus"), option("cache")
	limit := fmt.Sprintf(`(%s == "virtio" && %s != "cdrom" ? 20 : 36)`, bus, kind)
	return each("variables.disks",
		say(kind+` == "cdrom" && `+bus+` == "virtio"`, `"bus=virtio: there is no virtio CD-ROM; sata, scsi, usb"`),
		say(kind+` == "cdrom" && `+bus+` == "nvme"`, `"bus=nvme: there is no NVMe CD-ROM; sata, scsi, usb"`),
		say(bus+` != "" && size(bytes(`+option("serial")+`)) > `+limit,
			saying("serial", `": " + string(size(bytes(`+option("serial")+`))) + " characters, " + `+bus+` + " allows " + string(`+limit+`)`)),
		say(option("io")+` == "native" && `+cache+` in ["writethrough", "writeback", "unsafe"]`, `"io=native: needs cache none or directsync"`),
		say(option("shareable")+` == "true" && (!(`+cache+` in ["", "none", "directsync"]) || `+option("format")+` == "qcow2")`,
			`"shareable: needs cache none or directsync and a raw disk"`),
		say(option("iothread")+` in ["dedicated", "pool"] && `+bus+` in ["sata", "usb"]`, saying("iothread", `": not on bus " + `+bus)),
		say(option("blocksize")+`.contains("/") && int(`+option("blocksize")+`.split("/")[0]) > int(`+option("blocksize")+`.split("/")[1])`,
			saying("blocksize", `": logical above physical"`)),
		say(option("tray")+` == "open" && `+kind+` == "disk"`, `"tray=open: only a CD-ROM has a tray"`),
		say(option("empty")+` != "" && `+kind+` == "cdrom"`, saying("empty", `": a CD-ROM cannot be written"`)),
	)
}

// limitRules are those about iops and bps: pairs of options that exclude each other, or of which one needs the other.
func limitRules() string {
	var excludes, needs []string
	for _, unit := range []string{"iops", "bps"} {
		for _, direction := range []string{"-read", "-write"} {
			excludes = append(excludes, list([]string{unit, unit + direction}))
		}
		for _, direction := range []string{"", "-read", "-write"} {
			limit := unit + direction
			needs = append(needs, list([]string{limit + "-max", limit}), list([]string{limit + "-max-length", limit + "-max"}))
		}
	}
	return fmt.Sprintf(`variables.disks.map(k,
  [%s].filter(p, p[0] in variables.o[k] && p[1] in variables.o[k]).map(p, k + ": " + p[0] + ": excludes " + p[1])
  + [%s].filter(p, p[0] in variables.o[k] && !(p[1] in variables.o[k])).map(p, k + ": " + p[0] + ": needs " + p[1])).flatten()`,
		strings.Join(excludes, ", "), strings.Join(needs, ", "))
}

func nicRules() string {
	binding, model, mac := option("binding"), option("model"), option("mac")
	octets := mac + `.replace("-", ":").split(":")`
	lowerMAC := mac + `.replace("-", ":").lowerAscii()`
	return each("variables.nics",
		say(binding+` == "masquerade" && k != `+str(api.KeyNIC+api.PodNetwork), `"binding=masquerade: masquerade works only on the pod network; use wire"`),
		say(`size(`+octets+`) > 1 && size(`+octets+`) != 6`, `"mac=" + `+lowerMAC+` + ": " + string(size(`+octets+`)) + " octets; a MAC has 6"`),
		say(`size(`+octets+`) == 6 && `+mac+`.matches(r'^.[13579bdfBDF]')`, `"mac=" + `+lowerMAC+` + ": " + `+lowerMAC+`
  + " is a multicast address"`),
		say(option("queues")+`.matches(r'^[0-9]+$') && int(`+option("queues")+`) > 1 && !(`+model+` in ["", "virtio", "vmxnet3", "igb"])`,
			saying("queues", `": model " + `+model+` + " has one queue"`)),
		say(option("tx-ring")+` in ["512", "1024"] && `+binding+` != "vhostuser"`, saying("tx-ring", `": above 256 only for vhostuser"`)),
		say(option("link")+` != "" && `+binding+` == "sriov"`, saying("link", `": link has no meaning with sriov"`)),
		say(option("ports")+` != "" && !(`+binding+` in ["", "masquerade", "passt"])`,
			saying("ports", `": ports has no meaning with " + `+binding+` + "; use a NetworkPolicy"`)),
		say(binding+` == "vhostuser" && `+option("socket")+` == ""`, `"vhostuser needs socket="`),
		prefixRule("v4-cidr", 30, 32), prefixRule("v6-cidr", 126, 128),
	)
}

func prefixRule(name string, smallest, bits int) string {
	length := option(name) + `.split("/")[1]`
	return fmt.Sprintf(`%s != "" ? (int(%s) > %d ? %s : int(%s) > %d ? %s : "") : ""`, option(name),
		length, bits, saying(name, fmt.Sprintf(`": prefix longer than %d bits"`, bits)),
		length, smallest, saying(name, `": /" + `+length+` + " has no room for gateway and guest"`))
}

// portRules judges each item of option ports: first, last and protocol.
func portRules() string {
	item := `[p, p.split("/")[0].split("-")[0], p.split("/")[0].contains("-") ? p.split("/")[0].split("-")[1]
  : p.split("/")[0], p.contains("/") ? p.split("/")[1] : "tcp"]`
	return fmt.Sprintf(`variables.nics.filter(k, "ports" in variables.o[k]).map(k, [variables.o[k]["ports"].split("+")].map(ps,
  (ps.size() > %[5]d ? ["ports: " + string(ps.size()) + " items; at most %[5]d"] : [])
  + ps.map(p, %[1]s).map(p,
    int(p[1]) < 1 || int(p[1]) > 65535 || int(p[2]) < 1 || int(p[2]) > 65535 ? "ports=" + %[2]s + ": not a port (1 to 65535)" :
    int(p[1]) > int(p[2]) ? "ports=" + %[2]s + ": start above end" :
    int(p[1]) <= %[4]d && int(p[2]) >= %[3]d && p[3] == "tcp" ? "ports=" + %[2]s + ": kept for the launcher (%[3]d to %[4]d)" : "")
).flatten().filter(l, l != "").map(l, k + ": " + l)).flatten()`, item, shown("p[0]"), api.PortBase, api.PortStatus, api.MaxPorts)
}

// uniqueRules refuses a boot number, an ACPI index or a default route that an earlier device has.
func uniqueRules() string {
	order := `(variables.disks + ` + sortedGood(api.KeyDevice) + ` + variables.nics)`
	number := func(name, text string) string {
		same := fmt.Sprintf(`%[1]s.filter(x, %[2]s in variables.o[x]
  && int(variables.o[x][%[2]s]) == int(variables.o[k][%[2]s]))[0]`, order, str(name))
		return fmt.Sprintf(`%[1]s.filter(k, %[2]s in variables.o[k]).filter(k, %[3]s != k).map(k, k + ": %[4]s=" + variables.o[k][%[2]s]
  + ": %[5]s " + %[3]s.substring(%[6]d))`,
			order, str(name), same, name, text, len(api.Prefix))
	}
	route := `variables.nics.filter(x, variables.o[x][?"default-route"].orValue("") == "true")`
	return number("boot", "also used by") + "\n+ " + number("acpi-index", "also on") + "\n+ " +
		fmt.Sprintf(`%[1]s.filter(k, %[1]s[0] != k).map(k, k + ": default-route=true: also on "
  + %[1]s[0].substring(%[2]d))`, route, len(api.Prefix))
}
