package suite

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/test/cluster/harness"
)

// TestQuota: limits that admission fills in are those that quota and limit range of a namespace count (VM-016).
func TestQuota(t *testing.T) {
	t.Run("ResourceQuota", func(t *testing.T) {
		ns := harness.Installed(t).Namespace(t, harness.Restricted)
		ns.Apply(t, `
apiVersion: v1
kind: ResourceQuota
metadata: {name: memory}
spec: {hard: {limits.memory: 600Mi, requests.memory: 600Mi}}
`)
		harness.Eventually(t, harness.Short, "a quota that counts", quotaCounts(ns))
		ns.Apply(t, newVM("first", "guest-tiny").manifest(t))
		err := ns.TryApply(t.Context(), newVM("second", "guest-tiny").manifest(t))
		if err == nil || !strings.Contains(err.Error(), "exceeded quota: memory") || !strings.Contains(err.Error(), "limited: limits.memory=600Mi") {
			t.Errorf("the second VM: %v; want it over the quota", err)
		}
	})
	t.Run("LimitRange", func(t *testing.T) {
		ns := harness.Installed(t).Namespace(t, harness.Restricted)
		ns.Apply(t, `
apiVersion: v1
kind: LimitRange
metadata: {name: small}
spec: {limits: [{type: Container, max: {memory: 256Mi}}]}
`)
		asked := newVM("large", "guest-tiny")
		asked.container().Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("600Mi")}
		for text, guest := range map[string]*vm{
			`maximum memory usage per Container is 256Mi, but limit is 600Mi`:     asked,
			`192Mi \+ \d+Mi overhead = \d+Mi exceeds limits\.memory 256Mi: raise`: newVM("large", "guest-tiny"), // its maximum is the default
		} {
			harness.Eventually(t, harness.Short, "a VM that is too large", func(ctx context.Context) error {
				err := ns.TryApply(ctx, guest.manifest(t))
				if err == nil || !regexp.MustCompile(text).MatchString(err.Error()) {
					return fmt.Errorf("want it refused with both figures: %w", err)
				}
				return nil
			})
		}
	})
	t.Run("requests that fill a node", func(t *testing.T) {
		long(t, "test-life")
		fillNode(t)
	})
}

func quotaCounts(ns *harness.Namespace) func(context.Context) error {
	return func(ctx context.Context) error {
		quota, err := ns.Client.CoreV1().ResourceQuotas(ns.Name).Get(ctx, "memory", metav1.GetOptions{})
		if err == nil && len(quota.Status.Hard) == 0 {
			err = errors.New("no status")
		}
		return err
	}
}

// fillNode: two VMs whose requests take all that a node has left run there, and a third finds no room.
func fillNode(t *testing.T) {
	ns := setUp(t, "guest-tiny")
	node := ns.Nodes[1]
	half := freeMemory(t, ns, node) / 2 >> 20 << 20
	for _, name := range []string{"left", "right", "third"} {
		v := newVM(name, "guest-tiny")
		amount := *resource.NewQuantity(half, resource.BinarySI)
		v.container().Resources = corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceMemory: amount, corev1.ResourceCPU: resource.MustParse("1m")},
			Limits:   corev1.ResourceList{corev1.ResourceMemory: amount},
		}
		v.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
		ns.Apply(t, v.manifest(t))
		if name != "third" {
			ns.WaitPod(t, name, harness.Medium, harness.Running)
		}
	}
	pod := ns.WaitPod(t, "third", harness.Short, harness.Unschedulable)
	if reason := harness.SchedulingMessage(pod); !strings.Contains(reason, "Insufficient memory") {
		t.Errorf("reason: %s", reason)
	}
}

// freeMemory is what a node has left for requests, in bytes.
func freeMemory(t *testing.T, ns *harness.Namespace, node string) int64 {
	t.Helper()
	free := ns.Node(t, node).Status.Allocatable.Memory().Value()
	pods, err := ns.Client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods.Items {
		if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		for _, container := range pod.Spec.Containers {
			free -= container.Resources.Requests.Memory().Value()
		}
	}
	return free
}
