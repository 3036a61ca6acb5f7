package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"podvirt.dev/api"
)

func pages(total, free int64) api.Pages { return api.Pages{Total: total, Free: free} }

func testCells(f *fleet) {
	host := cpuFacts("Penryn", "ssse3")
	f.add(machine{"two-cells", host, []api.Pages{pages(80, 80), pages(40, 40)}})
	for _, step := range []struct {
		name string
		run  func(*fleet)
	}{
		{"the cell is in the first version that has a node", (*fleet).cellInBinding},
		{"best fit", (*fleet).bestFit},
		{"room in all, not in one", (*fleet).notInOne},
		{"pages of others", (*fleet).foreign},
		{"preemption", (*fleet).preemption},
		{"a restart at any time oversells nothing", (*fleet).restart},
	} {
		if !f.Run(step.name, func(t *testing.T) {
			step.run(f.sub(t))
		}) {
			return
		}
	}
}

// cellInBinding: whoever sees the Pod with its node sees its cell (SC-048).
func (f *fleet) cellInBinding() {
	ctx, cancel := context.WithTimeout(f.Context(), patience)
	defer cancel()
	const bindings, patches = `apiserver_request_total\{.*resource="pods",.*subresource="binding",.*verb="POST",.*\}`,
		`apiserver_request_total\{.*resource="pods",.*verb="(?:PATCH|APPLY)",.*\}`
	bound, patched := f.requests(bindings), f.requests(patches)
	f.create(vm{name: "first", pages: 50})
	pod := f.awaitBound(ctx, "first")
	if b, p := f.requests(bindings)-bound, f.requests(patches)-patched; b != 1 || p != 0 {
		f.Errorf("%v bindings and %v patches of Pods; want one and none", b, p)
	}
	if got := pod.Spec.NodeName + "/" + pod.Annotations[api.KeyNUMACell]; got != "two-cells/0" {
		f.Errorf("the first version with a node says %s; want two-cells/0", got)
	}
}

// bestFit: 50 + 30 in the cell of 80, 40 in the cell of 40, then no more (SC-044).
func (f *fleet) bestFit() {
	for i, step := range []struct {
		pages int64
		want  string
	}{{40, "two-cells/1"}, {30, "two-cells/0"}} {
		name := fmt.Sprintf("fit-%d", i)
		f.create(vm{name: name, pages: step.pages})
		if got := f.placed(name); got != step.want {
			f.Errorf("%d pages: %s; want %s", step.pages, got, step.want)
		}
	}
	f.create(vm{name: "late", pages: 20})
	if got := f.placed("late"); !strings.Contains(got, "not enough free 2Mi pages: 20 needed") && !strings.Contains(got, "Insufficient hugepages-2Mi") {
		f.Errorf("message %q", got)
	}
	f.remove("fit-1")
	await(f.T, "late is placed when another VM goes", func() bool { return getPod(f.T, f.client, "late").Spec.NodeName == "two-cells" })
	for _, name := range []string{"first", "fit-0", "late"} {
		f.remove(name)
	}
}

// notInOne: the Node has the pages, no cell has (SC-044). More free pages wake the VM that waits for them (SC-083).
func (f *fleet) notInOne() {
	f.annotateNode("two-cells", api.NodeNUMA, numa(f.T, []api.Pages{pages(80, 80), pages(80, 80)}))
	f.annotateNode("two-cells", api.NodeNUMA, numa(f.T, []api.Pages{pages(80, 50), pages(80, 50)}))
	f.create(vm{name: "single", pages: 60, annotations: map[string]string{api.KeyNUMA: "single"}})
	if got := f.placed("single"); !strings.Contains(got, "not enough free 2Mi pages in 1 NUMA cell(s): 60 needed in one") {
		f.Errorf("message %q", got)
	}
	before := f.attempts()
	f.news(1000)
	f.annotateNode("two-cells", api.NodeNUMA, numa(f.T, []api.Pages{pages(80, 49), pages(80, 50)}))
	f.create(vm{name: "other", pages: 10}) // goes through the queue after all of them
	f.placed("other")
	if after := f.attempts(); after-before != 1 {
		f.Errorf("%v attempts; want 1, that of the other VM", after-before)
	}
	f.remove("other")
	begin := time.Now()
	f.annotateNode("two-cells", api.NodeNUMA, numa(f.T, []api.Pages{pages(80, 50), pages(80, 70)}))
	await(f.T, "it is placed", func() bool { return getPod(f.T, f.client, "single").Spec.NodeName != "" })
	f.Logf("woken and bound after %v", time.Since(begin))
	if got := f.placed("single"); got != "two-cells/1" {
		f.Errorf("placed on %s; want two-cells/1", got)
	}
	f.remove("single")
}

// news changes Nodes and Pods so often in a way that helps nobody.
func (f *fleet) news(count int) {
	f.Helper()
	var wait sync.WaitGroup
	next := make(chan int)
	for range 16 {
		wait.Go(func() {
			for i := range next {
				patch := fmt.Appendf(nil, `{"metadata":{"annotations":{"example.org/news":"%d"}}}`, i)
				name := []string{"old", "amd", "intel"}[i%3]
				if _, err := f.client.CoreV1().Nodes().Patch(f.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
					f.Error(err)
				}
			}
		})
	}
	for i := range count {
		next <- i
	}
	close(next)
	wait.Wait()
}

// attempts is how many scheduling cycles have ended, of the profile podvirt.
func (f *fleet) attempts() float64 {
	return f.metric(`scheduler_schedule_attempts_total\{.*\}`)
}

// foreign: what others have taken is not given away, and not counted twice (SC-047).
func (f *fleet) foreign() {
	f.annotateNode("two-cells", api.NodeNUMA, numa(f.T, []api.Pages{pages(80, 60), pages(40, 0)}))
	f.create(vm{name: "too-large", pages: 61})
	if got := f.placed("too-large"); !strings.Contains(got, "not enough free 2Mi pages: 61 needed") {
		f.Errorf("message %q", got)
	}
	f.remove("too-large")
	f.create(vm{name: "exact", pages: 60})
	if got := f.placed("exact"); got != "two-cells/0" {
		f.Errorf("placed on %s; want two-cells/0", got)
	}
	f.remove("exact")
}

// preemption: the victim is the VM in the cell, not another one; a CPU that no Node has costs nobody (SC-060).
func (f *fleet) preemption() {
	f.annotateNode("two-cells", api.NodeNUMA, numa(f.T, []api.Pages{pages(80, 80), pages(40, 40)}))
	for name, amount := range map[string]int64{"victim": 80, "bystander": 40} {
		f.create(vm{name: name, pages: amount})
		f.placed(name)
	}
	f.create(vm{name: "urgent", pages: 70, priority: "high", annotations: map[string]string{api.KeyNUMA: "single"}})
	gone := func(name string) bool { return getPod(f.T, f.client, name).DeletionTimestamp != nil }
	await(f.T, "the VM in the cell has to go", func() bool { return gone("victim") })
	if gone("bystander") {
		f.Error("the VM in the other cell has to go as well")
	}
	f.remove("victim")
	await(f.T, "the urgent VM has the cell", func() bool { return getPod(f.T, f.client, "urgent").Spec.NodeName != "" })
	if got := f.placed("urgent"); got != "two-cells/0" {
		f.Errorf("placed on %s; want two-cells/0", got)
	}
	for _, name := range []string{"bystander", "urgent"} {
		f.remove(name)
	}
}

// restart kills the scheduler in the middle of a crowd. The one that stands by goes on: every cell holds at most what it
// has, and all that fits is placed (SC-046, SC-084, SC-089).
func (f *fleet) restart() {
	const machines, perCell = 20, 130
	var list []machine
	for i := range machines {
		list = append(list, machine{fmt.Sprintf("crowd%02d", i), cpuFacts("Westmere", "aes"), []api.Pages{pages(perCell, perCell), pages(perCell, perCell)}})
	}
	f.add(list...)
	f.standby.start(f.T)
	const count, amount = 2 * machines * (perCell / 10), 10 // exactly what fits: 520
	for i := range count {
		f.create(vm{name: fmt.Sprintf("crowd-%03d", i), pages: amount, annotations: map[string]string{api.KeyCPUModel: "Westmere"}})
		if i == count/2 { // in the middle of binding those before
			f.scheduler.kill()
			f.scheduler.port = f.standby.port // the one to ask from now on
		}
	}
	dead := time.Now()
	first := fmt.Sprintf("crowd-%03d", count/2+1) // made when nobody was there to place it
	await(f.T, "the other one places VMs", func() bool { return getPod(f.T, f.client, first).Spec.NodeName != "" })
	if late := time.Since(dead); late > 30*time.Second {
		f.Errorf("the other one places VMs %v after the leader was killed; want 20 s, and what a slow machine takes", late)
	}
	await(f.T, "all are placed", func() bool { return f.crowd(nil) == count })
	f.Logf("all are placed %v after the leader was killed", time.Since(dead))
	f.create(vm{name: "crowd-late", pages: amount, annotations: map[string]string{api.KeyCPUModel: "Westmere"}})
	if got := f.placed("crowd-late"); strings.HasPrefix(got, "crowd") {
		f.Errorf("one more than fits is on %s", got)
	}
	held := map[string]int64{}
	f.crowd(held)
	for place, pages := range held {
		if pages > perCell {
			f.Errorf("%s holds %d pages of %d", place, pages, perCell)
		}
	}
	if len(held) != 2*machines {
		f.Errorf("VMs are in %d cells; want all %d", len(held), 2*machines)
	}
}

// crowd counts the bound VMs of the crowd, and their pages per NODE/CELL.
func (f *fleet) crowd(held map[string]int64) int {
	f.Helper()
	pods, err := f.client.CoreV1().Pods("shop").List(f.Context(), metav1.ListOptions{})
	if err != nil {
		f.Fatal(err)
	}
	bound := 0
	for _, pod := range pods.Items {
		if !strings.HasPrefix(pod.Name, "crowd-") || pod.Spec.NodeName == "" {
			continue
		}
		bound++
		if held != nil {
			amount := pod.Spec.Containers[0].Resources.Limits[corev1.ResourceName("hugepages-2Mi")]
			held[pod.Spec.NodeName+"/"+pod.Annotations[api.KeyNUMACell]] += amount.Value() >> 21
		}
	}
	return bound
}
