package policy

import (
	"fmt"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"podvirt.dev/api"
)

// exec lets users reach container vm only through "launcher ctl" and "launcher probe", and there only with the right
// virtualmachines/RIGHT that the verb asks for (vm.md 2.7). A CONNECT review shows no Pod, so the container's name
// decides; an empty one counts as "vm" (kubectl always fills it in).
func exec() []runtime.Object {
	connect := []admissionv1.OperationType{admissionv1.Connect}
	var rights []string
	for _, v := range api.Verbs() {
		rights = append(rights, fmt.Sprintf("%s: %s", str(v.Verb), str(v.Right)))
	}
	variables := []admissionv1.Variable{
		{Name: "command", Expression: `object.?command.orValue([]).map(w, string(w))`},
		{Name: "tool", Expression: `variables.command.size() > 1 && variables.command[0].matches(r'^(?:/usr/bin/)?launcher$')
  ? variables.command[1] : ""`},
		{Name: "verb", Expression: `variables.tool == "probe" ? "probe" : variables.tool != "ctl" || variables.command.size() < 3 ? "" :
  variables.command[2] == "agent" && variables.command.size() > 3 ? "agent " + variables.command[3] : variables.command[2]`},
		{Name: "rights", Expression: "{" + strings.Join(rights, ", ") + "}"},
		{Name: "right", Expression: `request.subResource == "attach" ? "console" : variables.rights[?variables.verb].orValue("")`},
	}
	allowed := fmt.Sprintf(`authorizer.group(%s).resource(%s).subresource(variables.right)
  .namespace(request.namespace).name(request.name).check("create").allowed()`,
		str(api.RightsGroup), str(api.RightsResource))
	return validatingPolicy("podvirt-exec", admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{rule("", connect, "pods/exec", "pods/attach")}},
		MatchConditions:  []admissionv1.MatchCondition{{Name: "vm", Expression: `object.?container.orValue("") in ["", "vm"]`}},
		Variables:        variables,
		Validations: []admissionv1.Validation{
			{
				Expression: `request.subResource == "attach" || variables.tool in ["ctl", "probe"]`,
				Message:    `container vm takes only "launcher ctl" and "launcher probe"`,
				MessageExpression: `"container vm takes only \"launcher ctl\" and \"launcher probe\", not " + (variables.command.size() == 0
  ? "an empty command" : strings.quote(variables.command[0]))`,
				Reason: new(metav1.StatusReasonForbidden),
			},
			{
				Expression:        `variables.right != "" || !(request.subResource == "attach" || variables.tool in ["ctl", "probe"])`,
				Message:           `no such verb of launcher ctl`,
				MessageExpression: `"launcher ctl: " + strings.quote(variables.verb) + ": no such verb"`,
				Reason:            new(metav1.StatusReasonInvalid),
			},
			{
				Expression:        `variables.right == "" || ` + allowed,
				Message:           `the verb needs a right on virtualmachines in API group podvirt.dev`,
				MessageExpression: `"needs the right to create virtualmachines/" + variables.right + " in API group podvirt.dev"`,
				Reason:            new(metav1.StatusReasonForbidden),
			},
		},
	}, outsideSystem())
}

// outsideSystem leaves the namespaces of Kubernetes and of podvirt itself alone: no VM runs there.
func outsideSystem() *admissionv1.MatchResources {
	return &admissionv1.MatchResources{NamespaceSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
		Key: "kubernetes.io/metadata.name", Operator: metav1.LabelSelectorOpNotIn,
		Values: []string{"kube-system", "kube-public", "kube-node-lease", api.SystemNamespace},
	}}}}
}
