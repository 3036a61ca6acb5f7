package main

import (
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"podvirt.dev/api"
	"podvirt.dev/internal/apitest"
)

// overcommit: admission writes requests by the cluster's ratios where a VM has none, and what is promised to more VMs than
// there is of it is what the ratio says: eight VMs of 4Gi on a node of 32Gi (SC-096, SC-097, VM-042).
func overcommit(t *testing.T, server *apitest.Server) {
	client := server.Client
	const model = "Cooperlake"
	makeNode(t, client, "full", &api.CPUFacts{Accelerator: api.AcceleratorKVM, Models: []string{model}})
	setAllocatable(t, client, "full", "1", "32Gi")
	set := func(data map[string]string) {
		t.Helper()
		data["launcher.image"] = "none"
		configs := client.CoreV1().ConfigMaps(api.SystemNamespace)
		object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: api.ConfigName}, Data: data}
		_, err := configs.Update(t.Context(), object, metav1.UpdateOptions{})
		if err != nil {
			_, err = configs.Create(t.Context(), object, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	short := func(name string, annotations map[string]string) *corev1.Pod {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{api.LabelVM: name}, Annotations: map[string]string{api.KeyCPUModel: model}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: api.ContainerName, Image: api.AliasImage}}},
		}
		maps.Copy(pod.Annotations, annotations)
		return pod
	}
	dryRun := func(annotations map[string]string) corev1.ResourceRequirements {
		pod, err := client.CoreV1().Pods("shop").Create(t.Context(), short("try", annotations), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			return corev1.ResourceRequirements{}
		}
		return pod.Spec.Containers[0].Resources
	}
	ratio := func(percent, low, high string) {
		t.Helper()
		set(map[string]string{"memory.overcommit-percent": percent, "cpu.allocation-ratio": "100"})
		await(t, "the policies apply "+percent+" %", func() bool {
			request := dryRun(map[string]string{api.KeyMemory: "4Gi"}).Requests[corev1.ResourceMemory]
			return request.Cmp(resource.MustParse(low)) >= 0 && request.Cmp(resource.MustParse(high)) <= 0
		})
	}
	set(map[string]string{})
	server.Apply(t, api.SystemNamespace, filepath.Join("..", "manifests", "admission", "podvirt-config-vm.yaml"),
		filepath.Join("..", "manifests", "admission", "podvirt-default-vm.yaml"))

	ratio("130", "3200Mi", "3600Mi")
	fill(t, client, short, 8)
	ratio("100", "4097Mi", "4600Mi")
	fill(t, client, short, 7)
	set(map[string]string{"cpu.allocation-ratio": "10"})
	ten := map[string]string{api.KeyMemory: "64Mi", api.KeyCPUTopology: "cores=10"}
	await(t, "the policies apply 10 vCPUs on one CPU", func() bool {
		requests := dryRun(ten).Requests
		return requests.Cpu().String() == "1"
	})
	if _, err := client.CoreV1().Pods("shop").Create(t.Context(), short("ten", ten), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := awaitDecision(t, client, "ten"); got.Spec.NodeName != "full" || !got.Spec.Containers[0].Resources.Limits.Cpu().IsZero() {
		t.Errorf("10 vCPUs on %q, limits %v; want them on the node with one CPU, without a limit", got.Spec.NodeName, got.Spec.Containers[0].Resources.Limits)
	}
	own := map[string]string{api.KeyMemory: "64Mi", api.KeyCPUTopology: "cores=2", api.KeyCPUDedicated: "true"}
	if got := dryRun(own).Requests; !got.Cpu().IsZero() || got.Memory().IsZero() {
		t.Errorf("requests of a VM with CPUs of its own are %v; want memory alone", got)
	}
}

func setAllocatable(t *testing.T, client kubernetes.Interface, name, cpu, memory string) {
	t.Helper()
	node, err := client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node.Status.Allocatable[corev1.ResourceCPU], node.Status.Allocatable[corev1.ResourceMemory] = resource.MustParse(cpu), resource.MustParse(memory)
	node.Status.Allocatable[api.ResourceVhostNet] = resource.MustParse("100")
	if _, err := client.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// fill makes eight VMs of 4Gi, waits until as many are placed as should be, and removes them. Who is not placed must lack
// memory.
func fill(t *testing.T, client kubernetes.Interface, short func(string, map[string]string) *corev1.Pod, want int) {
	t.Helper()
	var names []string
	for i := range 8 {
		name := fmt.Sprintf("over-%d-%d", want, i)
		names = append(names, name)
		if _, err := client.CoreV1().Pods("shop").Create(t.Context(), short(name, map[string]string{api.KeyMemory: "4Gi"}), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	placed := func() (count int) {
		for _, name := range names {
			if getPod(t, client, name).Spec.NodeName == "full" {
				count++
			}
		}
		return count
	}
	await(t, fmt.Sprintf("%d VMs are placed", want), func() bool { return placed() >= want })
	now := int64(0)
	for _, name := range names {
		if pod := awaitDecision(t, client, name); pod.Spec.NodeName == "" && !strings.Contains(condition(pod).Message, "1 Insufficient memory") {
			t.Errorf("%s: %q", name, condition(pod).Message)
		}
	}
	if count := placed(); count != want {
		t.Errorf("%d VMs of 4Gi are on 32Gi; want %d", count, want)
	}
	for _, name := range names {
		if err := client.CoreV1().Pods("shop").Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Fatal(err)
		}
	}
}
