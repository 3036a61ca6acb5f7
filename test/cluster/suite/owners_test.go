package suite

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

// statefulSet is a pool of the VM with a data disk for each member, whose claims go with it.
func (v *vm) statefulSet(t *testing.T, replicas int) string {
	t.Helper()
	v.container().VolumeDevices = append(v.container().VolumeDevices, corev1.VolumeDevice{Name: "data", DevicePath: "/vm/disks/data"})
	return manifest(t, map[string]any{
		"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": map[string]any{"name": v.Name},
		"spec": map[string]any{
			"replicas": replicas, "serviceName": v.Name, "podManagementPolicy": "Parallel",
			"persistentVolumeClaimRetentionPolicy": map[string]any{"whenDeleted": "Delete", "whenScaled": "Retain"},
			"selector":                             map[string]any{"matchLabels": map[string]any{api.LabelVM: v.Name}},
			"template":                             corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: v.Labels, Annotations: v.Annotations}, Spec: v.Spec},
			"volumeClaimTemplates": []any{map[string]any{
				"metadata": map[string]any{"name": "data"},
				"spec": map[string]any{
					"storageClassName": "podvirt-local", "volumeMode": "Block", "accessModes": []string{"ReadWriteOncePod"},
					"resources": map[string]any{"requests": map[string]any{"storage": "32Mi"}},
				},
			}},
		},
	})
}

// TestStatefulSet: the members of a pool differ in everything that names a machine, each has a disk of its own, and an
// autoscaler sets their number (VM-128). With the pool go those claims that it owns, and no others (VM-126).
func TestStatefulSet(t *testing.T) {
	ns := setUp(t, "guest-tiny")
	_, public := sshKey(t)
	ns.Apply(t, keysSecret("pool-keys", public)) // a seed, so that the guest has a host name
	ns.Apply(t, newVM("pool", "guest-tiny").keys("root", "pool-keys").annotate(map[string]string{"identity": "pod"}).statefulSet(t, 2))
	ns.Apply(t, pvc("kept", corev1.PersistentVolumeBlock, "32Mi"))
	ns.Apply(t, `
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: pool}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: StatefulSet, name: pool}
  minReplicas: 3
  maxReplicas: 4
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}]
`)
	seen := map[string]string{}
	for _, name := range []string{"pool-0", "pool-1", "pool-2"} {
		harness.Eventually(t, harness.Medium, name, func(ctx context.Context) error {
			_, err := ns.Client.CoreV1().Pods(ns.Name).Get(ctx, name, metav1.GetOptions{})
			return err
		})
		ns.WaitLog(t, name, api.ContainerName, "podvirt-tiny: host name "+name, harness.Medium)
		ns.WaitLog(t, name, api.ContainerName, "podvirt-tiny: data on", harness.Medium)
		differs(t, seen, name, ctl(t, ns, name, "xml"))
	}
	if err := ns.Client.AppsV1().StatefulSets(ns.Name).Delete(t.Context(), "pool", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, harness.Medium, "end of the pool and its claims", func(ctx context.Context) error {
		claims, err := ns.Client.CoreV1().PersistentVolumeClaims(ns.Name).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		var names []string
		for _, claim := range claims.Items {
			names = append(names, claim.Name)
		}
		if !slices.Equal(names, []string{"kept"}) {
			return fmt.Errorf("claims %s", strings.Join(names, " "))
		}
		return nil
	})
}

// TestAutoscaler: an autoscaler sees what a VM's guest computes, starts VMs that share the load, and ends them when there
// is none (VM-128).
func TestAutoscaler(t *testing.T) {
	long(t, "test-life")
	c := harness.Installed(t)
	c.RequireImage(t, "tools")
	c.Metrics(t)
	ns := setUp(t, "guest-tiny")
	ns.Apply(t, newVM("busy", "guest-tiny").terminal().deployment(t, 1))
	ns.Apply(t, `
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: busy}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: busy}
  minReplicas: 1
  maxReplicas: 4
  metrics: [{type: Resource, resource: {name: cpu, target: {type: AverageValue, averageValue: 200m}}}]
  behavior: {scaleDown: {stabilizationWindowSeconds: 0}}
`)
	idle := func(s autoscalingv2.HorizontalPodAutoscalerStatus) bool {
		return s.DesiredReplicas == 1 && s.CurrentReplicas == 1 && len(s.CurrentMetrics) == 1 &&
			s.CurrentMetrics[0].Resource != nil && s.CurrentMetrics[0].Resource.Current.AverageValue.MilliValue() < 200
	}
	waitScaler(t, ns, "one VM while nothing is computed", idle)
	term := ns.Attach(t, lastPod(t, ns, api.LabelVM+"=busy").Name, api.ContainerName)
	logIn(t, term)
	term.Send(t, "while :; do :; done &\n")
	waitScaler(t, ns, "four VMs", func(s autoscalingv2.HorizontalPodAutoscalerStatus) bool { return s.DesiredReplicas == 4 })
	waitDeployment(t, ns, "busy", 4)
	term.Send(t, "kill $!\n")
	waitScaler(t, ns, "one VM again", idle)
}

// lastPod waits until one of some Pods runs.
func lastPod(t *testing.T, ns *harness.Namespace, selector string) *corev1.Pod {
	t.Helper()
	var left []corev1.Pod
	harness.Eventually(t, harness.Medium, "one Pod", func(ctx context.Context) error {
		list, err := ns.Client.CoreV1().Pods(ns.Name).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return err
		}
		left = slices.DeleteFunc(list.Items, func(pod corev1.Pod) bool { return pod.Status.Phase != corev1.PodRunning })
		if len(left) != 1 {
			return fmt.Errorf("%d Pods", len(left))
		}
		return nil
	})
	return &left[0]
}

// waitScaler waits for a status of the autoscaler, which looks every 15 s at figures that are as old.
func waitScaler(t *testing.T, ns *harness.Namespace, what string, ok func(autoscalingv2.HorizontalPodAutoscalerStatus) bool) {
	t.Helper()
	harness.Eventually(t, harness.Long, what, func(ctx context.Context) error {
		scaler, err := ns.Client.AutoscalingV2().HorizontalPodAutoscalers(ns.Name).Get(ctx, "busy", metav1.GetOptions{})
		if err == nil && !ok(scaler.Status) {
			err = fmt.Errorf("status: %+v", scaler.Status)
		}
		return err
	})
}

// differs wants an identity that no other member has.
func differs(t *testing.T, seen map[string]string, name, xml string) {
	t.Helper()
	for what, pattern := range map[string]string{"UUID": `<uuid>([^<]+)</uuid>`, "MAC": `<mac address='([^']+)'`} {
		found := regexp.MustCompile(pattern).FindStringSubmatch(xml)
		if found == nil {
			t.Fatalf("%s has no %s", name, what)
		}
		if other := seen[what+found[1]]; other != "" {
			t.Errorf("%s and %s have the same %s %s", name, other, what, found[1])
		}
		seen[what+found[1]] = name
	}
}
