package virtualmachine

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/sets"
	fwk "k8s.io/kube-scheduler/framework"

	"podvirt.dev/api"
)

// largeNode offers as much as a real host of today: 174 features, 40 models.
func largeNode(tb testing.TB, name string) *api.CPUFacts {
	tb.Helper()
	f := &api.CPUFacts{V: 1, Boot: bootID, Observed: time.Unix(0, 0), Arch: "amd64", Accelerator: api.AcceleratorKVM, MaxVCPUs: 288, Kernel: name}
	for i := range 174 {
		f.Features = append(f.Features, fmt.Sprintf("feature-%03d", i))
	}
	f.Features = append(f.Features, "aes", "avx", "avx2", "bmi1", "bmi2", "fma", "movbe", "popcnt")
	for i := range 40 {
		f.Models = append(f.Models, fmt.Sprintf("Model-%02d", i))
	}
	f.Models, f.Model = append(f.Models, "Haswell"), "Haswell"
	return f
}

// BenchmarkFilter is one Node for a VM with a model and eight features (scheduling.md 4.3).
func BenchmarkFilter(b *testing.B) {
	text, err := largeNode(b, "n").Encode()
	if err != nil {
		b.Fatal(err)
	}
	have := newReader().read(text)
	want, err := newRequest(testPod(map[string]string{"cpu-model": "Haswell", "cpu-features": "aes,avx,avx2,bmi1,bmi2,fma,movbe,popcnt"}), api.Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if reasons := fits(want, have, bootID, true); reasons != nil {
			b.Fatal(reasons)
		}
	}
}

// TestFilterAllocatesNothing where a Node fits (scheduling.md 4.3, SC-086).
func TestFilterAllocatesNothing(t *testing.T) {
	node := testNode(t, "n", nil)
	pl := testPlugin(node)
	want, err := newRequest(testPod(map[string]string{"cpu-model": "Penryn", "cpu-features": "aes,ssse3"}), api.Config{})
	if err != nil {
		t.Fatal(err)
	}
	state := &cycleState{data: map[fwk.StateKey]fwk.StateData{requestKey: requestState{want}}}
	var info fwk.NodeInfo = nodeInfo{node: node}
	if n := testing.AllocsPerRun(100, func() { pl.Filter(t.Context(), state, nil, info) }); n != 0 {
		t.Errorf("%v allocations; want none", n)
	}
}

// TestEqualNodesShareTheirLists: five thousand equal machines are held once (scheduling.md SC-086).
func TestEqualNodesShareTheirLists(t *testing.T) {
	const nodes = 5000
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	text, err := largeNode(t, "n").Encode()
	if err != nil {
		t.Fatal(err)
	}
	list := make([]string, nodes) // every annotation is a text of its own, that the informer's cache holds anyway
	for i := range list {
		list[i] = strings.Replace(text, `"kernel":"n"`, fmt.Sprintf(`"kernel":"%d"`, i), 1)
	}
	before := heap()
	c := newFactsCatalog()
	node := testNode(t, "n", nil)
	for i, raw := range list {
		node.Name, node.Annotations[api.NodeCPU] = fmt.Sprintf("n%d", i), raw
		c.onUpdate(node)
	}
	used := float64(heap()-before) / (1 << 20)
	seen := sets.New[*words]()
	c.each(func(f *facts) { seen.Insert(f.features) })
	t.Logf("%.2f MiB for %d nodes", used, nodes)
	if used > 5 || seen.Len() != 1 {
		t.Errorf("%.2f MiB and %d lists of features; want at most 5 MiB, and one", used, seen.Len())
	}
	runtime.KeepAlive(list)
}
