package virtualmachine

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	"podvirt.dev/api"
)

const size = "1Gi"

// withCells gives a Node NUMA cells with as many pages as given, all free unless others have taken some.
func withCells(t *testing.T, node *corev1.Node, observed time.Time, cells ...api.Pages) *corev1.Node {
	t.Helper()
	numa := api.NUMAFacts{V: 1, Boot: bootID, Observed: observed, ThreadsPerCore: 1}
	for id, pages := range cells {
		distances := make([]int, len(cells))
		for other := range distances {
			distances[other] = 10 + 11*min(1, abs(other-id))
		}
		numa.Cells = append(numa.Cells, api.Cell{
			ID: id, CPUs: fmt.Sprint(id), Memory: 1 << 30, Hugepages: map[string]api.Pages{size: pages}, Distances: distances,
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

func abs(n int) int { return max(n, -n) }

func pool(total, free int64) api.Pages { return api.Pages{Total: total, Free: free} }

// pagesPod is a VM of so many pages of 1Gi.
func pagesPod(name string, pages int64, annotations map[string]string) *corev1.Pod {
	memory := fmt.Sprintf("%dGi", pages)
	all := map[string]string{"hugepages": size, "memory": memory}
	maps.Copy(all, annotations)
	pod := testPod(all)
	pod.Name, pod.UID = name, types.UID(name)
	pod.Spec.Containers[0].Resources.Limits["hugepages-1Gi"] = resource.MustParse(memory)
	return pod
}

// world is one Node with a plugin, and the Pods that were bound to it.
type world struct {
	*testing.T
	pl   *Plugin
	node *corev1.Node
	pods []fwk.PodInfo
}

func newWorld(t *testing.T, cells ...api.Pages) *world {
	node := withCells(t, testNode(t, "n", nil), time.Unix(1000, 0), cells...)
	return &world{T: t, pl: testPlugin(node), node: node}
}

func (w *world) info() nodeInfo { return nodeInfo{node: w.node, pods: w.pods} }

// schedule runs PreFilter, Filter and Reserve; it returns the cells, or the reason.
func (w *world) schedule(pod *corev1.Pod) string {
	w.Helper()
	w.pl.handle.(*handle).nodes[w.node.Name] = w.info()
	state := &cycleState{data: map[fwk.StateKey]fwk.StateData{}}
	if _, status := w.pl.PreFilter(w.Context(), state, pod, nil); !status.IsSuccess() {
		return status.Message()
	}
	if status := w.pl.Filter(w.Context(), state, pod, w.info()); !status.IsSuccess() {
		return fmt.Sprintf("%v: %s", status.Code(), status.Message())
	}
	if status := w.pl.Reserve(w.Context(), state, pod, w.node.Name); !status.IsSuccess() {
		return status.Message()
	}
	w.pods = append(slices.Clone(w.pods), &podInfo{pod: pod}) // assumed: its cells are in the ledger only
	return formatCells(w.pl.ledger.of(pod.UID))
}

func TestCellsAreChosenAndKept(t *testing.T) {
	const single, none = "single", "none"
	type vm struct {
		pages int64
		numa  string // "": not written
		want  string
	}
	tests := map[string]struct {
		cells []api.Pages
		vms   []vm
	}{
		"best fit": {[]api.Pages{pool(8, 8), pool(4, 4)}, []vm{{5, "", "0"}, {4, "", "1"}, {3, "", "0"}}},
		"the last waits": {[]api.Pages{pool(8, 8), pool(4, 4)}, []vm{
			{6, "", "0"}, {4, "", "1"}, {2, "", "0"}, {1, "", "Unschedulable: not enough free 1Gi pages: 1 needed"},
		}},
		"enough in all, not in one": {[]api.Pages{pool(5, 5), pool(5, 5)}, []vm{
			{6, single, "UnschedulableAndUnresolvable: not enough free 1Gi pages in 1 NUMA cell(s): 6 needed in one"}, {6, "", "0,1"},
		}},
		"as even as it goes": {[]api.Pages{pool(3, 3), pool(4, 4), pool(4, 4)}, []vm{
			{7, "", "1,2"}, {4, "", "Unschedulable: not enough free 1Gi pages: 4 needed"},
		}},
		"two cells": {[]api.Pages{pool(8, 8), pool(8, 8)}, []vm{
			{8, "2", "0,1"}, {8, "2", "0,1"}, {2, "2", "Unschedulable: not enough free 1Gi pages in 2 NUMA cell(s): 1 needed in each"},
		}},
		"no cell at all":       {[]api.Pages{pool(8, 8)}, []vm{{8, none, ""}}},
		"others took some":     {[]api.Pages{pool(64, 44)}, []vm{{50, "", "Unschedulable: not enough free 1Gi pages: 50 needed"}, {44, "", "0"}}},
		"pools are not enough": {[]api.Pages{pool(2, 2)}, []vm{{3, "", "UnschedulableAndUnresolvable: not enough free 1Gi pages: 3 needed"}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tt.cells...)
			for i, vm := range tt.vms {
				annotations := map[string]string{"cpu-topology": "cores=2"}
				if vm.numa != "" {
					annotations["numa"] = vm.numa
				}
				if got := w.schedule(pagesPod(fmt.Sprint("vm", i), vm.pages, annotations)); got != vm.want {
					t.Errorf("VM %d of %d pages, numa %q: %q; want %q", i, vm.pages, vm.numa, got, vm.want)
				}
			}
		})
	}
}

// TestNearestCells: of equal sets the closest together (SC-056).
func TestNearestCells(t *testing.T) {
	w := newWorld(t)
	numa := api.NUMAFacts{V: 1, Boot: bootID, ThreadsPerCore: 1}
	for id, distances := range [][]int{{10, 21, 21, 21}, {21, 10, 21, 12}, {21, 21, 10, 21}, {21, 12, 21, 10}} {
		numa.Cells = append(numa.Cells, api.Cell{ID: id, CPUs: "0", Hugepages: map[string]api.Pages{size: pool(4, 4)}, Distances: distances})
	}
	text, err := numa.Encode()
	if err != nil {
		t.Fatal(err)
	}
	w.node = w.node.DeepCopy()
	w.node.Annotations[api.NodeNUMA] = text
	if got := w.schedule(pagesPod("vm", 8, nil)); got != "1,3" {
		t.Errorf("cells %s; want 1,3", got)
	}
}

// TestWhatFactsHaveSeenIsNotCountedTwice goes through the life of a VM's pages (SC-046, SC-047).
func TestWhatFactsHaveSeenIsNotCountedTwice(t *testing.T) {
	w := newWorld(t, pool(8, 8))
	first := pagesPod("first", 5, nil)
	w.schedule(first)
	free := func() int64 {
		w.pl.handle.(*handle).nodes[w.node.Name] = w.info()
		return w.pl.room(w.pl.cells.get(w.node), size, w.info()).pages[0]
	}
	step := func(what string, want int64) {
		t.Helper()
		if got := free(); got != want {
			t.Errorf("%s: %d pages are free; want %d", what, got, want)
		}
	}
	step("reserved", 3)

	bound := first.DeepCopy()
	bound.Annotations[api.KeyNUMACell] = "0"
	w.pods = []fwk.PodInfo{&podInfo{pod: bound}}
	w.pl.ledger.release(first.UID) // as after a restart of the scheduler
	step("bound", 3)

	started := bound.DeepCopy()
	started.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: api.ContainerName, State: corev1.ContainerState{
		Running: &corev1.ContainerStateRunning{StartedAt: metav1.Unix(2000, 0)},
	}}}
	w.pods = []fwk.PodInfo{&podInfo{pod: started}}
	step("started, facts are older", 3)
	w.node = withCells(t, w.node, time.Unix(2001, 0), pool(8, 3))
	step("facts have seen it", 3)
	w.node = withCells(t, w.node, time.Unix(2002, 0), pool(8, 1))
	step("somebody else took two", 1)

	before := w.info()
	without := nodeInfo{node: w.node}
	w.pl.handle.(*handle).nodes[w.node.Name] = before
	if got := w.pl.room(w.pl.cells.get(w.node), size, without).pages[0]; got != 6 {
		t.Errorf("preemption would free 5 pages of 6 that are no foreign ones: %d; want 6", got)
	}
	w.pods = nil
	step("gone, facts are older", 1)
	w.node = withCells(t, w.node, time.Unix(2003, 0), pool(8, 6))
	step("gone, facts know", 6)
}

func TestUnreserveGivesBack(t *testing.T) {
	w := newWorld(t, pool(4, 4))
	pod := pagesPod("vm", 4, nil)
	if got := w.schedule(pod); got != "0" {
		t.Fatal(got)
	}
	w.pods = nil // forgotten by the scheduler
	w.pl.Unreserve(t.Context(), nil, pod, w.node.Name)
	if got := w.schedule(pagesPod("other", 4, nil)); got != "0" {
		t.Errorf("after Unreserve: %s; want cell 0", got)
	}
	w.pl.ledger.handler().OnDelete(pagesPod("other", 4, nil))
	if len(w.pl.ledger.cells) != 0 {
		t.Errorf("the ledger keeps Pods that are gone: %v", w.pl.ledger.cells)
	}
}

func TestPagesWakeWhoNeedsThem(t *testing.T) {
	plain := testNode(t, "n", nil)
	at := time.Unix(1000, 0)
	before := withCells(t, plain, at, pool(8, 2))
	pl := testPlugin(before)
	gone := pagesPod("gone", 4, map[string]string{"numa-cell": "0"})
	waits := pagesPod("waits", 4, nil)
	tests := map[string]struct {
		pod      *corev1.Pod
		old, now *corev1.Node
		want     fwk.QueueingHint
	}{
		"a page is free again":      {waits, before, withCells(t, plain, at, pool(8, 3)), fwk.Queue},
		"one more is taken":         {waits, before, withCells(t, plain, at, pool(8, 1)), fwk.QueueSkip},
		"facts appear":              {waits, plain, before, fwk.Queue},
		"a VM without pages sleeps": {testPod(nil), before, withCells(t, plain, at, pool(8, 8)), fwk.QueueSkip},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got, err := pl.isSchedulableAfterNodeChange(klog.FromContext(t.Context()), tt.pod, tt.old, tt.now); err != nil || got != tt.want {
				t.Errorf("hint = %v, %v; want %v", got, err, tt.want)
			}
		})
	}
	for name, tt := range map[string]struct {
		pod, gone *corev1.Pod
		want      fwk.QueueingHint
	}{
		"a VM with pages goes":        {waits, gone, fwk.Queue},
		"one without goes":            {waits, testPod(nil), fwk.QueueSkip},
		"nobody who needs pages":      {testPod(nil), gone, fwk.QueueSkip},
		"an ordinary Pod went":        {waits, &corev1.Pod{}, fwk.QueueSkip},
		"a VM that was never started": {waits, pagesPod("gone", 4, nil), fwk.QueueSkip},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := pl.isSchedulableAfterPodDeleted(klog.FromContext(t.Context()), tt.pod, tt.gone, nil); err != nil || got != tt.want {
				t.Errorf("hint = %v, %v; want %v", got, err, tt.want)
			}
		})
	}
}

// TestScoreOfCells: the Node whose cell is left with least comes first, and 1Gi pools are kept (SC-045, SC-061).
func TestScoreOfCells(t *testing.T) {
	tight := withCells(t, testNode(t, "tight", nil), time.Unix(0, 0), pool(8, 4))
	wide := withCells(t, testNode(t, "wide", nil), time.Unix(0, 0), pool(8, 8))
	got := scores(t, testPlugin(tight, wide), pagesPod("vm", 4, nil), tight, wide)
	if want := map[string]int64{"tight": 100, "wide": 40}; !cmp.Equal(got, want) {
		t.Errorf("scores = %v; want %v", got, want)
	}
	plain := testNode(t, "plain", nil)
	got = scores(t, testPlugin(plain, wide), testPod(nil), plain, wide)
	if want := map[string]int64{"plain": 100, "wide": 50}; !cmp.Equal(got, want) {
		t.Errorf("scores = %v; want %v", got, want)
	}
}
