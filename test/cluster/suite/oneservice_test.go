package suite

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

// beside are an ordinary Deployment that answers behind the same Service as a VM, and what selects the VM by its labels.
const beside = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: plain}
spec:
  selector: {matchLabels: {app: mixed, kind: plain}}
  template:
    metadata: {labels: {app: mixed, kind: plain}}
    spec:
      securityContext: {runAsNonRoot: true, runAsUser: 65534, seccompProfile: {type: RuntimeDefault}}
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: localhost/podvirt/tools:dev
        imagePullPolicy: IfNotPresent
        command: [sh, -c, 'echo plain > /tmp/index.html; exec httpd -f -p 8080 -h /tmp']
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        volumeMounts: [{name: tmp, mountPath: /tmp}]
      volumes: [{name: tmp, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: mixed}
spec:
  selector: {app: mixed}
  ports: [{port: 8080}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: mixed}
spec:
  minAvailable: 1
  selector: {matchLabels: {podvirt.dev/vm: mixed}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: mixed}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: mixed}
  minReplicas: 1
  maxReplicas: 1
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}]
`

// TestOneService runs a VM beside a Pod, each from a Deployment of its own, behind one Service; whatever selects Pods by
// labels selects the VM as well (VM-001, VM-012). The VM is then restarted in place (VM-116).
func TestOneService(t *testing.T) {
	ns := setUp(t, "guest-tiny")
	ns.Apply(t, beside)
	guest := newVM("mixed", "guest-tiny").httpReady(8080)
	guest.Labels["app"] = "mixed"
	ns.Apply(t, guest.deployment(t, 1))
	waitDeployment(t, ns, "mixed", 1)
	pod := onlyPod(t, ns, api.LabelVM+"=mixed")

	t.Run("both answer behind one Service", func(t *testing.T) {
		wanted := map[string]bool{"plain": true, "podvirt-tiny": true}
		harness.Eventually(t, harness.Short, "an answer of each", func(ctx context.Context) error {
			body, err := curl(ctx, ns, "http://mixed."+ns.Name+":8080/")
			if err != nil {
				return err
			}
			delete(wanted, strings.Fields(body)[0])
			if len(wanted) > 0 {
				return fmt.Errorf("no answer yet of %v", wanted)
			}
			return nil
		})
	})
	t.Run("nothing but objects of Kubernetes", func(t *testing.T) {
		groups, err := ns.Client.Discovery().ServerGroups()
		if err != nil {
			t.Fatal(err)
		}
		for _, group := range groups.Groups {
			if strings.HasSuffix(group.Name, "podvirt.dev") {
				t.Errorf("API group %s", group.Name)
			}
		}
	})
	t.Run("PodDisruptionBudget", func(t *testing.T) { checkBudget(t, ns, pod.Name) })
	t.Run("relabelled while it runs", func(t *testing.T) { checkFollowsLabel(t, ns, pod) })
	t.Run("HorizontalPodAutoscaler", func(t *testing.T) {
		harness.Eventually(t, harness.Medium, "the autoscaler sees the VM", func(ctx context.Context) error {
			scaler, err := ns.Client.AutoscalingV2().HorizontalPodAutoscalers(ns.Name).Get(ctx, "mixed", metav1.GetOptions{})
			if err == nil && scaler.Status.CurrentReplicas != 1 {
				err = fmt.Errorf("status: %+v", scaler.Status)
			}
			return err
		})
	})
	t.Run("restart in place", func(t *testing.T) { checkRestartInPlace(t, ns, pod) })
}

func onlyPod(t *testing.T, ns *harness.Namespace, selector string) *corev1.Pod {
	t.Helper()
	list, err := ns.Client.CoreV1().Pods(ns.Name).List(t.Context(), metav1.ListOptions{LabelSelector: selector})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("%d Pods of %s, %v; want one", len(list.Items), selector, err)
	}
	return &list.Items[0]
}

// checkBudget: the budget counts the VM and keeps it from being evicted.
func checkBudget(t *testing.T, ns *harness.Namespace, pod string) {
	t.Helper()
	harness.Eventually(t, harness.Short, "a budget that counts the VM", func(ctx context.Context) error {
		budget, err := ns.Client.PolicyV1().PodDisruptionBudgets(ns.Name).Get(ctx, "mixed", metav1.GetOptions{})
		if err == nil && (budget.Status.ExpectedPods != 1 || budget.Status.CurrentHealthy != 1) {
			err = fmt.Errorf("status: %+v", budget.Status)
		}
		return err
	})
	err := ns.Client.CoreV1().Pods(ns.Name).EvictV1(t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: pod}})
	if !apierrors.IsTooManyRequests(err) {
		t.Errorf("eviction: %v; want it refused by the budget", err)
	}
}

// checkFollowsLabel: the Service follows a label of the running VM, which does not notice.
func checkFollowsLabel(t *testing.T, ns *harness.Namespace, pod *corev1.Pod) {
	t.Helper()
	for _, step := range []struct {
		label string
		in    bool
	}{{"other", false}, {"mixed", true}} {
		patchPod(t, ns, pod.Name, fmt.Sprintf(`{"metadata":{"labels":{"app":%q}}}`, step.label))
		harness.Eventually(t, harness.Short, "endpoints after the label "+step.label, func(ctx context.Context) error {
			if is := slices.Contains(endpoints(ctx, t, ns, "mixed"), pod.Status.PodIP); is != step.in {
				return fmt.Errorf("the VM among the endpoints: %v", is)
			}
			return nil
		})
	}
	now := ns.WaitPod(t, pod.Name, harness.Short, harness.Ready)
	if now.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Error("the VM was restarted")
	}
}

func patchPod(t *testing.T, ns *harness.Namespace, name, patch string) {
	t.Helper()
	_, err := ns.Client.CoreV1().Pods(ns.Name).Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// endpoints are the ready addresses behind a Service.
func endpoints(ctx context.Context, t *testing.T, ns *harness.Namespace, service string) []string {
	t.Helper()
	list, err := ns.Client.DiscoveryV1().EndpointSlices(ns.Name).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + service,
	})
	if err != nil {
		t.Fatal(err)
	}
	var ready []string
	for _, slice := range list.Items {
		for _, e := range slice.Endpoints {
			if e.Conditions.Ready == nil || *e.Conditions.Ready {
				ready = append(ready, e.Addresses...)
			}
		}
	}
	return ready
}

// checkRestartInPlace edits an annotation of the running Pod and restarts its VM: the guest has the change, the Pod is
// what it was.
func checkRestartInPlace(t *testing.T, ns *harness.Namespace, before *corev1.Pod) {
	t.Helper()
	patchPod(t, ns, before.Name, `{"metadata":{"annotations":{"podvirt.dev/memory":"176Mi"}}}`)
	file := "/var/lib/kubelet/pods/" + string(before.UID) + "/volumes/kubernetes.io~downward-api/*/annotations"
	harness.Eventually(t, harness.Medium, "the edit in the Pod's volume", func(context.Context) error {
		if is := ns.OnNode(t, before.Spec.NodeName, "sh", "-c", "cat "+file); !strings.Contains(is, "176Mi") {
			return errors.New("not there yet: " + is)
		}
		return nil
	})
	ctl(t, ns, before.Name, "restart")
	if status := ctl(t, ns, before.Name, "status", "-o", "json"); !strings.Contains(status, `"memoryMiB": 176`) {
		t.Errorf("the new QEMU lacks the edit:\n%s", status)
	}
	url := "http://" + net.JoinHostPort(before.Status.PodIP, "8080") + "/"
	harness.Eventually(t, harness.Medium, "the guest answers again", func(ctx context.Context) error {
		_, err := curl(ctx, ns, url)
		return err
	})
	now := ns.WaitPod(t, before.Name, harness.Medium, harness.Ready)
	if now.UID != before.UID || now.Status.PodIP != before.Status.PodIP || now.Spec.NodeName != before.Spec.NodeName ||
		now.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("the Pod was %s on %s and is %s on %s, restarted %d times", before.Status.PodIP, before.Spec.NodeName,
			now.Status.PodIP, now.Spec.NodeName, now.Status.ContainerStatuses[0].RestartCount)
	}
}
