package facts

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/latest"
	"podvirt.dev/device-plugin/internal/node"
)

// fakeNode is a Node: what is applied is seen by the watch a moment later.
type fakeNode struct {
	view *latest.Value[node.View]

	mu     sync.Mutex
	writes []time.Time
	events []string
	fail   error
}

func (f *fakeNode) Apply(_ context.Context, annotations, labels map[string]string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes = append(f.writes, time.Now())
	if f.fail != nil {
		return f.fail
	}
	view, _ := f.view.Get()
	next := node.View{UID: view.UID, Annotations: maps.Clone(view.Annotations), Labels: maps.Clone(view.Labels)}
	if next.Annotations == nil {
		next.Annotations = map[string]string{}
	}
	for _, key := range []string{api.NodeCPU, api.NodeNUMA} {
		delete(next.Annotations, key)
	}
	maps.Copy(next.Annotations, annotations)
	next.Labels = maps.Clone(labels)
	f.view.Set(next)
	return nil
}

func (f *fakeNode) Event(_ context.Context, _ types.UID, warning bool, reason, message string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, fmt.Sprintf("%v %s %s", warning, reason, message))
	return nil
}

func (f *fakeNode) Untaint(context.Context, string) (bool, error) { return false, nil }

func (f *fakeNode) FactsWritten(Desired, []string) {}

func (f *fakeNode) written() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.writes)
}

func (f *fakeNode) told() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.events, "\n")
}

func (f *fakeNode) annotate(key, value string) {
	view, _ := f.view.Get()
	annotations := maps.Clone(view.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[key] = value
	f.view.Set(node.View{UID: "uid", Annotations: annotations, Labels: view.Labels})
}

// publish runs a publisher in a bubble of fake time. The function then acts and looks; settle lets everything happen
// that happens within the given time.
func publish(t *testing.T, view node.View, act func(f *fakeNode, snapshot *latest.Value[Snapshot], settle func(time.Duration))) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fakeNode{view: latest.New(view)}
		snapshot := latest.New(Snapshot{})
		p := NewPublisher(Options{
			Writer: f, Observer: f, Boot: thisBoot, View: f.view, Snapshot: snapshot,
			Settings: latest.New(Settings{Known: true, MinInterval: 5 * time.Second}),
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.Run(ctx)
		}()
		act(f, snapshot, func(d time.Duration) {
			<-time.After(d)
			synctest.Wait()
		})
		cancel()
		<-done
	})
}

func TestPublisherWritesOnlyChanges(t *testing.T) {
	publish(t, node.View{}, func(f *fakeNode, snapshot *latest.Value[Snapshot], settle func(time.Duration)) {
		snapshot.Set(Snapshot{CPU: cpuFacts(), NUMA: numaFacts(4)})
		settle(time.Minute)
		if n := f.written(); n != 0 {
			t.Errorf("%d writes before the Node was seen; want 0", n)
		}
		f.view.Set(node.View{UID: "uid"})
		settle(time.Second)
		if n := f.written(); n != 1 {
			t.Fatalf("%d writes of the first facts; want 1", n)
		}

		for range 3600 { // an hour in which the launcher looks every second and the Node is touched by others
			f.annotate("foreign", "x")
			snapshot.Set(Snapshot{CPU: cpuFacts(func(c *api.CPUFacts) { c.Observed = time.Now() }), NUMA: numaFacts(4)})
			settle(time.Second)
		}
		if n := f.written(); n != 1 {
			t.Errorf("%d writes after an hour without news; want 1", n)
		}

		for i := range 50 { // fifty VMs take pages within five seconds
			snapshot.Set(Snapshot{CPU: cpuFacts(), NUMA: numaFacts(int64(100 - i))})
			settle(100 * time.Millisecond)
		}
		settle(10 * time.Second)
		if n := f.written(); n < 2 || n > 3 {
			t.Errorf("%d writes; want one or two more than 1", n)
		}
		view, _ := f.view.Get()
		if !strings.Contains(view.Annotations[api.NodeNUMA], `"free":51`) {
			t.Errorf("the newest value is not there: %s", view.Annotations[api.NodeNUMA])
		}
	})
}

func TestPublisherTriesAgainWithTheNewestValue(t *testing.T) {
	publish(t, node.View{UID: "uid"}, func(f *fakeNode, snapshot *latest.Value[Snapshot], settle func(time.Duration)) {
		settle(10 * time.Second)
		f.mu.Lock()
		f.writes, f.fail = nil, errors.New("429")
		f.mu.Unlock()
		for i := range 600 {
			snapshot.Set(Snapshot{CPU: cpuFacts(), NUMA: numaFacts(int64(i))})
			settle(time.Second)
		}
		if n := f.written(); n < 5 || n > 121 {
			t.Errorf("%d attempts in ten minutes of refusals; want them at least 5 s apart", n)
		}
		f.mu.Lock()
		f.fail = nil
		f.mu.Unlock()
		settle(2 * time.Minute)
		view, _ := f.view.Get()
		if !strings.Contains(view.Annotations[api.NodeNUMA], `"free":599`) {
			t.Errorf("the newest value is not there: %s", view.Annotations[api.NodeNUMA])
		}
	})
}

func TestSkipNode(t *testing.T) {
	const handMade = `{"v":1,"boot":"x","accelerator":"kvm"}`
	view := node.View{UID: "uid", Annotations: map[string]string{api.NodeSkip: "true", api.NodeCPU: handMade}}
	publish(t, view, func(f *fakeNode, snapshot *latest.Value[Snapshot], settle func(time.Duration)) {
		snapshot.Set(Snapshot{CPU: cpuFacts()})
		settle(time.Minute)
		if v, _ := f.view.Get(); f.written() != 0 || v.Annotations[api.NodeCPU] != handMade {
			t.Errorf("%d writes; want hand-made facts left alone", f.written())
		}
		f.annotate(api.NodeSkip, "yes")
		settle(5 * time.Second)
		const want = `true InvalidSkipNode podvirt.dev/skip-node: "yes": not one of true, false; nearest: true`
		if f.written() != 1 || !strings.Contains(f.told(), want) {
			t.Errorf("%d writes, events %q; want 1 and %q", f.written(), f.told(), want)
		}
	})
}

func TestStaleFactsAreNamedOnceAndReplaced(t *testing.T) {
	old := encode(t, cpuFacts(func(c *api.CPUFacts) { c.Boot = lastBoot }))
	view := node.View{UID: "uid", Annotations: map[string]string{api.NodeCPU: old}, Labels: map[string]string{api.NodeLabelSchedulable: "true"}}
	publish(t, view, func(f *fakeNode, snapshot *latest.Value[Snapshot], settle func(time.Duration)) {
		settle(time.Second)
		v, _ := f.view.Get()
		if v.Labels[api.NodeLabelSchedulable] != "false" || v.Annotations[api.NodeCPU] != old {
			t.Errorf("labels %v; want a stale node not schedulable, its annotation untouched", v.Labels)
		}
		for range 10 {
			f.annotate("foreign", time.Now().String())
			settle(time.Second)
		}
		if n := strings.Count(f.told(), ReasonStale); n != 1 {
			t.Errorf("%d Events %s; want 1:\n%s", n, ReasonStale, f.told())
		}
		snapshot.Set(Snapshot{CPU: cpuFacts(func(c *api.CPUFacts) { c.Models = []string{"EPYC"} })})
		settle(10 * time.Second)
		v, _ = f.view.Get()
		if v.Labels[api.NodeLabelSchedulable] != "true" || !strings.Contains(v.Annotations[api.NodeCPU], thisBoot) {
			t.Errorf("labels %v, annotation %s", v.Labels, v.Annotations[api.NodeCPU])
		}
		if !strings.Contains(f.told(), "false FactsChanged 1 CPU models are usable, 2 were") {
			t.Errorf("events = %q; want FactsChanged", f.told())
		}
	})
}

func TestARestartedPluginGoesOnFromTheNode(t *testing.T) {
	d, err := Desire(Snapshot{CPU: cpuFacts(), NUMA: numaFacts(2)}, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	publish(t, node.View{UID: "uid", Annotations: d.Annotations, Labels: d.Labels}, func(f *fakeNode, _ *latest.Value[Snapshot], settle func(time.Duration)) {
		settle(time.Hour)
		if f.written() != 0 || f.told() != "" {
			t.Errorf("%d writes, events %q; want nothing", f.written(), f.told())
		}
	})
}

// TestObsoleteHostModel: said once, and among the problems as long as it is so (SC-016).
func TestObsoleteHostModel(t *testing.T) {
	publish(t, node.View{UID: "uid"}, func(f *fakeNode, snapshot *latest.Value[Snapshot], settle func(time.Duration)) {
		const text = "CPU model kvm64 of this node is on the obsolete list (cpu.obsolete-models)"
		old := func(pages int64) Snapshot {
			return Snapshot{CPU: cpuFacts(func(c *api.CPUFacts) { c.Model = "kvm64" }), NUMA: numaFacts(pages)}
		}
		for i := range 3 {
			snapshot.Set(old(int64(i)))
			settle(time.Minute)
		}
		if got := strings.Count(f.told(), text); got != 1 {
			t.Errorf("told %d times; want once:\n%s", got, f.told())
		}
		view, _ := f.view.Get()
		if got := strings.Count(view.Annotations[api.NodeCPU], text); got != 1 {
			t.Errorf("%d times among the problems; want once: %s", got, view.Annotations[api.NodeCPU])
		}
		if view.Labels[api.NodeLabelSchedulable] != "true" {
			t.Error("VMs that name no model do not run there any more")
		}
		snapshot.Set(Snapshot{CPU: cpuFacts(), NUMA: numaFacts(1)})
		settle(time.Minute)
		if view, _ := f.view.Get(); strings.Contains(view.Annotations[api.NodeCPU], text) {
			t.Error("the problem stays when the model is another one")
		}
	})
}
