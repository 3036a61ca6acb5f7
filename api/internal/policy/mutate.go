package policy

import (
	"fmt"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"podvirt.dev/api"
)

// newVMPods matches VM Pods as they are created.
func newVMPods() (*admissionv1.MatchResources, []admissionv1.MatchCondition) {
	return &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{
			rule("", []admissionv1.OperationType{admissionv1.Create}, "pods"),
		}}, []admissionv1.MatchCondition{
			{Name: "vm", Expression: `object.?metadata.?labels[?"podvirt.dev/vm"].orValue("") != "" && object.spec.containers
  .exists(c, c.name == "vm")`},
		}
}

// at is where container vm is.
const at = `"/spec/containers/" + string(variables.index)`

// setting reads a key of podvirt-config, with the built-in default where it is not set.
func setting(key, otherwise string) string {
	return fmt.Sprintf(`params.?data[?%s].orValue(%s)`, str(key), str(otherwise))
}

// mutation is one JSON patch: a sum of lists of operations. Each sees what those before it have done.
func mutation(lists ...string) admissionv1.Mutation {
	return admissionv1.Mutation{
		PatchType: admissionv1.PatchTypeJSONPatch,
		JSONPatch: &admissionv1.JSONPatch{Expression: strings.Join(lists, "\n+ ")},
	}
}

// add is an operation that happens only where the condition holds.
func add(condition, path, value string) string {
	return fmt.Sprintf(`(%s ? [JSONPatch{op: "add", path: %s, value: %s}] : [])`, condition, path, value)
}

// annotation sets an annotation that is not there.
func annotation(condition, key, value string) string {
	return add(fmt.Sprintf(`!(%s in variables.a) && (%s)`, str(key), condition),
		fmt.Sprintf(`"/metadata/annotations/" + jsonpatch.escapeKey(%s)`, str(key)), value)
}

func commonVariables() []admissionv1.Variable {
	return []admissionv1.Variable{
		{Name: "template", Expression: "object"},
		{Name: "index", Expression: `object.spec.containers.map(c, string(c.name)).indexOf("vm")`},
	}
}

// annotationsFirst makes sure that there is a map to add annotations to.
func annotationsFirst() admissionv1.Mutation {
	return mutation(add(`!has(object.metadata.annotations)`, `"/metadata/annotations"`, `{"podvirt.dev/vm": object.metadata.labels["podvirt.dev/vm"]}`))
}

// configVM fills in the cluster's defaults from podvirt-config. It writes what the configuration says and nothing that
// is built in, so that a complete Pod stays as it is.
func configVM() []runtime.Object {
	match, conditions := newVMPods()
	variables := all(commonVariables(), []admissionv1.Variable{
		{Name: "a", Expression: annotations},
		{Name: "image", Expression: setting("launcher.image", "")},
	})
	// The API server has set imagePullPolicy by the alias, which has no tag: Always.
	tagged := `variables.image.matches(r'^.*(?:@|:[^/:]+)$') && !variables.image.endsWith(":latest")`
	alias := fmt.Sprintf(`variables.image != "" && object.spec.containers[variables.index].image == %s`, str(api.AliasImage))
	from := func(key, setting, condition string) string {
		present := fmt.Sprintf(`params.?data[?%s].orValue("") != ""`, str(setting))
		if condition != "" {
			present += " && " + condition
		}
		return annotation(present, key, fmt.Sprintf(`string(params.data[%s])`, str(setting)))
	}
	return mutatingPolicy("podvirt-config-vm", admissionv1.MutatingAdmissionPolicySpec{
		ParamKind: configParam(), MatchConstraints: match, MatchConditions: conditions, Variables: variables,
		Mutations: []admissionv1.Mutation{
			annotationsFirst(),
			mutation(
				add(alias+` && `+tagged, at+` + "/imagePullPolicy"`, `"IfNotPresent"`),
				add(alias, at+` + "/image"`, `variables.image`),
				from(api.KeyCPUModel, "cpu.default-model", fmt.Sprintf(`variables.a[?%s].orValue("kvm") != "tcg"`, str(api.KeyAccelerator))),
				from(api.KeyMachine, "machine.default", ""),
				from(api.KeyConsole, "console.default", ""),
				from(api.KeyVerbosity, "verbosity.launcher", ""),
				add(fmt.Sprintf(`!has(object.spec.runtimeClassName) && %s != ""`, setting("launcher.runtime-class", "")), `"/spec/runtimeClassName"`,
					setting("launcher.runtime-class", "")),
			),
		},
	})
}

// keepImage lets a short manifest be applied again: the image is one of the few fields of a running Pod that can be
// edited, and the alias would take the place of the image it became, which restarts the VM.
func keepImage() []runtime.Object {
	at := `object.spec.containers.map(c, string(c.name)).indexOf("vm")`
	alias := str(api.AliasImage)
	return mutatingPolicy("podvirt-keep-image", admissionv1.MutatingAdmissionPolicySpec{
		MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{
			rule("", []admissionv1.OperationType{admissionv1.Update}, "pods"),
		}},
		MatchConditions: []admissionv1.MatchCondition{{Name: "alias", Expression: `object.?metadata.?labels[?"podvirt.dev/vm"].orValue("") != ""
  && object.spec.containers.exists(c, c.name == "vm" && c.image == ` + alias + `)
  && oldObject.spec.containers.exists(c, c.name == "vm" && c.image != ` + alias + `)`}},
		Mutations: []admissionv1.Mutation{mutation(add("true", `"/spec/containers/" + string(`+at+`) + "/image"`,
			`string(oldObject.spec.containers.filter(c, c.name == "vm")[0].image)`))},
	})
}

// defaultVM completes a VM Pod to the form of vm.md 1. It adds what is missing and changes nothing that is there, apart
// from four values that the API server has filled in before: schedulerName default-scheduler,
// terminationGracePeriodSeconds 30, enableServiceLinks true, and the token of a service account nobody asked for.
func defaultVM() []runtime.Object {
	match, conditions := newVMPods()
	variables := all(commonVariables(), podVariables(), grammarOfSizes(), guestVariables(), []admissionv1.Variable{
		{Name: "c", Expression: `object.spec.containers[variables.index]`},
		{Name: "owner", Expression: `object.metadata.?ownerReferences.orValue([]).filter(r, r.?controller.orValue(false))
  .map(r, string(r.kind))`},
		{Name: "tenths", Expression: `int(` + setting("memory.overhead-factor", "1.0") + `.replace(".", ""))`},
		{Name: "overhead", Expression: overhead("variables.guest", "variables.tenths")},
		{Name: "tcg", Expression: fmt.Sprintf(`variables.a[?%s].orValue("kvm") == "tcg"`, str(api.KeyAccelerator))},
		{Name: "token", Expression: `"/var/run/secrets/kubernetes.io/serviceaccount"`},
		{Name: "tokenUsers", Expression: `object.spec.containers.filter(c, c.name != "vm").filter(c, c.?volumeMounts.orValue([])
  .exists(m, m.mountPath == variables.token)).size()
  + object.spec.?initContainers.orValue([]).filter(c, c.?volumeMounts.orValue([]).exists(m, m.mountPath == variables.token)).size()`},
		{Name: "grace", Expression: `has(object.spec.terminationGracePeriodSeconds) ? int(object.spec.terminationGracePeriodSeconds) : 30`},
	})
	return mutatingPolicy("podvirt-default-vm", admissionv1.MutatingAdmissionPolicySpec{
		ParamKind: configParam(), MatchConstraints: match, MatchConditions: conditions, Variables: variables,
		Mutations: []admissionv1.Mutation{
			annotationsFirst(), parentsFirst(), podFields(), containerFields(), resources(), token(),
			volume("pod", api.PathPod, true, podVolume()), volume("scratch", api.PathScratch, false, scratchVolume()), volume("run", api.PathRun, false,
				runVolume()),
		},
	})
}

// grammarOfSizes gives the few variables of the grammar that the overhead reads, without judging them: what is wrong is
// left to the validating policy.
func grammarOfSizes() []admissionv1.Variable {
	return []admissionv1.Variable{
		{Name: "good", Expression: fmt.Sprintf(`variables.a.transformList(k, v, k in [%s, %s] ? v.matches(%s) :
  (k in [%s, %s, %s, %s, %s, %s, %s] || k.matches(r'^podvirt\.dev/(?:disk|nic)\.')) && (v.trim() == "" || v.matches(%s)), k)`,
			str(api.KeyMemory), str(api.KeyMemoryOverhead), re(api.QuantityPattern), str(api.KeyCPUTopology), str(api.KeyVideo), str(api.KeyKernel),
			str(api.KeyTPM), str(api.KeyAccelerator), str(api.KeyHugepages), str(api.KeyNUMA), re(api.ItemsPattern))},
		{Name: "word", Expression: `variables.a.transformMap(k, v, k in variables.good, v)`},
		{Name: "mainWord", Expression: `variables.a.transformMap(k, v, k in variables.good, v.split(",")[0].trim())`},
		{Name: "pairs", Expression: fmt.Sprintf(`variables.a.transformMap(k, v, k in variables.good, v.findAll(r'%s').map(i, i.trim())
  .filter(i, i.contains("="))
  .map(i, [i.substring(0, i.indexOf("=")), i.substring(i.indexOf("=") + 1).replace("\"", "")]).filter(r, k != %s
  || r[1].matches(r'^[0-9]{1,4}$')))`,
			api.ItemPattern, str(api.KeyCPUTopology))},
		{Name: "o", Expression: `variables.pairs.transformMap(k, rs, rs.transformMapEntry(i, r, rs
  .map(r, r[0]).indexOf(r[0]) == i, {r[0]: r[1]}))`},
		{Name: "disks", Expression: sortedGood(api.KeyDisk)},
		{Name: "nics", Expression: sortedGood(api.KeyNIC)},
		{Name: "vcpus", Expression: vcpus()},
		{Name: "diskNames", Expression: `variables.diskPaths.map(m, m[0].split("/")[3]).distinct()`},
		{Name: "made", Expression: `variables.disks.filter(k, k in variables.o && !(k.substring(17) in variables.diskNames)
  && ("empty" in variables.o[k] || variables.o[k][?"type"].orValue("") == "cdrom"))`},
	}
}

// parentsFirst makes the maps that later operations add to.
func parentsFirst() admissionv1.Mutation {
	return mutation(
		add(`!has(object.spec.securityContext)`, `"/spec/securityContext"`, `{"runAsNonRoot": true}`),
		add(`!has(variables.c.securityContext)`, at+` + "/securityContext"`, `{"allowPrivilegeEscalation": false}`),
		add(`!has(variables.c.resources)`, at+` + "/resources"`, `{}`),
	)
}

// podFields are those of metadata and spec.
func podFields() admissionv1.Mutation {
	security := func(field, value string) string {
		return add(`!has(object.spec.securityContext.`+field+`)`, `"/spec/securityContext/`+field+`"`, value)
	}
	explicit := fmt.Sprintf(`variables.a[?%s].orValue("").contains("timeout=")`, str(api.KeyShutdown))
	grace := fmt.Sprintf(`(variables.grace == %d && !%s ? %d : variables.grace)`, api.KubernetesGracePeriod, explicit, api.DefaultGracePeriod)
	timeout := fmt.Sprintf(`[%s - %d].map(s, s < 1 ? 1 : s).map(s, "timeout=" + string(s) + "s")[0]`, grace, api.ShutdownMarginOfGrace)
	shutdown := str(api.KeyShutdown)
	// What binds guest memory to a cell needs the profile that lets it.
	bound := fmt.Sprintf(`(variables.page != "" || !(%s in ["", "none"]))`, good(api.KeyNUMA))
	return mutation(
		annotation(`true`, api.KeyVM, `object.metadata.labels["podvirt.dev/vm"]`),
		annotation(`variables.owner == ["StatefulSet"]`, api.KeyIdentity, `"pod"`),
		// The launcher sees no limit of huge pages unless the Pod shows it one.
		annotation(`variables.page != ""`, api.KeyHugepages, `variables.page`),
		annotation(`variables.page != "" && variables.guest > 0`, api.KeyMemory, `string(variables.guest) + "Mi"`),
		annotation(`true`, api.KeyShutdown, `"agent+acpi," + `+timeout),
		add(shutdown+` in variables.a && variables.a[`+shutdown+`] != "" && !`+explicit, `"/metadata/annotations/"
  + jsonpatch.escapeKey(`+shutdown+`)`,
			`variables.a[`+shutdown+`] + "," + `+timeout),
		add(fmt.Sprintf(`variables.grace == %d && !%s`, api.KubernetesGracePeriod, explicit), `"/spec/terminationGracePeriodSeconds"`,
			fmt.Sprint(api.DefaultGracePeriod)),
		add(`object.spec.?schedulerName.orValue("default-scheduler") == "default-scheduler"`, `"/spec/schedulerName"`, str(api.SchedulerName)),
		add(`object.spec.?enableServiceLinks.orValue(true)`, `"/spec/enableServiceLinks"`, `false`),
		security("runAsNonRoot", "true"), security("runAsUser", fmt.Sprint(api.LauncherUID)), security("runAsGroup", fmt.Sprint(api.LauncherUID)),
		security("fsGroup", fmt.Sprint(api.LauncherUID)),
		security("seccompProfile", bound+` ? {"type": "Localhost", "localhostProfile": `+str(api.LocalhostProfile)+`}
  : {"type": "RuntimeDefault"}`),
	)
}

// containerFields are those of container vm.
func containerFields() admissionv1.Mutation {
	security := func(field, value string) string {
		return add(`!has(variables.c.securityContext.`+field+`)`, at+` + "/securityContext/`+field+`"`, value)
	}
	return mutation(
		add(`!has(variables.c.args) && !has(variables.c.command)`, at+` + "/args"`, `["run"]`),
		security("allowPrivilegeEscalation", "false"), security("readOnlyRootFilesystem", "true"), security("capabilities", `{"drop": ["ALL"]}`),
		add(`!has(variables.c.resizePolicy)`, at+` + "/resizePolicy"`,
			`[{"resourceName": "cpu", "restartPolicy": "NotRequired"}, {"resourceName": "memory", "restartPolicy": "NotRequired"}]`),
	)
}

// resources are limits and requests of container vm: memory from guest memory and overhead, the CPU request from the
// vCPUs, and the devices that the accelerator needs. All of it is one patch, since the API server fills in requests
// from limits after each.
func resources() admissionv1.Mutation {
	set := func(condition, field, name, value string) string {
		return add(fmt.Sprintf(`!(%s in %s) && (%s)`, str(name), current(field), condition),
			at+fmt.Sprintf(` + "/resources/%s/" + jsonpatch.escapeKey(%s)`, field, str(name)), value)
	}
	const counted = `(variables.page == "" ? variables.guest : 0)` // guest memory in huge pages is not in limits.memory
	automatic := fmt.Sprintf(`variables.guest > 0 && !("memory" in %s) && %s != "off"`, current("limits"), setting("memory.auto-limits", "on"))
	memory := fmt.Sprintf(`string(%s * 100 / int(%s) + (%s == "not-counted" ? 0 : variables.overhead)) + "Mi"`,
		counted, setting("memory.overcommit-percent", "100"), setting("memory.guest-overhead", "counted"))
	dedicated := fmt.Sprintf(`variables.a[?%s].orValue("") == "true"`, str(api.KeyCPUDedicated))
	cpu := fmt.Sprintf(`[int(%s)].map(r, string((variables.vcpus * 1000 + r - 1) / r) + "m")[0]`, setting("cpu.allocation-ratio", "10"))
	return mutation(
		add(`!has(variables.c.resources.limits)`, at+` + "/resources/limits"`, `{}`),
		add(`!has(variables.c.resources.requests)`, at+` + "/resources/requests"`, `{}`),
		set(automatic, "limits", "memory", `string(`+counted+` + variables.overhead) + "Mi"`),
		// CPUs of one's own are never overcommitted, and the kubelet gives them to Pods of class Guaranteed only.
		set(automatic, "requests", "memory", fmt.Sprintf(`%s ? string(%s + variables.overhead) + "Mi" : %s`, dedicated, counted, memory)),
		set(fmt.Sprintf(`!(%s) && !("cpu" in %s)`, dedicated, current("limits")), "requests", "cpu", cpu),
		add(`variables.page != "" && variables.guest > 0 && !("hugepages-" + variables.page in `+current("limits")+`)`,
			at+` + "/resources/limits/hugepages-" + variables.page`, `string(variables.guest) + "Mi"`),
		set(`!variables.tcg`, "limits", api.ResourceKVM, `"1"`),
		set(`true`, "limits", api.ResourceTun, `"1"`),
		// A cluster whose kernels have no vhost-net says so by a capacity of 0: its VMs run without, slower (DP-003).
		set(`!variables.tcg && `+setting("devices.capacity.vhost-net", "1000")+` != "0"`, "limits", api.ResourceVhostNet, `"1"`),
	)
}

func current(field string) string { return `variables.c.?resources.?` + field + `.orValue({})` }

// token takes the token of the service account out of container vm, which holds no API credential, and out of the Pod
// where nobody else mounts it. A Pod that says automountServiceAccountToken itself is left alone.
func token() admissionv1.Mutation {
	const unasked = `!has(object.spec.automountServiceAccountToken)`
	const alone = unasked + ` && variables.tokenUsers == 0`
	const mount = `variables.c.?volumeMounts.orValue([]).map(m, string(m.mountPath)).indexOf(variables.token)`
	const volume = `variables.volumes.map(v, v.name.startsWith("kube-api-access-")).indexOf(true)`
	remove := func(condition, path, index string) string {
		return fmt.Sprintf(`(%s && %s >= 0 ? [JSONPatch{op: "remove", path: %s + string(%s)}] : [])`, condition, index, path, index)
	}
	return mutation(
		remove(unasked, at+` + "/volumeMounts/"`, mount),
		remove(alone, `"/spec/volumes/"`, volume),
		add(alone, `"/spec/automountServiceAccountToken"`, `false`),
	)
}

// volume adds a volume and its mount where nothing is mounted at the path. The name gets a prefix where it is taken. The
// lists are made in the same patch: between two of them an empty list is left out of the object.
func volume(name, path string, readOnly bool, source string) admissionv1.Mutation {
	missing := fmt.Sprintf(`!variables.mounts.exists(m, m[0] == %s)`, str(path))
	free := fmt.Sprintf(`(variables.volumes.exists(v, v.name == %[1]s) ? "podvirt-" + %[1]s : %[1]s)`, str(name))
	mount := fmt.Sprintf(`Object.spec.containers.volumeMounts{name: %s, mountPath: %s}`, free, str(path))
	if readOnly {
		mount = fmt.Sprintf(`Object.spec.containers.volumeMounts{name: %s, mountPath: %s, readOnly: true}`, free, str(path))
	}
	return mutation(
		add(missing+` && !has(object.spec.volumes)`, `"/spec/volumes"`, `[]`),
		add(missing, `"/spec/volumes/-"`, fmt.Sprintf(`Object.spec.volumes{name: %s, %s}`, free, source)),
		add(missing+` && !has(variables.c.volumeMounts)`, at+` + "/volumeMounts"`, `[]`),
		add(missing, at+` + "/volumeMounts/-"`, mount),
	)
}

func podVolume() string {
	var items []string
	for _, field := range []struct{ path, from string }{
		{api.PodFileName, "metadata.name"}, {api.PodFileNamespace, "metadata.namespace"}, {api.PodFileUID, "metadata.uid"},
		{api.PodFileLabels, "metadata.labels"}, {api.PodFileAnnotations, "metadata.annotations"},
	} {
		items = append(items, fmt.Sprintf(`Object.spec.volumes.downwardAPI.items{path: %s,
    fieldRef: Object.spec.volumes.downwardAPI.items.fieldRef{fieldPath: %s}}`, str(field.path), str(field.from)))
	}
	for _, limit := range []struct{ path, resource, divisor string }{
		{api.PodFileLimitsCPU, "limits.cpu", "1m"}, {api.PodFileLimitsMemory, "limits.memory", "1"},
	} {
		items = append(items, fmt.Sprintf(`Object.spec.volumes.downwardAPI.items{path: %s,
    resourceFieldRef: Object.spec.volumes.downwardAPI.items.resourceFieldRef{containerName: "vm", resource: %s, divisor: %s}}`,
			str(limit.path), str(limit.resource), str(limit.divisor)))
	}
	return "downwardAPI: Object.spec.volumes.downwardAPI{items: [\n  " + strings.Join(items, ",\n  ") + "]}"
}

// scratchVolume is an emptyDir with room for overlays and for the throw-away disks that annotations ask for.
func scratchVolume() string {
	empties := `variables.made.filter(k, variables.o[k][?"empty"].orValue("").matches(` + re(api.QuantityPattern) + `))
  .map(k, ` + mib(`variables.o[k]["empty"]`) + `).sum()`
	return `emptyDir: Object.spec.volumes.emptyDir{sizeLimit: ` + showMiB(empties+` + 1024`) + `}`
}

func runVolume() string {
	return `emptyDir: Object.spec.volumes.emptyDir{medium: "Memory", sizeLimit: ` + str(api.DefaultRunSizeLimit) + `}`
}
