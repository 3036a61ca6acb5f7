// Package policy writes the admission policies of podvirt (vm.md 2.12, operations.md 2.5) from the tables of package
// api: ValidatingAdmissionPolicies and MutatingAdmissionPolicies in CEL, which the API server evaluates by itself.
//
// What api.Parse and api.Resolve say in Go, the policies say in CEL, in the same words but for the nearest one. The
// grammar of every key is generated; the rules between keys (rules.go, pod.go) are written twice, and a test holds
// the two against each other on a large corpus of Pods.
package policy

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"podvirt.dev/api"
)

// File is one generated file of manifests/admission.
type File struct {
	Name    string
	Objects []runtime.Object
}

// Files returns all policies with their bindings.
func Files() []File {
	return []File{
		{"podvirt-config-vm.yaml", configVM()},
		{"podvirt-default-vm.yaml", defaultVM()},
		{"podvirt-keep-image.yaml", keepImage()},
		{"podvirt-validate-vm.yaml", validateVM()},
		{"podvirt-validate-vm-config.yaml", validateVMConfig()},
		{"podvirt-warn-vm.yaml", warnVM()},
		{"podvirt-warn-service.yaml", append(warnService(), warnServed()...)},
		{"podvirt-exec.yaml", exec()},
		{"podvirt-validate-config.yaml", validateConfig()},
	}
}

func meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Labels: map[string]string{
		"app.kubernetes.io/part-of": "podvirt", "app.kubernetes.io/component": "compute",
	}}
}

// validatingPolicy returns a policy and the binding that puts it in force with Deny.
func validatingPolicy(name string, spec admissionv1.ValidatingAdmissionPolicySpec, bound *admissionv1.MatchResources) []runtime.Object {
	fail := admissionv1.Fail
	spec.FailurePolicy = &fail
	return []runtime.Object{
		&admissionv1.ValidatingAdmissionPolicy{
			TypeMeta:   metav1.TypeMeta{APIVersion: "admissionregistration.k8s.io/v1", Kind: "ValidatingAdmissionPolicy"},
			ObjectMeta: meta(name), Spec: spec,
		},
		&admissionv1.ValidatingAdmissionPolicyBinding{
			TypeMeta:   metav1.TypeMeta{APIVersion: "admissionregistration.k8s.io/v1", Kind: "ValidatingAdmissionPolicyBinding"},
			ObjectMeta: meta(name),
			Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
				PolicyName: name, ParamRef: paramRef(spec.ParamKind), MatchResources: bound,
				ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
			},
		},
	}
}

// mutatingPolicy returns a policy and its binding. Nothing that a mutating policy does may block the creation of a Pod
// (VM-004), hence failure policy Ignore.
func mutatingPolicy(name string, spec admissionv1.MutatingAdmissionPolicySpec) []runtime.Object {
	ignore := admissionv1.Ignore
	spec.FailurePolicy, spec.ReinvocationPolicy = &ignore, admissionv1.IfNeededReinvocationPolicy
	return []runtime.Object{
		&admissionv1.MutatingAdmissionPolicy{
			TypeMeta:   metav1.TypeMeta{APIVersion: "admissionregistration.k8s.io/v1", Kind: "MutatingAdmissionPolicy"},
			ObjectMeta: meta(name), Spec: spec,
		},
		&admissionv1.MutatingAdmissionPolicyBinding{
			TypeMeta:   metav1.TypeMeta{APIVersion: "admissionregistration.k8s.io/v1", Kind: "MutatingAdmissionPolicyBinding"},
			ObjectMeta: meta(name),
			Spec:       admissionv1.MutatingAdmissionPolicyBindingSpec{PolicyName: name, ParamRef: paramRef(spec.ParamKind)},
		},
	}
}

func configParam() *admissionv1.ParamKind {
	return &admissionv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"}
}

// paramRef binds podvirt-config. Where it is missing the policy does nothing, rather than block Pods.
func paramRef(kind *admissionv1.ParamKind) *admissionv1.ParamRef {
	if kind == nil {
		return nil
	}
	allow := admissionv1.AllowAction
	return &admissionv1.ParamRef{Name: api.ConfigName, Namespace: api.SystemNamespace, ParameterNotFoundAction: &allow}
}

func rule(group string, operations []admissionv1.OperationType, resources ...string) admissionv1.NamedRuleWithOperations {
	return admissionv1.NamedRuleWithOperations{RuleWithOperations: admissionv1.RuleWithOperations{
		Operations: operations,
		Rule:       admissionv1.Rule{APIGroups: []string{group}, APIVersions: []string{"v1"}, Resources: resources},
	}}
}
