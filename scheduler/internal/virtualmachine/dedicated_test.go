package virtualmachine

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	"podvirt.dev/api"
)

// cpuCell is a cell with CPUs and pages of 1Gi.
type cpuCell struct {
	cpus, reserved, exclusive string
	pages                     int64
}

func withCPUs(t *testing.T, node *corev1.Node, kubelet *api.Kubelet, threads int, cells ...cpuCell) *corev1.Node {
	t.Helper()
	numa := api.NUMAFacts{V: 1, Boot: bootID, Observed: time.Unix(1000, 0), ThreadsPerCore: threads, Kubelet: kubelet}
	for id, c := range cells {
		numa.Cells = append(numa.Cells, api.Cell{
			ID: id, CPUs: c.cpus, Reserved: c.reserved, Exclusive: c.exclusive, Hugepages: map[string]api.Pages{size: pool(c.pages, c.pages)},
		})
	}
	text, err := numa.Encode()
	if err != nil {
		t.Fatal(err)
	}
	node = node.DeepCopy()
	node.Annotations[api.NodeNUMA] = text
	return node
}

// dedicatedPod is a VM of so many CPUs of its own and so many pages of 1Gi.
func dedicatedPod(name string, cpus, pages int64, annotations map[string]string) *corev1.Pod {
	all := map[string]string{"cpu-dedicated": "true"}
	maps.Copy(all, annotations)
	pod := testPod(all)
	if pages > 0 {
		pod = pagesPod(name, pages, all)
	}
	pod.Name, pod.UID = name, types.UID(name)
	pod.Spec.Containers[0].Resources.Limits[corev1.ResourceCPU] = *resource.NewQuantity(cpus, resource.DecimalSI)
	return pod
}

// TestDedicatedCPUs: where the kubelet gives CPUs out, and whole cores if it says so, the cell is chosen that is left
// with least, or the one that the kubelet will choose (SC-051, SC-052, SC-053).
func TestDedicatedCPUs(t *testing.T) {
	static := &api.Kubelet{CPU: "static", Memory: "None", Topology: "none"}
	aligned := &api.Kubelet{CPU: "static", Memory: "None", Topology: "single-numa-node"}
	cores := &api.Kubelet{CPU: "static", CPUOptions: []string{"full-pcpus-only"}, Memory: "None", Topology: "none"}
	two := []cpuCell{{"0-7", "0", "", 8}, {"8-13", "", "", 4}}
	type vm struct {
		cpus, pages int64
		annotations map[string]string
		want        string
	}
	for name, tt := range map[string]struct {
		kubelet *api.Kubelet
		threads int
		cells   []cpuCell
		vms     []vm
	}{
		"nobody knows what the kubelet does": {nil, 1, two, []vm{{2, 0, nil, "UnschedulableAndUnresolvable: CPU manager is not static"}}},
		"CPU manager none": {&api.Kubelet{CPU: "none"}, 1, two, []vm{
			{2, 0, nil, "UnschedulableAndUnresolvable: CPU manager is not static"},
			{2, 0, map[string]string{"numa": "none"}, "UnschedulableAndUnresolvable: CPU manager is not static"},
		}},
		"best fit": {static, 1, two, []vm{
			{6, 0, nil, "1"}, {4, 0, nil, "0"}, {3, 0, nil, "0"}, {1, 0, nil, "Unschedulable: not enough whole CPUs: 1 needed"},
		}},
		"reserved CPUs are nobody's": {static, 1, two, []vm{
			{8, 0, map[string]string{"numa": "single"}, "UnschedulableAndUnresolvable: not enough whole CPUs in 1 NUMA cell(s): 8 needed in one"},
		}},
		"over two cells": {static, 1, two, []vm{
			{10, 0, map[string]string{"cpu-topology": "cores=8"}, "0,1"},
			{4, 0, map[string]string{"numa": "2"}, "Unschedulable: not enough whole CPUs in 2 NUMA cell(s): 2 needed in each"},
		}},
		"no cells": {static, 1, two, []vm{{13, 0, map[string]string{"numa": "none", "cpu-topology": "cores=8"}, ""}}},
		"the kubelet aligns, and takes the first that does": {aligned, 1, two, []vm{{6, 0, nil, "0"}, {6, 0, nil, "1"}}},
		"the kubelet would refuse two cells": {aligned, 1, two, []vm{
			{10, 0, map[string]string{"cpu-topology": "cores=8"}, "UnschedulableAndUnresolvable: not enough whole CPUs: 10 needed"},
			{4, 0, map[string]string{"numa": "2"}, "UnschedulableAndUnresolvable: kubelet topology policy would refuse it"},
		}},
		"CPUs and pages of one cell": {static, 1, two, []vm{
			{4, 4, nil, "1"}, {3, 4, nil, "0"}, {5, 4, map[string]string{"numa": "single"}, "Unschedulable: not enough whole CPUs in 1 NUMA cell(s): 5 needed in one"},
			{1, 5, map[string]string{"numa": "single"}, "Unschedulable: not enough free 1Gi pages in 1 NUMA cell(s): 5 needed in one"},
		}},
		"pages here, CPUs there": {static, 1, []cpuCell{{"0-3", "0-2", "", 8}, {"4-7", "", "", 1}}, []vm{
			{2, 4, map[string]string{"numa": "single"},
				"UnschedulableAndUnresolvable: not enough free 1Gi pages in 1 NUMA cell(s): 4 needed in one, beside 2 whole CPUs"},
		}},
		"whole cores": {cores, 2, []cpuCell{{"0-7", "0", "", 0}}, []vm{
			{5, 0, map[string]string{"emulator-thread": "isolated"}, "UnschedulableAndUnresolvable: 5 CPUs are not whole cores of 2 threads"},
			{6, 0, map[string]string{"emulator-thread": "isolated-even", "cpu-topology": "cores=4"}, "0"}, {2, 0, nil, "Unschedulable: not enough whole CPUs: 2 needed"},
		}},
		"CPUs of others": {static, 1, []cpuCell{{"0-7", "0", "4-6", 0}}, []vm{{5, 0, nil, "Unschedulable: not enough whole CPUs: 5 needed"}, {4, 0, nil, "0"}}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.node = withCPUs(t, w.node, tt.kubelet, tt.threads, tt.cells...)
			w.pl.cells.onUpdate(w.node)
			for i, vm := range tt.vms {
				if got := w.schedule(dedicatedPod(fmt.Sprint("vm", i), vm.cpus, vm.pages, vm.annotations)); got != vm.want {
					t.Errorf("VM %d of %d CPUs and %d pages: %q; want %q", i, vm.cpus, vm.pages, got, vm.want)
				}
			}
		})
	}
}

// TestCPUsAreNotCountedTwice goes through the life of a VM's CPUs beside those of an ordinary Pod of class Guaranteed
// (SC-046).
func TestCPUsAreNotCountedTwice(t *testing.T) {
	w := newWorld(t)
	static := &api.Kubelet{CPU: "static"}
	facts := func(exclusive string) { w.node = withCPUs(t, w.node, static, 1, cpuCell{"0-9", "0", exclusive, 0}) }
	step := func(what string, want int64) {
		t.Helper()
		w.pl.handle.(*handle).nodes[w.node.Name] = w.info()
		if got := w.pl.room(w.pl.cells.get(w.node), "", w.info()).cpus[0]; got != want {
			t.Errorf("%s: %d CPUs are free; want %d", what, got, want)
		}
	}
	facts("")
	first := dedicatedPod("first", 4, 0, nil)
	w.schedule(first)
	step("reserved", 5)
	bound := first.DeepCopy()
	bound.Annotations[api.KeyNUMACell] = "0"
	w.pods = []fwk.PodInfo{&podInfo{pod: bound}}
	w.pl.ledger.release(first.UID) // as after a restart of the scheduler
	step("bound", 5)
	facts("1-4")
	step("the kubelet has given them", 5)
	bound.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: api.ContainerName, State: corev1.ContainerState{
		Running: &corev1.ContainerStateRunning{StartedAt: metav1.Unix(2000, 0)},
	}}}
	step("it runs", 5)
	other := &corev1.Pod{Status: corev1.PodStatus{QOSClass: corev1.PodQOSGuaranteed}, Spec: corev1.PodSpec{Containers: []corev1.Container{
		{Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")}}},
		{Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m")}}},
	}}}
	w.pods = append(w.pods, &podInfo{pod: other})
	facts("1-6")
	step("an ordinary Pod has two", 3)
	facts("1-8")
	step("somebody has two more", 1)
	w.pods = w.pods[1:]
	facts("5-6")
	step("the VM is gone", 7)
}

// TestCPUsWakeWhoNeedsThem: free CPUs and the kubelet's policy wake a VM with CPUs of its own, and no other (SC-083).
func TestCPUsWakeWhoNeedsThem(t *testing.T) {
	plain := testNode(t, "n", nil)
	facts := func(policy, exclusive string) *corev1.Node {
		return withCPUs(t, plain, &api.Kubelet{CPU: policy}, 1, cpuCell{"0-7", "0", exclusive, 0})
	}
	pl := testPlugin(plain)
	waits := dedicatedPod("waits", 4, 0, nil)
	for name, tt := range map[string]struct {
		pod      *corev1.Pod
		old, now *corev1.Node
		want     fwk.QueueingHint
	}{
		"CPUs are free again":     {waits, facts("static", "1-7"), facts("static", "1-3"), fwk.Queue},
		"more are taken":          {waits, facts("static", "1-3"), facts("static", "1-5"), fwk.QueueSkip},
		"the policy is static":    {waits, facts("none", ""), facts("static", ""), fwk.Queue},
		"a VM without them waits": {testPod(nil), facts("static", "1-7"), facts("static", ""), fwk.QueueSkip},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := pl.isSchedulableAfterNodeChange(klog.FromContext(t.Context()), tt.pod, tt.old, tt.now); err != nil || got != tt.want {
				t.Errorf("hint = %v, %v; want %v", got, err, tt.want)
			}
		})
	}
	gone := dedicatedPod("gone", 2, 0, map[string]string{"numa-cell": "0"})
	if got, err := pl.isSchedulableAfterPodDeleted(klog.FromContext(t.Context()), waits, gone, nil); err != nil || got != fwk.Queue {
		t.Errorf("a VM with CPUs goes: %v, %v; want it to wake", got, err)
	}
}

// TestDedicatedMistakes: what the kubelet would not give is refused before any node is looked at (VM-024).
func TestDedicatedMistakes(t *testing.T) {
	w := newWorld(t)
	half := dedicatedPod("half", 4, 0, nil)
	half.Spec.Containers[0].Resources.Limits[corev1.ResourceCPU] = resource.MustParse("3500m")
	if got := w.schedule(half); !strings.Contains(got, "needs equal integer CPU requests and limits; found request 3500m, limit 3500m") {
		t.Errorf("half a CPU: %q", got)
	}
	sidecar := dedicatedPod("sidecar", 4, 0, nil)
	sidecar.Spec.Containers = append(sidecar.Spec.Containers, corev1.Container{Name: "proxy"})
	const want = "spec.containers[proxy].resources.limits.cpu: must be set and equal to the request: podvirt.dev/cpu-dedicated needs it in every container"
	if got := w.schedule(sidecar); !strings.Contains(got, want) {
		t.Errorf("a sidecar without limits: %q; want %q", got, want)
	}
}
