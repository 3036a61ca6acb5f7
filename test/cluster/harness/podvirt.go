package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"podvirt.dev/api"
)

// EditFacts takes a node's facts out of the device plugin's hands, as an administrator may (scheduling.md 2.2), and
// changes them until the test ends.
func (c *Cluster) EditFacts(t testing.TB, node string, change func(*api.CPUFacts)) {
	t.Helper()
	c.annotateNode(t.Context(), t, node, map[string]any{api.NodeSkip: "true"})
	t.Cleanup(func() {
		c.annotateNode(context.WithoutCancel(t.Context()), t, node, map[string]any{api.NodeSkip: nil, api.NodeCPU: nil})
	})
	object, err := c.Client.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	facts, err := api.DecodeCPUFacts(object.Annotations[api.NodeCPU])
	if err != nil {
		t.Fatal(err)
	}
	change(&facts)
	text, err := facts.Encode()
	if err != nil {
		t.Fatal(err)
	}
	c.annotateNode(t.Context(), t, node, map[string]any{api.NodeCPU: text})
}

func (c *Cluster) annotateNode(ctx context.Context, t testing.TB, node string, annotations map[string]any) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Client.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// WithoutPolicies takes the admission policies of VM Pods out of force until the test ends, by their bindings.
func (c *Cluster) WithoutPolicies(t testing.TB) {
	t.Helper()
	ctx := t.Context()
	admission := c.Client.AdmissionregistrationV1()
	validating, err := admission.ValidatingAdmissionPolicyBindings().List(ctx, metav1.ListOptions{LabelSelector: ours})
	if err != nil {
		t.Fatal(err)
	}
	mutating, err := admission.MutatingAdmissionPolicyBindings().List(ctx, metav1.ListOptions{LabelSelector: ours})
	if err != nil {
		t.Fatal(err)
	}
	if len(validating.Items) == 0 || len(mutating.Items) == 0 {
		t.Fatal("no policies are in force")
	}
	t.Cleanup(func() { c.restorePolicies(context.WithoutCancel(ctx), t, validating.Items, mutating.Items) })
	for _, binding := range validating.Items {
		if err := admission.ValidatingAdmissionPolicyBindings().Delete(ctx, binding.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, binding := range mutating.Items {
		if err := admission.MutatingAdmissionPolicyBindings().Delete(ctx, binding.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// ours selects what an installation of podvirt consists of.
const ours = "app.kubernetes.io/part-of=podvirt"

func (c *Cluster) restorePolicies(
	ctx context.Context, t testing.TB,
	validating []admissionv1.ValidatingAdmissionPolicyBinding, mutating []admissionv1.MutatingAdmissionPolicyBinding,
) {
	t.Helper()
	admission := c.Client.AdmissionregistrationV1()
	for _, binding := range validating {
		binding.ResourceVersion, binding.UID = "", ""
		if _, err := admission.ValidatingAdmissionPolicyBindings().Create(ctx, &binding, metav1.CreateOptions{}); err != nil {
			t.Errorf("restoring %s: %v", binding.Name, err)
		}
	}
	for _, binding := range mutating {
		binding.ResourceVersion, binding.UID = "", ""
		if _, err := admission.MutatingAdmissionPolicyBindings().Create(ctx, &binding, metav1.CreateOptions{}); err != nil {
			t.Errorf("restoring %s: %v", binding.Name, err)
		}
	}
}

// Scheduled wants a Pod that has a node.
func Scheduled(pod *corev1.Pod) error {
	if pod.Spec.NodeName == "" {
		return fmt.Errorf("not scheduled: %s", SchedulingMessage(pod))
	}
	return nil
}

// Unschedulable wants a Pod that the scheduler has refused.
func Unschedulable(pod *corev1.Pod) error {
	switch {
	case pod.Spec.NodeName != "":
		return fmt.Errorf("%w: it was scheduled to %s", ErrNever, pod.Spec.NodeName)
	case SchedulingMessage(pod) == "":
		return errors.New("the scheduler has said nothing yet")
	}
	return nil
}

// SchedulingMessage is what the scheduler said when it refused a Pod, or "".
func SchedulingMessage(pod *corev1.Pod) string {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
			return condition.Message
		}
	}
	return ""
}

// Node returns a node as the API server has it now.
func (c *Cluster) Node(t testing.TB, name string) *corev1.Node {
	t.Helper()
	node, err := c.Client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return node
}
