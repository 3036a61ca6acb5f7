package policy

import (
	"context"
	"strings"
	"testing"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/traits"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/client-go/kubernetes/scheme"
)

// The helpers below compile and run policies with the API server's own packages, in the way its admission plugins do.

// request is one admission request.
type request struct {
	object, old runtime.Object
	operation   admission.Operation
	resource    string // of the object's group and version
	subresource string
	name        string
	user        string
	params      runtime.Object
	allowed     func(authorizer.Attributes) bool
}

func (r request) versioned(t testing.TB) *admission.VersionedAttributes {
	t.Helper()
	kinds, _, err := scheme.Scheme.ObjectKinds(r.object)
	if err != nil {
		t.Fatal(err)
	}
	kind := kinds[0]
	resource := r.resource
	if resource == "" {
		resource = strings.ToLower(kind.Kind) + "s"
	}
	operation := r.operation
	if operation == "" {
		operation = admission.Create
	}
	name := r.user
	if name == "" {
		name = "alice"
	}
	attributes := admission.NewAttributesRecord(r.object, r.old, kind, "shop", r.name,
		schema.GroupVersionResource{Group: kind.Group, Version: kind.Version, Resource: resource}, r.subresource,
		operation, nil, false, &user.DefaultInfo{Name: name})
	versioned := &admission.VersionedAttributes{Attributes: attributes, VersionedKind: kind}
	versioned.VersionedObject.Set(r.object)
	versioned.VersionedOldObject.Set(r.old)
	return versioned
}

func (r request) Authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	if r.allowed != nil && r.allowed(a) {
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionNoOpinion, "", nil
}

func optional(r request) plugincel.OptionalVariableBindings {
	bindings := plugincel.OptionalVariableBindings{Authorizer: r}
	if r.params != nil {
		bindings.VersionedParams = r.params
	}
	return bindings
}

// validator is a compiled ValidatingAdmissionPolicy.
type validator struct {
	policy    *admissionv1.ValidatingAdmissionPolicy
	validator validating.Validator
}

func compiler(t testing.TB, variables []admissionv1.Variable, declared plugincel.OptionalVariableDeclarations) *plugincel.CompositedCompiler {
	t.Helper()
	c, err := plugincel.NewCompositedCompiler(environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range variables {
		result := c.CompileAndStoreVariable(&validating.Variable{Name: v.Name, Expression: v.Expression}, declared, environment.StoredExpressions)
		if result.Error != nil {
			t.Errorf("variable %s: %v\n%s", v.Name, result.Error, v.Expression)
		}
	}
	return c
}

func matcher(c *plugincel.CompositedCompiler, conditions []admissionv1.MatchCondition, declared plugincel.OptionalVariableDeclarations,
	policy *admissionv1.FailurePolicyType,
) matchconditions.Matcher {
	if len(conditions) == 0 {
		return nil
	}
	accessors := make([]plugincel.ExpressionAccessor, len(conditions))
	for i := range conditions {
		accessors[i] = (*matchconditions.MatchCondition)(&conditions[i])
	}
	return matchconditions.NewMatcher(c.CompileCondition(accessors, declared, environment.StoredExpressions), policy, "policy", "validate", "test")
}

func newValidator(t testing.TB, objects []runtime.Object) *validator {
	t.Helper()
	policy := objects[0].(*admissionv1.ValidatingAdmissionPolicy)
	declared := plugincel.OptionalVariableDeclarations{HasParams: policy.Spec.ParamKind != nil, HasAuthorizer: true}
	c := compiler(t, policy.Spec.Variables, declared)
	var conditions, messages []plugincel.ExpressionAccessor
	for _, v := range policy.Spec.Validations {
		conditions = append(conditions, &validating.ValidationCondition{Expression: v.Expression, Message: v.Message, Reason: v.Reason})
		messages = append(messages, &validating.MessageExpressionCondition{MessageExpression: v.MessageExpression})
	}
	withoutAuthorizer := declared
	withoutAuthorizer.HasAuthorizer = false
	return &validator{policy: policy, validator: validating.NewValidator(
		c.CompileCondition(conditions, declared, environment.StoredExpressions),
		matcher(c, policy.Spec.MatchConditions, declared, policy.Spec.FailurePolicy),
		c.CompileCondition(nil, declared, environment.StoredExpressions),
		c.CompileCondition(messages, withoutAuthorizer, environment.StoredExpressions),
		policy.Spec.FailurePolicy, nil)}
}

// denied returns the message of the refusal, "" where the request is admitted. budget is what the API server allows.
func (v *validator) denied(t testing.TB, r request, budget int64) string {
	t.Helper()
	versioned := r.versioned(t)
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
	result := v.validator.Validate(t.Context(), versioned.GetResource(), versioned, r.params, namespace, budget, r)
	for _, d := range result.Decisions {
		if d.Evaluation == validating.EvalError {
			t.Errorf("evaluation failed: %s", d.Message)
		}
		if d.Action == validating.ActionDeny {
			return d.Message
		}
	}
	return ""
}

// lines is a variable that holds a list of lines.
type lines struct{ name string }

func (l lines) GetExpression() string { return "variables." + l.name }

func (l lines) ReturnTypes() []*cel.Type {
	return []*cel.Type{cel.ListType(cel.StringType), cel.DynType}
}

// errorsOf returns the value of variables.errors of a policy, and the cost of evaluating it.
type errorsOf struct{ evaluator plugincel.ConditionEvaluator }

func newErrorsOf(t testing.TB, objects []runtime.Object) *errorsOf {
	t.Helper()
	policy := objects[0].(*admissionv1.ValidatingAdmissionPolicy)
	declared := plugincel.OptionalVariableDeclarations{HasParams: policy.Spec.ParamKind != nil, HasAuthorizer: true}
	c := compiler(t, policy.Spec.Variables, declared)
	return &errorsOf{c.CompileCondition([]plugincel.ExpressionAccessor{lines{"errors"}}, declared, environment.StoredExpressions)}
}

func (e *errorsOf) lines(t testing.TB, r request) (lines []string, cost int64) {
	t.Helper()
	versioned := r.versioned(t)
	review := plugincel.CreateAdmissionRequest(versioned.Attributes, metav1.GroupVersionResource(versioned.GetResource()),
		metav1.GroupVersionKind(versioned.VersionedKind))
	results, left, err := e.evaluator.ForInput(t.Context(), versioned, review, optional(r), nil, celconfig.RuntimeCELCostBudget)
	if err != nil {
		t.Fatal(err)
	}
	if results[0].Error != nil {
		t.Fatal(results[0].Error)
	}
	list := results[0].EvalResult.(traits.Lister)
	for it := list.Iterator(); it.HasNext() == types.True; {
		lines = append(lines, it.Next().Value().(string))
	}
	return lines, celconfig.RuntimeCELCostBudget - left
}

// mutator is a compiled MutatingAdmissionPolicy.
type mutator struct {
	compiler *plugincel.CompositedCompiler
	matcher  matchconditions.Matcher
	patchers []patch.Patcher
}

func newMutator(t testing.TB, objects []runtime.Object) *mutator {
	t.Helper()
	policy := objects[0].(*admissionv1.MutatingAdmissionPolicy)
	declared := plugincel.OptionalVariableDeclarations{HasParams: policy.Spec.ParamKind != nil, HasAuthorizer: true}
	c := compiler(t, policy.Spec.Variables, declared)
	m := &mutator{compiler: c, matcher: matcher(c, policy.Spec.MatchConditions, declared, policy.Spec.FailurePolicy)}
	declared.HasPatchTypes = true
	for _, mutation := range policy.Spec.Mutations {
		evaluator := c.CompileMutatingEvaluator(&patch.JSONPatchCondition{Expression: mutation.JSONPatch.Expression}, declared,
			environment.StoredExpressions)
		if errs := evaluator.CompilationErrors(); len(errs) > 0 {
			t.Errorf("mutation: %v\n%s", errs, mutation.JSONPatch.Expression)
		}
		m.patchers = append(m.patchers, patch.NewJSONPatcher(evaluator))
	}
	return m
}

// mutate returns the object after the policy, defaulted as the API server defaults it.
func (m *mutator) mutate(t testing.TB, r request) runtime.Object {
	t.Helper()
	versioned := r.versioned(t)
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
	ctx := m.compiler.CreateContext(t.Context())
	if m.matcher != nil {
		matched := m.matcher.Match(ctx, versioned, r.params, r)
		if matched.Error != nil {
			t.Fatalf("match conditions: %v", matched.Error)
		}
		if !matched.Matches {
			return r.object
		}
	}
	for i, p := range m.patchers {
		out, err := p.Patch(ctx, patch.Request{
			MatchedResource: versioned.GetResource(), VersionedAttributes: versioned, ObjectInterfaces: objectInterfaces(),
			OptionalVariables: optional(r), Namespace: namespace,
		}, celconfig.RuntimeCELCostBudget)
		if err != nil {
			t.Fatalf("mutation %d: %v", i, err)
		}
		setDefaults(out)
		versioned.UpdateObject(out)
	}
	return versioned.VersionedObject.Object()
}

func objectInterfaces() admission.ObjectInterfaces {
	return admission.NewObjectInterfacesFromScheme(scheme.Scheme)
}
