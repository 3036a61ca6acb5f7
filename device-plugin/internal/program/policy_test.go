package program

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"podvirt.dev/api"
	"podvirt.dev/internal/apitest"
	"podvirt.dev/internal/kubelettest"
)

// With the token of the DaemonSet nothing can be changed but our keys on the own Node (SC-020).
func TestOwnNodePolicy(t *testing.T) {
	server := apitest.Start(t)
	server.Make(t, api.SystemNamespace, "podvirt-device-plugin")
	server.Apply(t, api.SystemNamespace, rights()...)
	for _, name := range []string{nodeName, otherNode} {
		node := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"foreign": "x"}, Annotations: map[string]string{"foreign": "x"}},
			Spec: corev1.NodeSpec{
				PodCIDR: "10.0.0.0/24",
				Taints:  []corev1.Taint{{Key: "foreign", Effect: "NoSchedule"}, {Key: api.TaintNotReady, Effect: "NoSchedule"}},
			},
		}
		if _, err := server.Client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	bound, err := kubernetes.NewForConfig(server.AccountOn(t, api.SystemNamespace, "podvirt-device-plugin", nodeName))
	if err != nil {
		t.Fatal(err)
	}
	unbound, err := kubernetes.NewForConfig(server.Account(t, api.SystemNamespace, "podvirt-device-plugin"))
	if err != nil {
		t.Fatal(err)
	}
	patch := func(c kubernetes.Interface, node, body string, sub ...string) error {
		_, err := c.CoreV1().Nodes().Patch(t.Context(), node, "application/merge-patch+json", []byte(body), metav1.PatchOptions{}, sub...)
		return err
	}
	kubelettest.Eventually(t, 30*second, "the policy is in force", func() bool {
		return patch(bound, otherNode, `{"metadata":{"annotations":{"podvirt.dev/cpu":"x"}}}`) != nil
	})
	// The second is put on every new Node by the API server itself.
	const foreignTaint = `{"key":"foreign","effect":"NoSchedule"},{"key":"node.kubernetes.io/not-ready","effect":"NoSchedule"}`
	tests := map[string]struct {
		client kubernetes.Interface
		node   string
		body   string
		want   string // in the refusal; "": allowed
	}{
		"own annotation":            {bound, nodeName, `{"metadata":{"annotations":{"podvirt.dev/cpu":"y"}}}`, ""},
		"own annotation removed":    {bound, nodeName, `{"metadata":{"annotations":{"podvirt.dev/cpu":null}}}`, ""},
		"own label":                 {bound, nodeName, `{"metadata":{"labels":{"podvirt.dev/accelerator":"tcg"}}}`, ""},
		"model label":               {bound, nodeName, `{"metadata":{"labels":{"cpu-model.podvirt.dev/EPYC":"true"}}}`, ""},
		"our taint removed":         {bound, nodeName, `{"spec":{"taints":[` + foreignTaint + `]}}`, ""},
		"another Node":              {bound, otherNode, `{"metadata":{"annotations":{"podvirt.dev/cpu":"y"}}}`, "node-b is not the one this agent runs on (node-a)"},
		"foreign label":             {bound, nodeName, `{"metadata":{"labels":{"other.example/x":""}}}`, "label other.example/x is not a key of podvirt"},
		"foreign label changed":     {bound, nodeName, `{"metadata":{"labels":{"foreign":"y"}}}`, "label foreign is not a key of podvirt"},
		"foreign label removed":     {bound, nodeName, `{"metadata":{"labels":{"foreign":null}}}`, "label foreign is not a key of podvirt"},
		"foreign annotation":        {bound, nodeName, `{"metadata":{"annotations":{"x":"y"}}}`, "annotation x is not a key of podvirt"},
		"foreign annotation gone":   {bound, nodeName, `{"metadata":{"annotations":{"foreign":null}}}`, "annotation foreign is not a key of podvirt"},
		"foreign taint removed":     {bound, nodeName, `{"spec":{"taints":[]}}`, "the only taint"},
		"taint added":               {bound, nodeName, `{"spec":{"taints":[` + foreignTaint + `,{"key":"x","effect":"NoExecute"}]}}`, "the only taint"},
		"unschedulable":             {bound, nodeName, `{"spec":{"unschedulable":true}}`, "do not change the spec"},
		"provider":                  {bound, nodeName, `{"spec":{"providerID":"x"}}`, "do not change the spec"},
		"finalizer":                 {bound, nodeName, `{"metadata":{"finalizers":["x.example/y"]}}`, "no finalizers"},
		"token without a node":      {unbound, nodeName, `{"metadata":{"annotations":{"podvirt.dev/cpu":"y"}}}`, "not bound to a Pod"},
		"the administrator changes": {server.Client, otherNode, `{"metadata":{"labels":{"foreign":"z"}}}`, ""},
	}
	for _, name := range slices.Sorted(maps.Keys(tests)) {
		tt := tests[name]
		t.Run(name, func(t *testing.T) {
			err := patch(tt.client, tt.node, tt.body)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("patch = %v; want %q", err, tt.want)
			}
		})
	}
	for name, err := range map[string]error{
		"status of the own Node": patch(bound, nodeName, `{"status":{"phase":"x"}}`, "status"),
		"delete":                 bound.CoreV1().Nodes().Delete(t.Context(), nodeName, metav1.DeleteOptions{}),
		"Secrets":                listSecrets(t.Context(), bound),
		"another ConfigMap":      getConfigMap(t.Context(), bound, "other"),
	} {
		if err == nil || !strings.Contains(err.Error(), "forbidden") {
			t.Errorf("%s: %v; want it forbidden", name, err)
		}
	}
}

func listSecrets(ctx context.Context, c kubernetes.Interface) error {
	_, err := c.CoreV1().Secrets("").List(ctx, metav1.ListOptions{})
	return err
}

func getConfigMap(ctx context.Context, c kubernetes.Interface, name string) error {
	_, err := c.CoreV1().ConfigMaps(api.SystemNamespace).Get(ctx, name, metav1.GetOptions{})
	return err
}
