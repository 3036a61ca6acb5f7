package policy

import (
	"fmt"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"podvirt.dev/api"
)

// The policies of this file tell of what is legal and unwise: they warn, and refuse nothing. An annotation with a mistake
// is left to podvirt-validate-vm.

// warningPolicy returns a policy and its binding with Warn. Where it cannot be evaluated nobody is warned: params is what
// the policy is evaluated with, nil for nothing.
func warningPolicy(name string, spec admissionv1.ValidatingAdmissionPolicySpec, params *admissionv1.ParamRef) []runtime.Object {
	objects := validatingPolicy(name, spec, nil)
	ignore := admissionv1.Ignore
	objects[0].(*admissionv1.ValidatingAdmissionPolicy).Spec.FailurePolicy = &ignore
	binding := objects[1].(*admissionv1.ValidatingAdmissionPolicyBinding)
	binding.Spec.ValidationActions, binding.Spec.ParamRef = []admissionv1.ValidationAction{admissionv1.Warn}, params
	return objects
}

// warnVM warns of a VM Pod, or of the template of one.
func warnVM() []runtime.Object {
	variables := all(
		[]admissionv1.Variable{{Name: "template", Expression: template}}, podVariables(), optionItems(), openPorts("variables.a"),
		[]admissionv1.Variable{
			{Name: "bootLines", Expression: bootLines()},
			{Name: "hardDiskLines", Expression: hardDiskLines()},
			{Name: "portLines", Expression: portLines()},
			{Name: "probeLines", Expression: probeLines()},
			{Name: "warnings", Expression: sorted("variables.bootLines + variables.hardDiskLines + variables.portLines + variables.probeLines")},
		},
	)
	return warningPolicy("podvirt-warn-vm", admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: podsAndOwners(), MatchConditions: aboutVMs(), Variables: variables, Validations: deny("warnings"),
	}, nil)
}

// optionItems are the items of the annotations of disks, NICs and devices, their boot numbers, the names of all disks and
// those of CD-ROMs.
func optionItems() []admissionv1.Variable {
	return []admissionv1.Variable{
		{Name: "items", Expression: fmt.Sprintf(`variables.a.transformMap(k, v, k.matches(r'^podvirt\.dev/(?:disk|nic|device)\..+$')
  && v.matches(%s), v.findAll(r'%s').map(i, i.trim().replace("\"", "")))`, re(api.ItemsPattern), api.ItemPattern)},
		{Name: "boot", Expression: `variables.items.transformMap(k, items, items.exists(i, i.matches(r'^boot=0*[1-9][0-9]{0,8}$')),
  int(items.filter(i, i.startsWith("boot="))[0].substring(5)))`},
		{Name: "diskNames", Expression: fmt.Sprintf(`(variables.diskPaths.map(m, m[0].split("/")[3])
  + variables.items.transformList(k, items, k.startsWith(%[1]s) && items.exists(i, i.startsWith("empty=") || i == "type=cdrom"),
  k.substring(%[2]d))).distinct()`, str(api.KeyDisk), len(api.KeyDisk))},
		{Name: "cdroms", Expression: fmt.Sprintf(`variables.diskNames.filter(n, variables.items[?%s + n].orValue([]).exists(i, i == "type=cdrom")
  || (variables.diskPaths.exists(m, m[0] == %s + n) && !variables.items[?%s + n].orValue([]).exists(i, i.startsWith("type="))))`,
			str(api.KeyDisk), str(api.PathCDROMs), str(api.KeyDisk))},
	}
}

// bootLines warns of disks without a number beside devices with one (VM-056).
func bootLines() string {
	return fmt.Sprintf(`variables.boot.size() == 0 ? [] : variables.diskNames.map(n, %s + n).filter(k, !(k in variables.boot)).map(k, k + ": " + %s)`,
		str(api.KeyDisk), str(api.NoBootNumber))
}

// hardDiskLines warns of hard disks that BIOS leaves out for the first one.
func hardDiskLines() string {
	before, after, _ := strings.Cut(api.OneHardDisk("|"), "|")
	firmware := fmt.Sprintf(`variables.a[?%s].orValue("").split(",")[0].trim()`, str(api.KeyFirmware))
	return fmt.Sprintf(`%[1]s in ["uefi", "none"] || (%[1]s != "bios" && variables.a[?%[2]s].orValue("") == "arm64") ? [] :
  [variables.diskNames.filter(n, !(n in variables.cdroms)).map(n, %[3]s + n).filter(k, k in variables.boot)
  .sortBy(k, variables.boot[k])].map(ks, ks.slice(ks.size() > 0 ? 1 : 0, ks.size()).map(k, k + ": " + %[4]s + ks[0].substring(%[5]d) + %[6]s)).flatten()`,
		firmware, str(api.KeyArch), str(api.KeyDisk), str(before), len(api.Prefix), str(after))
}

// openPorts are the items of ports= of the NIC on the Pod network, each [first, last, protocol]; none: all are open.
// "listed" is the option as it was written.
func openPorts(annotations string) []admissionv1.Variable {
	return []admissionv1.Variable{
		{Name: "listed", Expression: fmt.Sprintf(`%[1]s[?%[2]s].orValue("").matches(%[3]s) ? %[1]s[%[2]s].findAll(r'%[4]s')
  .map(i, i.trim().replace("\"", "")).filter(i, i.startsWith("ports=")).map(i, i.substring(6))[?0].orValue("") : ""`,
			annotations, str(api.KeyNIC+api.PodNetwork), re(api.ItemsPattern), api.ItemPattern)},
		{Name: "open", Expression: `variables.listed.split("+").filter(p, p.matches(r'^[0-9]{1,5}(?:-[0-9]{1,5})?(?:/[a-z]+)?$'))
  .map(p, [p.split("/"), p.split("/")[0].split("-")]).map(p, [p[1][0], p[1].size() > 1 ? p[1][1] : p[1][0], p[0].size() > 1 ? p[0][1] : "tcp"])`},
	}
}

// closed says whether the port with the number and the protocol does not reach the guest, and is not the launcher's own.
func closed(number, protocol string) string {
	return fmt.Sprintf(`(variables.open.size() > 0 && !(%[1]s >= %[3]d && %[1]s <= %[4]d)
  && !variables.open.exists(o, o[2] == %[2]s.lowerAscii() && int(o[0]) <= %[1]s && %[1]s <= int(o[1])))`,
		number, protocol, api.PortBase, api.PortStatus)
}

// notListed is the end of a line about a port that does not reach the guest.
const notListed = `": not among ports=" + variables.listed + " of ` + api.KeyNIC + api.PodNetwork + `: it does not reach the guest"`

// portLines warns of container ports that are not forwarded (NW-018).
func portLines() string {
	return fmt.Sprintf(`variables.vm.map(c, c.?ports.orValue([]).filter(p, %s).map(p, "spec.containers[vm].ports: " + string(p.containerPort)
  + %s)).flatten()`, closed("p.containerPort", `p.?protocol.orValue("TCP")`), notListed)
}

// probeLines warns of probes of ports that are not forwarded (NW-018), and of those that begin before the last one may
// have ended (VM-175). A port by name is that of the container; a probe of another host is none of ours.
func probeLines() string {
	ports := `[c[p].?httpGet, c[p].?tcpSocket, c[p].?grpc].filter(h, h.hasValue()).map(h, h.value())
  .filter(h, h.?host.orValue("") == "").map(h, dyn(h.port))`
	number := `type(n) == string ? c.?ports.orValue([]).filter(q, q.?name.orValue("") == n).map(q, int(q.containerPort)) : [int(n)]`
	return fmt.Sprintf(`variables.vm.map(c, ["livenessProbe", "readinessProbe", "startupProbe"].filter(p, c[?p].hasValue()).map(p,
  (%s.map(n, %s).flatten().filter(n, %s).map(n, "port " + string(n) + %s)
  + [[int(c[p].?periodSeconds.orValue(10)), int(c[p].?timeoutSeconds.orValue(1))]].filter(s, s[0] <= s[1])
  .map(s, "periodSeconds " + string(s[0]) + " is not above timeoutSeconds " + string(s[1]))).map(l, "spec.containers[vm]." + p + ": " + l))).flatten(2)`,
		ports, number, closed("n", `"tcp"`), notListed)
}

// warnService warns of a Service with a target port that does not reach the guest of a VM behind it (NW-053). It is
// evaluated with every VM Pod of the namespace: the API server has them at hand, for its Node authorizer.
func warnService() []runtime.Object {
	operations := []admissionv1.OperationType{admissionv1.Create, admissionv1.Update}
	return warningPolicy("podvirt-warn-service", admissionv1.ValidatingAdmissionPolicySpec{
		ParamKind:        &admissionv1.ParamKind{APIVersion: "v1", Kind: "Pod"},
		MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{rule("", operations, "services")}},
		Variables:        serviceVariables("object", "params"), Validations: deny("warnings"),
	}, allOf(&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: api.LabelVM, Operator: metav1.LabelSelectorOpExists}}}))
}

// warnServed is the same for a VM that comes after the Service.
func warnServed() []runtime.Object {
	variables := append([]admissionv1.Variable{{Name: "template", Expression: template}}, serviceVariables("params", "variables.template")...)
	return warningPolicy("podvirt-warn-served", admissionv1.ValidatingAdmissionPolicySpec{
		ParamKind:        &admissionv1.ParamKind{APIVersion: "v1", Kind: "Service"},
		MatchConstraints: podsAndOwners(), MatchConditions: aboutVMs(), Variables: variables, Validations: deny("warnings"),
	}, allOf(&metav1.LabelSelector{}))
}

// allOf are the objects of a kind in the namespace that is asked about; where there are none nobody is warned.
func allOf(selector *metav1.LabelSelector) *admissionv1.ParamRef {
	allow := admissionv1.AllowAction
	return &admissionv1.ParamRef{Selector: selector, ParameterNotFoundAction: &allow}
}

// serviceVariables find the target ports of a Service that do not reach the guest of a Pod.
func serviceVariables(service, pod string) []admissionv1.Variable {
	return all(openPorts(pod+`.?metadata.?annotations.orValue({})`), []admissionv1.Variable{
		{Name: "selector", Expression: service + `.spec.?selector.orValue({})`},
		{Name: "selected", Expression: `variables.selector.size() > 0 && variables.selector.all(k, ` + pod + `.?metadata.?labels[?k].orValue("")
  == variables.selector[k])`},
		{Name: "targets", Expression: targets(service, pod)},
		{Name: "beside", Expression: pod + `.spec.containers.filter(c, c.name != "vm").map(c, c.?ports.orValue([]).map(p, int(p.containerPort))).flatten()`},
		{Name: "warnings", Expression: fmt.Sprintf(`(!variables.selected ? [] : variables.targets.filter(t, !(t[1] in variables.beside)).filter(t, %s)
  .map(t, "Service " + %s.metadata.?name.orValue("") + ", port " + t[0] + ": target port " + string(t[1])
  + " of VM " + %s.metadata.labels[%s] + %s)).distinct()`,
			closed("t[1]", "t[2]"), service, pod, str(api.LabelVM), notListed)},
	})
}

// targets are the target ports of a Service on a Pod: [name, number, protocol]. One by name is that of any container.
func targets(service, pod string) string {
	named := pod + `.spec.containers.map(c, c.?ports.orValue([]).filter(q, q.?name.orValue("") == n).map(q, int(q.containerPort))).flatten()`
	return fmt.Sprintf(`%s.spec.?ports.orValue([]).map(p, [dyn(p.?targetPort.orValue(p.port))].map(n, type(n) == string ? %s : [int(n)]).flatten()
  .map(n, [dyn(p.?name.orValue(string(p.port))), dyn(n), dyn(p.?protocol.orValue("TCP"))])).flatten(1)`, service, named)
}
