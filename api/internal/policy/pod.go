package policy

import (
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"

	"podvirt.dev/api"
)

// annotations gives the annotations of variables.template as a map of strings.
const annotations = `variables.template.?metadata.?annotations.orValue({}).transformMapEntry(k, v, {string(k): string(v)})`

// podVariables show the parts of a Pod or template that the rules look at.
func podVariables() []admissionv1.Variable {
	return []admissionv1.Variable{
		{Name: "a", Expression: annotations},
		{Name: "label", Expression: `string(variables.template.?metadata.?labels[?"podvirt.dev/vm"].orValue(""))`},
		{Name: "spec", Expression: `variables.template.spec`},
		{Name: "vm", Expression: `variables.spec.containers.filter(c, c.name == "vm")`},
		{Name: "limits", Expression: `variables.vm.size() == 0 ? {} : variables.vm[0].?resources.?limits.orValue({})`},
		{Name: "mounts", Expression: `variables.vm.map(c, c.?volumeDevices.orValue([]).map(d, [string(d.devicePath), string(d.name), "block"])
  + c.?volumeMounts.orValue([]).map(m, [string(m.mountPath), string(m.name), "mount"])).flatten().map(m, [m[0].endsWith("/")
  && size(m[0]) > 1 ? m[0].substring(0, size(m[0]) - 1) : m[0], m[1], m[2]])`},
		{Name: "paths", Expression: `variables.mounts.map(m, m[0]).filter(p, p.startsWith("/vm/"))`},
		{Name: "diskMounts", Expression: `variables.mounts.filter(m, m[0].matches(r'^/vm/(?:disks|cdroms)/[^/]+$')
  && ` + diskNameWrong() + ` == "")`},
		{Name: "diskPaths", Expression: `lists.range(variables.diskMounts.size()).filter(i, variables.diskMounts
  .map(m, m[0].split("/")[3]).indexOf(variables.diskMounts[i][0].split("/")[3]) == i).map(i, variables.diskMounts[i])`},
		{Name: "volumes", Expression: `variables.spec.?volumes.orValue([])`},
	}
}

// diskNameWrong says what is wrong with the disk's name at the end of the path m[0].
func diskNameWrong() string {
	long, bad := api.DeviceNameMessages("disk")
	return fmt.Sprintf(`(size(m[0].split("/")[3]) > %d ? %s : !m[0].split("/")[3].matches(%s) ? %s : "")`,
		api.MaxDeviceName("disk"), str(long), re(api.DeviceNamePattern), str(bad))
}

// podRules are the twins of resolve.go in package api and of package podspec: what only the Pod shows.
func podRules() []admissionv1.Variable {
	variables := []admissionv1.Variable{
		{Name: "diskNames", Expression: `variables.diskPaths.map(m, m[0].split("/")[3]).distinct()`},
		{Name: "made", Expression: `variables.disks.filter(k, !(k.substring(17) in variables.diskNames) && ("empty" in variables.o[k]
  || variables.o[k][?"type"].orValue("") == "cdrom"))`},
		{Name: "fieldRules", Expression: fieldRules()},
		{Name: "pathRules", Expression: pathRules()},
		{Name: "overhead", Expression: overhead(`variables.guest`, "10")},
		{Name: "memoryRules", Expression: memoryRules()},
		{Name: "numaRules", Expression: numaRules()},
		{Name: "hostDeviceRules", Expression: hostDeviceRules()},
		{Name: "cpuLimit", Expression: milliCPU("variables.limits")},
		{Name: "cpuRequest", Expression: `variables.vm.size() == 0 ? 0 : ` + milliCPU("variables.vm[0].?resources.?requests.orValue({})")},
		{Name: "dedicatedRules", Expression: dedicatedRules()},
		{Name: "guaranteedRules", Expression: guaranteedRules()},
	}
	parts := []string{
		"variables.fieldRules", "variables.pathRules", "variables.memoryRules", "variables.numaRules", "variables.hostDeviceRules",
		"variables.dedicatedRules", "variables.guaranteedRules",
	}
	for _, g := range slices.Concat(split("podDiskRules", podDiskRules(), 2, asIs), split("lifeRules", lifeRules(), 2, asIs)) {
		variables = append(variables, admissionv1.Variable{Name: g.name, Expression: g.expression})
		parts = append(parts, "variables."+g.name)
	}
	return append(variables, admissionv1.Variable{Name: "pod", Expression: strings.Join(parts, " + ")})
}

func fieldRules() string {
	return fmt.Sprintf(`(variables.vm.size() == 0 ? ["podvirt.dev/vm: " + %[1]s + ": no container is named \"vm\""] : [])
+ [%[2]s].filter(v, v != "" && v != variables.label).map(v, "podvirt.dev/vm: " + %[3]s + ": differs from the label podvirt.dev/vm " + %[1]s)
+ (variables.spec.?hostNetwork.orValue(false) ? ["spec.hostNetwork: true: not allowed on a VM Pod"] : [])
+ (variables.spec.?hostPID.orValue(false) ? ["spec.hostPID: true: not allowed on a VM Pod"] : [])
+ (variables.spec.?shareProcessNamespace.orValue(false) ? ["spec.shareProcessNamespace: true: not allowed on a VM Pod"] : [])
+ variables.spec.containers.filter(c, c.name != "vm").filter(c, c.?image.orValue("") == %[4]s
    || c.?volumeDevices.orValue([]).exists(d, d.devicePath.startsWith("/vm/disks/")) || c.?volumeMounts.orValue([])
  .exists(m, m.mountPath.startsWith("/vm/disks/")))
  .map(c, "spec.containers[" + c.name + "]: claims to be the VM; only container \"vm\" can")
+ variables.spec.containers.filter(c, c.name != "vm").map(c, c.?ports.orValue([]).filter(p, p.containerPort >= %[5]d
  && p.containerPort <= %[6]d)
  .map(p, "spec.containers[" + c.name + "].ports: " + string(p.containerPort) + ": kept for the launcher (%[5]d to %[6]d)")).flatten()`,
		quoted("variables.label"), good(api.KeyVM), quoted("v"), str(api.AliasImage), api.PortBase, api.PortStatus)
}

// pathPattern matches the paths of a list as package api has it: an entry with a slash at its end holds one name.
func pathPattern(paths []string) string {
	var alternatives []string
	for _, path := range paths {
		if strings.HasSuffix(path, "/") {
			path += "[^/]+"
		}
		alternatives = append(alternatives, path)
	}
	return strings.Join(alternatives, "|")
}

func pathRules() string {
	return fmt.Sprintf(`variables.paths.filter(p, !p.matches(%[1]s)).map(p, p + ": unknown path")
+ variables.paths.filter(p, p.matches(%[2]s)).map(p, p + ": " + %[3]s)
+ variables.mounts.filter(m, m[0].matches(r'^/vm/(?:disks|cdroms)/[^/]+$') && %[4]s != "").map(m, m[0] + ": " + %[4]s)`,
		re(pathPattern(api.KnownPaths())), re(pathPattern(api.LaterPaths())), str(api.NotYet), diskNameWrong())
}

// claim is the claim behind the volume named x, "" for none.
func claim(x string) string {
	return fmt.Sprintf(`variables.volumes.filter(v, v.name == %s)
  .map(v, string(v.?persistentVolumeClaim.?claimName.orValue("")))[?0].orValue("")`, x)
}

func podDiskRules() []string {
	name := `m[0].split("/")[3]`
	ordered := `variables.diskNames.filter(n, n == "root") + variables.diskNames.filter(n, n != "root").sort()`
	return []string{
		// no such disk
		`variables.disks.filter(k, !(k.substring(17) in variables.diskNames) && !(k in variables.made))
  .map(k, k + ": no such disk: " + [` + ordered + `].map(ns, ns.size() == 0 ? "none is mounted below /vm/disks or /vm/cdroms"
  : ns.join(", "))[0])`,
		// one name at two paths; one claim at two paths
		`lists.range(variables.diskMounts.size()).map(i, [i, variables.diskMounts
  .map(m, ` + name + `).indexOf(variables.diskMounts[i][0].split("/")[3])]).filter(p, p[1] < p[0])
  .map(p, variables.diskMounts[p[0]][0] + ": disk " + variables.diskMounts[p[0]][0].split("/")[3] + " is also at "
  + variables.diskMounts[p[1]][0])`,
		`[variables.diskPaths.filter(m, ` + claim("m[1]") + ` != "").map(m, [m[0], ` + claim("m[1]") + `])].map(cs, lists.range(cs.size())
  .filter(i, i > 0).map(i, [i, cs.slice(0, i).map(c, c[1]).lastIndexOf(cs[i][1])]).filter(p, p[1] >= 0)
  .map(p, cs[p[0]][0] + ": claim " + cs[p[0]][1] + " is also at " + cs[p[1]][0])).flatten()`,
		// options that do not suit what is at the path
		`variables.disks.filter(k, variables.diskPaths.exists(m, m[0] == "/vm/cdroms/" + k.substring(17)) && !("type" in variables.o[k])
  && variables.o[k][?"bus"].orValue("") == "virtio").map(k, k + ": bus=virtio: there is no virtio CD-ROM; sata, scsi, usb")`,
		`variables.disks.filter(k, variables.diskPaths.exists(m, m[0] == "/vm/cdroms/" + k.substring(17)) && !("type" in variables.o[k])
  && variables.o[k][?"bus"].orValue("") == "nvme").map(k, k + ": bus=nvme: there is no NVMe CD-ROM; sata, scsi, usb")`,
		`variables.diskPaths.filter(m, variables.o[?"podvirt.dev/disk." + ` + name + `].optMap(o, "empty" in o).orValue(false))
  .map(m, "podvirt.dev/disk." + ` + name + ` + ": empty and a volume at " + m[0] + " exclude each other")`,
		`variables.disks.filter(k, k.substring(17) in variables.diskNames || k in variables.made)
  .filter(k, variables.o[k][?"queues"].orValue("").matches(r'^[0-9]+$') && int(variables.o[k]["queues"]) > variables.vcpus).map(k, k
  + ": queues=" + string(int(variables.o[k]["queues"])) + ": " + string(variables.vcpus) + " vCPUs")`,
		`variables.made.filter(k, "empty" in variables.o[k]).map(k, variables.mounts.filter(m, m[0] == "/vm/scratch").map(m, variables.volumes
  .filter(v, v.name == m[1] && v.?emptyDir.?sizeLimit.hasValue()).map(v, v.emptyDir.sizeLimit)).flatten()
  .filter(s, quantity(string(s)).isGreaterThan(quantity("0")) && quantity(variables.o[k]["empty"]).isGreaterThan(quantity(string(s))))
  .map(s, k + ": empty=" + variables.o[k]["empty"] + ": /vm/scratch has "
  + ` + showBytes("int(quantity(string(s)).asApproximateFloat())") + `)).flatten()`,
		// a serial number that is too long for the default bus
		`variables.disks.filter(k, !("bus" in variables.o[k]) && variables.o[k][?"type"].orValue("") != "cdrom" && !variables.diskPaths
  .exists(m, m[0] == "/vm/cdroms/" + k.substring(17)) && (k.substring(17) in variables.diskNames || k in variables.made)
  && size(bytes(variables.o[k][?"serial"].orValue(""))) > 20)
  .map(k, k + ": serial=" + ` + shown(option("serial")) + ` + ": " + string(size(bytes(` + option("serial") + `)))
  + " characters, virtio allows 20")`,
		// unsafe caching of what must not be lost
		`variables.diskPaths.filter(m, variables.o[?"podvirt.dev/disk." + ` + name + `].optMap(o, o[?"cache"].orValue("") == "unsafe"
  && !(o[?"overlay"].orValue("") in ["true", "start"])).orValue(false)
    && !variables.volumes.exists(v, v.name == m[1] && has(v.image) && m[0].startsWith("/vm/disks/") && variables.o["podvirt.dev/disk."
  + ` + name + `][?"type"].orValue("") != "cdrom" && !("overlay" in variables.o["podvirt.dev/disk." + ` + name + `])))
  .map(m, "podvirt.dev/disk." + ` + name + ` + ": cache=unsafe: only with overlay or empty")`,
	}
}

// showMiB writes whole GiB as such; x is an integer expression.
func showMiB(x string) string {
	return fmt.Sprintf(`[%s].map(n, n > 0 && n %% 1024 == 0 ? string(n / 1024) + "Gi" : string(n) + "Mi")[0]`, x)
}

// showBytes writes whole MiB and GiB as such.
func showBytes(x string) string {
	return fmt.Sprintf(`[%s].map(b, b %% 1048576 != 0 ? string(b) : b > 0 && b %% 1073741824 == 0 ? string(b / 1073741824) + "Gi"
  : string(b / 1048576) + "Mi")[0]`, x)
}

// mib is a quantity rounded up to whole MiB.
func mib(x string) string {
	return fmt.Sprintf(`(int(quantity(%s).asApproximateFloat()) + 1048575) / 1048576`, x)
}

// fixedOverhead is the part of the overhead that does not depend on guest memory (api.Footprint).
func fixedOverhead() string {
	seeds := fmt.Sprintf(`(variables.paths.exists(p, p == %s || p.startsWith(%s)) ? 1 : 0) + variables.paths.filter(p, p == %s
  || p.matches(r'^/vm/config/[^/]+$')).size()`, str(api.PathCloudInit), str(api.PathSSHKeys), str(api.PathSysprep))
	shares := fmt.Sprintf(`variables.paths.filter(p, p.startsWith(%s)).size()`, str(api.PathShares))
	networks := `variables.a[?"k8s.v1.cni.cncf.io/networks"].optMap(n, n.trim() == "" ? 0 : n.trim().startsWith("[")
  ? n.findAll(r'"name"\s*:').size() : n.trim().split(",").size()).orValue(0)`
	none := `variables.nics.filter(k, variables.o[k][?"binding"].orValue("") == "none").size()`
	queues := `variables.nics.map(k, variables.o[k][?"queues"].orValue("auto").matches(r'^[0-9]+$') ? (int(variables.o[k]["queues"]) - 1) / 16
  : 0).sum()`
	video := fmt.Sprintf(`[variables.o[?%s].optMap(o, o[?"vram"].orValue("")).orValue("")].map(m, m.matches(%s) ? %s : 0).map(n, n < %d ? %d
  : n)[0]`,
		str(api.KeyVideo), re(api.QuantityPattern), mib("m"), api.OverheadVideo, api.OverheadVideo)
	return fmt.Sprintf(`%d + %d * variables.vcpus + %d + %d * (variables.diskNames.size() + variables.made.size() + %s + 1 - %s + %s + %s)
  + %d * %s
  + (%s ? 0 : %s) + (%s in ["2.0", "1.2"] ? %d : 0) + (%s == "tcg" ? %d : 0) + [%s].map(m, m == "" ? 0 : %s)[0]`,
		api.OverheadFixed, api.OverheadVCPU, api.OverheadIOThread, api.OverheadDevice, seeds, none, networks, queues,
		api.OverheadShare, shares, headless(), video, mainOf(api.KeyTPM), api.OverheadTPM, good(api.KeyAccelerator), api.OverheadTCG,
		good(api.KeyMemoryOverhead), mib("m"))
}

// headless says whether the VM has no graphics card: one that QEMU gives its kernel to has none unless it asks.
func headless() string {
	return fmt.Sprintf(`(%[1]s == "none" || (%[1]s == "" && variables.o[?%[2]s].optMap(o, "path" in o).orValue(false)))`,
		mainOf(api.KeyVideo), str(api.KeyKernel))
}

// overhead is the whole, for guest memory in MiB and a factor in tenths.
func overhead(guest, tenths string) string {
	return fmt.Sprintf(`((%s + (%s + 511) / 512) * (%s) + 9) / 10`, fixedOverhead(), guest, tenths)
}

// limitBytes is limits.memory of container vm in bytes.
const limitBytes = `int(quantity(string(variables.limits["memory"])).asApproximateFloat())`

func memoryRules() string {
	return fmt.Sprintf(`(variables.page != "" ? (%[1]s) :
  !("memory" in variables.limits) ? (!("podvirt.dev/memory" in variables.a)
  ? ["podvirt.dev/memory: not set, and container vm has no memory limit to take it from"] : []) :
  %[2]s != "" ? (variables.guest + variables.overhead > variables.limit
    ? [%[3]s + %[4]s + " + " + %[5]s + " overhead = " + string(variables.guest + variables.overhead) + "Mi exceeds limits.memory " + %[6]s
  + ": raise the limit to "
      + string(variables.guest + variables.overhead) + "Mi or lower memory to " + string(variables.limit > variables.overhead
  ? variables.limit - variables.overhead : 0) + "Mi"] : []) :
  %[7]s
    ? ["podvirt.dev/memory: limits.memory " + %[6]s + " less " + %[8]s + " overhead leaves less than 16Mi for the guest"] : [])`,
		hugepageRules(), good(api.KeyMemory), whole(api.KeyMemory), showMiB("variables.guest"), showMiB("variables.overhead"),
		showBytes(limitBytes), `variables.limit - (`+fixedOverhead()+`) < `+fmt.Sprint(api.MinMemory+1), showMiB(`variables.overhead`))
}

// hugepageRules are for a VM whose memory is huge pages.
func hugepageRules() string {
	line := func(text string) string { return str(api.KeyHugepages+": ") + " + " + text }
	return fmt.Sprintf(`(variables.huge.size() > 1 ? [%[1]s + ": two page sizes requested"] : [])
  + (variables.guest == 0 ? ["podvirt.dev/memory: not set, and container vm has no limit of hugepages-" + variables.page + " to take it from"] : [])
  + (variables.guest %% variables.pageMiB != 0 ? [%[2]s + " is not a multiple of " + variables.page] :
    variables.asked != 0 && variables.vm.size() > 0 && variables.pool != variables.asked * 1048576 ? [%[3]s + " is " + %[4]s + ", memory is " + %[5]s
  + ": they must be equal"] : [])
  + ("memory" in variables.limits && variables.limit > 0 && variables.overhead > variables.limit
    ? [%[6]s + " overhead exceeds limits.memory " + %[7]s + ": raise the limit to " + string(variables.overhead) + "Mi"] : [])`,
		line(`variables.huge.map(h, "limits.hugepages-" + h).join(", ")`), line(showMiB("variables.guest")),
		line(`"limits.hugepages-" + variables.page`), showBytes("variables.pool"), showMiB("variables.asked"),
		line(showMiB("variables.overhead")), showBytes(limitBytes))
}

// numaRules are about the division into cells and the profile that binding to a cell needs.
func numaRules() string {
	const profile = `[variables.vm.map(c, string(c.?securityContext.?seccompProfile.?type.orValue(""))).filter(p, p != "")
  + [string(variables.spec.?securityContext.?seccompProfile.?type.orValue(""))]].map(l, l[0])[0]`
	return fmt.Sprintf(`[%[1]s].filter(n, n != "" && n != "none").map(n,
  (%[2]s == "RuntimeDefault" ? [%[3]s + "needs seccompProfile Localhost %[4]s; the Pod says RuntimeDefault"] : [])
  + (!n.matches(r'^[0-9]+$') ? [] :
    (variables.vcpus %% int(n) != 0 ? [%[3]s + string(variables.vcpus) + " vCPUs cannot be divided into " + string(int(n)) + " cells"] : [])
    + ((variables.page != "" || variables.asked > 0) && variables.guest / (variables.page == "" ? 1 : variables.pageMiB) %% int(n) != 0
  ? [%[3]s + %[5]s + " cannot be divided into " + string(int(n)) + " cells"] : []))).flatten()`,
		good(api.KeyNUMA), profile, whole(api.KeyNUMA), api.LocalhostProfile, showMiB("variables.guest"))
}

func lifeRules() []string {
	shutdown := str(api.KeyShutdown)
	grace := `(has(variables.spec.terminationGracePeriodSeconds) ? variables.spec.terminationGracePeriodSeconds : 30)`
	return []string{
		fmt.Sprintf(`[%[1]s].filter(k, k in variables.o && "timeout" in variables.o[k]
  && duration(variables.o[k]["timeout"]) >= duration(string(%[2]s) + "s")).map(k, %[3]s + "timeout " + variables.o[k]["timeout"]
  + " does not fit in terminationGracePeriodSeconds " + string(%[2]s))`,
			shutdown, grace, whole(api.KeyShutdown)),
		fmt.Sprintf(`(%s == "attach" && variables.vm.size() > 0 && !(variables.vm[0].?stdin.orValue(false)
  && variables.vm[0].?tty.orValue(false)) ? [%s + "attach needs stdin: true and tty: true on container vm"] : [])`,
			mainOf(api.KeyConsole), whole(api.KeyConsole)),
		fmt.Sprintf(`(%s in ["nocloud", "config-drive"] && !variables.paths.exists(p, p == %s
  || (p.startsWith(%s) && %s != "off")) ? [%s + "nothing is mounted at /vm/cloud-init"] : [])`,
			mainOf(api.KeyCloudInit), str(api.PathCloudInit), str(api.PathSSHKeys), good(api.KeySSHKeys), whole(api.KeyCloudInit)),
		fmt.Sprintf(`[variables.spec.?nodeSelector[?"kubernetes.io/arch"].orValue("")].filter(n, n != "" && %[1]s != "" && %[1]s != n
  && %[2]s != "tcg").map(n, %[3]s + "arch " + %[1]s + " on an " + n + " node needs accelerator tcg")`,
			good(api.KeyArch), good(api.KeyAccelerator), whole(api.KeyArch)),
		fmt.Sprintf(`[%[1]s != "" ? %[1]s : variables.spec.?nodeSelector[?"kubernetes.io/arch"].orValue("")].filter(n, %[2]s == "diag288"
  && n != "" && n != "s390x").map(n, %[3]s + "diag288 is for s390x")`,
			good(api.KeyArch), mainOf(api.KeyWatchdog), whole(api.KeyWatchdog)),
		fmt.Sprintf(`(%[1]s == "itco" && !(%[2]s == "" && %[4]s != "arm64"
  && variables.spec.?nodeSelector[?"kubernetes.io/arch"].orValue("") != "arm64" || %[2]s == "q35" || %[2]s.startsWith("pc-q35-")) ? [%[3]s
  + "itco needs machine q35"] : [])`,
			mainOf(api.KeyWatchdog), good(api.KeyMachine), whole(api.KeyWatchdog), good(api.KeyArch)),
		fmt.Sprintf(`(%s in ["2.0", "1.2"] && %s == "required" && !variables.paths.exists(p, p == %s) ? [%s
  + "persistent=required but nothing is mounted at %s"] : [])`,
			mainOf(api.KeyTPM), optionOf(api.KeyTPM, "persistent"), str(api.PathState), whole(api.KeyTPM), api.PathState),
	}
}

// guestVariables are guest memory and memory limit in MiB, and the huge pages behind guest memory: the sizes that
// container vm has a limit of, the size that counts ("": none), the size in MiB, the limit in bytes.
func guestVariables() []admissionv1.Variable {
	sizes := make([]string, 0, len(pageSizes()))
	for _, size := range pageSizes() {
		sizes = append(sizes, fmt.Sprintf("%s: %d", str(size), api.PageMiB(size)))
	}
	return []admissionv1.Variable{
		{Name: "limit", Expression: `variables.limits[?"memory"].optMap(m, int(quantity(string(m)).asApproximateFloat()) / 1048576).orValue(0)`},
		{Name: "huge", Expression: `variables.limits.transformList(k, v, k.startsWith("hugepages-")
  && quantity(string(v)).isGreaterThan(quantity("0")), k.substring(10)).sort()`},
		{Name: "page", Expression: fmt.Sprintf(`%[1]s != "" ? %[1]s : variables.huge[?0].orValue("")`, good(api.KeyHugepages))},
		{Name: "pageMiB", Expression: fmt.Sprintf(`{%s}[?variables.page].orValue(1)`, strings.Join(sizes, ", "))},
		{Name: "pool", Expression: `variables.limits[?"hugepages-" + variables.page].optMap(v, int(quantity(string(v)).asApproximateFloat())).orValue(0)`},
		{Name: "asked", Expression: fmt.Sprintf(`[%s].map(m, m == "" ? 0 : %s)[0]`, good(api.KeyMemory), mib("m"))},
		{Name: "guest", Expression: `variables.asked > 0 ? variables.asked : variables.pool / 1048576`},
	}
}

// pageSizes are the sizes of huge pages that an annotation may name.
func pageSizes() []string {
	for _, a := range api.Annotations() {
		if api.Prefix+a.Key == api.KeyHugepages {
			return a.Value.Words
		}
	}
	return nil
}

// all joins variables of several steps in the order in which each may use those before it.
func all(groups ...[]admissionv1.Variable) []admissionv1.Variable { return slices.Concat(groups...) }
