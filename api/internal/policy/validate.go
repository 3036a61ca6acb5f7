package policy

import (
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"podvirt.dev/api"
)

// template is where a kind of object holds the Pod: request.resource.resource decides.
const template = `request.resource.resource == "pods" ? object : request.resource.resource == "cronjobs"
  ? object.spec.jobTemplate.spec.template : object.spec.template`

// oldTemplate is the same before an update.
const oldTemplate = `request.resource.resource == "pods" ? oldObject : request.resource.resource == "cronjobs"
  ? oldObject.spec.jobTemplate.spec.template : oldObject.spec.template`

// podsAndOwners matches Pods and every kind that makes them from a template.
func podsAndOwners() *admissionv1.MatchResources {
	operations := []admissionv1.OperationType{admissionv1.Create, admissionv1.Update}
	return &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{
		rule("", operations, "pods"),
		rule("apps", operations, "deployments", "statefulsets", "replicasets"),
		rule("batch", operations, "jobs", "cronjobs"),
	}}
}

// aboutVMs lets only objects through that make a VM Pod, and updates only where they change what is judged.
func aboutVMs() []admissionv1.MatchCondition {
	label := `(%s).?metadata.?labels[?"podvirt.dev/vm"].orValue("") != ""`
	return []admissionv1.MatchCondition{
		{Name: "vm", Expression: fmt.Sprintf(label, template)},
		{Name: "changed", Expression: `request.operation == "CREATE" || oldObject == null
  || ((` + template + `).?metadata.?annotations != (` + oldTemplate +
			`).?metadata.?annotations || (` + template + `).?metadata.?labels != (` + oldTemplate + `).?metadata.?labels
  || (request.resource.resource != "pods" && (` +
			template + `).spec != (` + oldTemplate + `).spec))`},
	}
}

// shownBytes bounds a message: the API server drops one of more than 5 KiB.
const shownBytes = 4000

// deny refuses with all lines in one message, since Kubernetes reports one message of one line.
func deny(lines string) []admissionv1.Validation {
	return []admissionv1.Validation{{
		Expression: fmt.Sprintf("size(variables.%s) == 0", lines),
		Message:    "the VM's annotations or Pod fields are wrong",
		MessageExpression: fmt.Sprintf(`[lists.range(variables.%[1]s.size()).filter(i, size(variables.%[1]s.slice(0, i
  + 1).join(" | ")) < %[2]d).size()].map(n,
  variables.%[1]s.slice(0, n).join(" | ") + (n < variables.%[1]s.size() ? " | and " + string(variables.%[1]s.size() - n) + " more"
  : ""))[0]`, lines, shownBytes),
	}}
}

// sorted orders lines by key, each once.
func sorted(lines string) string {
	return fmt.Sprintf(`(%s).distinct().sortBy(l, l.replace(": ", " ", 1))`, lines)
}

func validateVM() []runtime.Object {
	variables := all(
		[]admissionv1.Variable{{Name: "template", Expression: template}}, podVariables(), grammar(), rules(), guestVariables(), podRules(),
		[]admissionv1.Variable{
			{Name: "reserved", Expression: reserved()},
			{Name: "errors", Expression: sorted("variables.grammar + variables.rules + variables.pod + variables.reserved")},
		},
	)
	return validatingPolicy("podvirt-validate-vm", admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: podsAndOwners(), MatchConditions: aboutVMs(), Variables: variables, Validations: deny("errors"),
	}, nil)
}

// reserved refuses notes of one program to another where a user writes them into a new object.
func reserved() string {
	var entries []string
	for _, a := range api.Annotations() {
		by := ""
		if a.Writer == api.Scheduler {
			by = "is set by the scheduler"
		}
		if a.Key == "status" {
			by = "is set by podvirt"
		}
		if by != "" {
			entries = append(entries, fmt.Sprintf("%s: %s", str(api.Prefix+a.Key), str(by)))
		}
	}
	slices.Sort(entries)
	return fmt.Sprintf(`request.operation != "CREATE" || request.userInfo.username.startsWith("system:serviceaccount:%s:") ? [] :
  {%s}.transformList(k, by, k in variables.a, k + ": " + %s + ": "
  + by)`, api.SystemNamespace, strings.Join(entries, ", "), quoted("variables.a[k]"))
}

// validateVMConfig refuses what podvirt-config forbids. It is a policy of its own, because a policy with a parameter
// does nothing where the parameter is missing.
func validateVMConfig() []runtime.Object {
	base := `a[?"podvirt.dev/cpu-model"].orValue("")`
	base = "variables." + base
	listed := `params.?data[?"cpu.obsolete-models"].orValue("").split(",").map(m, m.trim())`
	plain := `variables.model.matches(r'^.+-v[0-9]{1,15}$') ? variables.model.substring(0, variables.model.lastIndexOf("-v"))
  : variables.model`
	variables := []admissionv1.Variable{
		{Name: "template", Expression: template},
		{Name: "a", Expression: annotations},
		{Name: "model", Expression: base},
		{Name: "base", Expression: plain},
		{Name: "listed", Expression: listed},
		{Name: "errors", Expression: fmt.Sprintf(
			`(variables.a[?"podvirt.dev/accelerator"].orValue("") == "tcg" && params.?data[?"emulation"].orValue("forbid") != "allow"
  ? ["podvirt.dev/accelerator: \"tcg\": emulation is not allowed (emulation: forbid)"] : [])
+ (variables.model.matches(%s) && !variables.listed.exists(m, m == "-" + variables.model || m == "-" + variables.base)
  && (variables.base in %s || variables.model in variables.listed || variables.base in variables.listed)
  ? ["podvirt.dev/cpu-model: \"" + variables.model + "\": " + variables.model + " is on the obsolete list (cpu.obsolete-models)"] : [])`,
			re(`[A-Za-z0-9][A-Za-z0-9._+-]{0,63}`), list(api.ObsoleteModels()))},
	}
	return validatingPolicy("podvirt-validate-vm-config", admissionv1.ValidatingAdmissionPolicySpec{
		ParamKind: configParam(), MatchConstraints: podsAndOwners(), MatchConditions: aboutVMs(), Variables: variables, Validations: deny("errors"),
	}, nil)
}
