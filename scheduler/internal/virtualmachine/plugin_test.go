package virtualmachine

import (
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	"podvirt.dev/api"
)

const bootID = "0b7f5f3e-7d0c-4b3e-9a43-6a5a2f1f9b11"

// nodeInfo and cycleState give the plugin what it uses of the scheduler; anything else is a nil dereference.
type nodeInfo struct {
	fwk.NodeInfo
	node *corev1.Node
	pods []fwk.PodInfo
}

func (n nodeInfo) Node() *corev1.Node     { return n.node }
func (n nodeInfo) GetPods() []fwk.PodInfo { return n.pods }

type podInfo struct {
	fwk.PodInfo
	pod *corev1.Pod
}

func (p *podInfo) GetPod() *corev1.Pod { return p.pod }

// handle has a snapshot of Nodes and nothing else.
type handle struct {
	fwk.Handle
	fwk.SharedLister
	fwk.NodeInfoLister
	nodes map[string]fwk.NodeInfo
}

func (h *handle) SnapshotSharedLister() fwk.SharedLister { return h }
func (h *handle) NodeInfos() fwk.NodeInfoLister          { return h }

func (h *handle) Get(name string) (fwk.NodeInfo, error) {
	if info, ok := h.nodes[name]; ok {
		return info, nil
	}
	return nil, errors.New("no such Node")
}

type cycleState struct {
	fwk.CycleState
	data map[fwk.StateKey]fwk.StateData
}

func (s *cycleState) Read(key fwk.StateKey) (fwk.StateData, error) {
	data, ok := s.data[key]
	if !ok {
		return nil, fwk.ErrNotFound
	}
	return data, nil
}

func (s *cycleState) Write(key fwk.StateKey, data fwk.StateData) { s.data[key] = data }

// testNode builds a Node with facts.
func testNode(t *testing.T, name string, change func(*api.CPUFacts)) *corev1.Node {
	t.Helper()
	cpu := api.CPUFacts{
		V: 1, Boot: bootID, Observed: time.Unix(0, 0), Arch: "amd64", Accelerator: api.AcceleratorKVM,
		Models: []string{"Nehalem", "Penryn"}, Features: []string{"aes", "ssse3"}, MaxVCPUs: 8,
	}
	if change != nil {
		change(&cpu)
	}
	text, err := cpu.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{api.NodeCPU: text}},
		Status:     corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{BootID: bootID}},
	}
}

// testPod builds the smallest VM Pod with the given annotations (without prefix).
func testPod(annotations map[string]string) *corev1.Pod {
	all := map[string]string{api.KeyVM: "db1", api.KeyMemory: "64Mi"}
	for key, value := range annotations {
		all[api.Prefix+key] = value
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "db1", Namespace: "shop", Labels: map[string]string{api.LabelVM: "db1"}, Annotations: all},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: api.ContainerName,
			Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("1Gi"),
				api.ResourceKVM: resource.MustParse("1"), api.ResourceTun: resource.MustParse("1"),
			}},
			VolumeMounts: []corev1.VolumeMount{
				{Name: "pod", MountPath: "/vm/pod"}, {Name: "run", MountPath: "/run/podvirt"}, {Name: "scratch", MountPath: "/vm/scratch"},
			},
		}}},
	}
}

func testPlugin(nodes ...*corev1.Node) *Plugin {
	pl := newPlugin(defaultArgs(), &handle{nodes: map[string]fwk.NodeInfo{}})
	for _, node := range nodes {
		pl.nodes.onUpdate(node)
		pl.cells.onUpdate(node)
	}
	return pl
}

// place runs PreFilter and Filter and returns the reasons per node, or the reasons of PreFilter under "".
func place(t *testing.T, pl *Plugin, pod *corev1.Pod, nodes ...*corev1.Node) map[string][]string {
	t.Helper()
	state := &cycleState{data: map[fwk.StateKey]fwk.StateData{}}
	if _, status := pl.PreFilter(t.Context(), state, pod, nil); !status.IsSuccess() {
		if status.Code() != fwk.UnschedulableAndUnresolvable {
			t.Errorf("PreFilter = %v; want UnschedulableAndUnresolvable, so that nothing is preempted", status.Code())
		}
		return map[string][]string{"": status.Reasons()}
	}
	got := map[string][]string{}
	for _, node := range nodes {
		if status := pl.Filter(t.Context(), state, pod, nodeInfo{node: node}); !status.IsSuccess() {
			got[node.Name] = status.Reasons()
		}
	}
	return got
}

func TestPlacement(t *testing.T) {
	old := testNode(t, "old", nil)
	modern := testNode(t, "modern", func(c *api.CPUFacts) {
		c.Models = append(c.Models, "Haswell")
		c.Features, c.NICs = append(c.Features, "avx2"), []string{"e1000e", "virtio"}
	})
	emulated := testNode(t, "emulated", func(c *api.CPUFacts) { c.Accelerator = api.AcceleratorTCG })
	stale := testNode(t, "stale", func(c *api.CPUFacts) { c.Boot = "another" })
	bare := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "bare"}}

	tests := map[string]struct {
		annotations map[string]string
		want        map[string][]string
	}{
		"host-model runs wherever KVM does": {nil, map[string][]string{
			"emulated": {"accelerator kvm not usable"}, "stale": {reasonStaleFacts}, "bare": {reasonNoFacts},
		}},
		"a model that one node has": {map[string]string{"cpu-model": "Haswell"}, map[string][]string{
			"old": {"CPU model Haswell not usable"}, "stale": {reasonStaleFacts}, "bare": {reasonNoFacts},
			"emulated": {"accelerator kvm not usable", "CPU model Haswell not usable"},
		}},
		"a required feature": {map[string]string{"cpu-features": "avx2"}, map[string][]string{
			"old": {"CPU feature avx2 missing"}, "stale": {reasonStaleFacts}, "bare": {reasonNoFacts},
			"emulated": {"accelerator kvm not usable", "CPU feature avx2 missing"},
		}},
		"a forbidden feature": {map[string]string{"cpu-features": "avx2=forbid"}, map[string][]string{
			"modern": {"CPU feature avx2 forbidden but present"}, "stale": {reasonStaleFacts}, "bare": {reasonNoFacts},
			"emulated": {"accelerator kvm not usable"},
		}},
		"force, optional and disable never filter": {map[string]string{"cpu-features": "svm=force,sse4a=optional,avx2=disable"}, map[string][]string{
			"emulated": {"accelerator kvm not usable"}, "stale": {reasonStaleFacts}, "bare": {reasonNoFacts},
		}},
		"more vCPUs than the machine takes": {map[string]string{"cpu-topology": "cores=9"}, map[string][]string{
			"old": {reasonVCPUs + "; at most 8 on any node"}, "modern": {reasonVCPUs + "; at most 8 on any node"}, "stale": {reasonStaleFacts}, "bare": {reasonNoFacts},
			"emulated": {"accelerator kvm not usable", reasonVCPUs + "; at most 8 on any node"},
		}},
		"a model that no node has": {map[string]string{"cpu-model": "Haswell-v3"}, map[string][]string{
			"old": {"CPU model Haswell-v3 not usable; nearest: Haswell"}, "modern": {"CPU model Haswell-v3 not usable; nearest: Haswell"},
			"stale": {reasonStaleFacts}, "bare": {reasonNoFacts},
			"emulated": {"accelerator kvm not usable", "CPU model Haswell-v3 not usable; nearest: Haswell"},
		}},
		"a NIC model that one node is known to lack": {map[string]string{"nic.default": "model=pcnet"}, map[string][]string{
			"modern": {"NIC model pcnet not usable"}, "emulated": {"accelerator kvm not usable"}, "stale": {reasonStaleFacts}, "bare": {reasonNoFacts},
		}},
		"a NIC model that it has": {map[string]string{"nic.default": "model=e1000e"}, map[string][]string{
			"emulated": {"accelerator kvm not usable"}, "stale": {reasonStaleFacts}, "bare": {reasonNoFacts},
		}},
		"a NIC that stays the Pod's": {map[string]string{"nic.default": "model=pcnet,binding=none"}, map[string][]string{
			"emulated": {"accelerator kvm not usable"}, "stale": {reasonStaleFacts}, "bare": {reasonNoFacts},
		}},
		"a model in the wrong case": {map[string]string{"cpu-model": "haswell"}, map[string][]string{
			"": {`podvirt.dev/cpu-model: "haswell": no such model; nearest: Haswell`},
		}},
		"a feature that does not exist": {map[string]string{"cpu-features": "avx5"}, map[string][]string{
			"": {"podvirt.dev/cpu-features: avx5: no such feature; nearest: avx"},
		}},
		"emulation needs leave": {map[string]string{"accelerator": "tcg"}, map[string][]string{
			"": {`podvirt.dev/accelerator: "tcg": emulation is not allowed (emulation: forbid)`},
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			nodes := []*corev1.Node{old, modern, emulated, stale, bare}
			got := place(t, testPlugin(nodes...), testPod(tt.annotations), nodes...)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("reasons (-want,+got):\n%s", diff)
			}
		})
	}
}

func TestEveryMistakeIsSaidAtOnce(t *testing.T) {
	got := place(t, testPlugin(), testPod(map[string]string{"firmware": "efi", "cpu-toplogy": "cores=2"}))
	text := strings.Join(got[""], "\n")
	for _, want := range []string{
		`podvirt.dev/firmware: "efi": not one of bios, uefi, none; nearest: uefi`,
		"podvirt.dev/cpu-toplogy: unknown annotation; nearest: podvirt.dev/cpu-topology",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("message lacks %q; got:\n%s", want, text)
		}
	}
}

func TestOrdinaryPodsPass(t *testing.T) {
	pl := testPlugin()
	pod := &corev1.Pod{}
	if _, status := pl.PreFilter(t.Context(), &cycleState{}, pod, nil); !status.IsSkip() {
		t.Errorf("PreFilter = %v; want Skip", status)
	}
	fragments, status := pl.SignPod(t.Context(), pod)
	if len(fragments) != 0 || !status.IsSuccess() {
		t.Errorf("SignPod = %v, %v; want success without a fragment", fragments, status)
	}
}

func TestSignPod(t *testing.T) {
	pl := testPlugin()
	sign := func(pod *corev1.Pod) string {
		fragments, status := pl.SignPod(t.Context(), pod)
		if !status.IsSuccess() || len(fragments) != 1 {
			t.Fatalf("SignPod = %v, %v", fragments, status)
		}
		return fragments[0].Value.(string)
	}
	a := sign(testPod(map[string]string{"cpu-features": "aes,ssse3"}))
	if b := sign(testPod(map[string]string{"cpu-features": "ssse3,aes=require", "verbosity": "4"})); a != b {
		t.Errorf("equal requests differ: %q, %q", a, b)
	}
	if c := sign(testPod(map[string]string{"cpu-features": "aes"})); a == c {
		t.Errorf("different requests are both %q", a)
	}
	withClaim := testPod(nil)
	withClaim.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{}}}}
	if _, status := pl.SignPod(t.Context(), withClaim); status.Code() != fwk.Unschedulable {
		t.Errorf("SignPod of a VM with a claim = %v; want a refusal", status)
	}
}

func TestNodeChangeWakesOnlyWhomItHelps(t *testing.T) {
	before := testNode(t, "n", nil)
	after := testNode(t, "n", func(c *api.CPUFacts) { c.Models = append(c.Models, "Haswell") })
	pl := testPlugin(before)
	tests := map[string]struct {
		model string
		old   any
		want  fwk.QueueingHint
	}{
		"facts gain the model":       {"Haswell", before, fwk.Queue},
		"a new node with the model":  {"Haswell", nil, fwk.Queue},
		"facts still lack the model": {"EPYC-Rome-x", before, fwk.QueueSkip},
		"it fitted before as well":   {"Penryn", before, fwk.QueueSkip},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			pod := testPod(map[string]string{"cpu-model": tt.model})
			got, err := pl.isSchedulableAfterNodeChange(klog.FromContext(t.Context()), pod, tt.old, after)
			if err != nil || got != tt.want {
				t.Errorf("hint = %v, %v; want %v", got, err, tt.want)
			}
		})
	}
}

func TestScorePrefersTheLeastCapableNodeAndOptionalFeatures(t *testing.T) {
	small := testNode(t, "small", nil)
	large := testNode(t, "large", func(c *api.CPUFacts) { c.Features = append(c.Features, "avx", "avx2") })
	tests := map[string]struct {
		annotations map[string]string
		got         map[string]int64
	}{
		"named model: the smaller node":  {map[string]string{"cpu-model": "Penryn"}, map[string]int64{"small": 100, "large": 50}},
		"host-model: all alike":          {nil, map[string]int64{"small": 100, "large": 100}},
		"an optional feature beats size": {map[string]string{"cpu-model": "Penryn", "cpu-features": "avx2=optional"}, map[string]int64{"small": 50, "large": 100}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.got, scores(t, testPlugin(small, large), testPod(tt.annotations), small, large)); diff != "" {
				t.Errorf("scores (-want,+got):\n%s", diff)
			}
		})
	}
}

// scores runs PreFilter, PreScore and Score.
func scores(t *testing.T, pl *Plugin, pod *corev1.Pod, nodes ...*corev1.Node) map[string]int64 {
	t.Helper()
	state := &cycleState{data: map[fwk.StateKey]fwk.StateData{}}
	if _, status := pl.PreFilter(t.Context(), state, pod, nil); !status.IsSuccess() {
		t.Fatalf("PreFilter = %v", status)
	}
	infos := make([]fwk.NodeInfo, len(nodes))
	for i, node := range nodes {
		infos[i] = nodeInfo{node: node}
	}
	if status := pl.PreScore(t.Context(), state, pod, infos); !status.IsSuccess() {
		t.Fatalf("PreScore = %v", status)
	}
	got := map[string]int64{}
	for _, info := range infos {
		score, status := pl.Score(t.Context(), state, pod, info)
		if !status.IsSuccess() {
			t.Fatalf("Score = %v", status)
		}
		got[info.Node().Name] = score
	}
	return got
}

// TestScoreOfTheHostsModel: the CPU that most other Nodes can take over comes first (SC-077).
func TestScoreOfTheHostsModel(t *testing.T) {
	var nodes []*corev1.Node
	for name, host := range map[string]struct {
		model, adds string
		models      []string
	}{
		"new":   {"Haswell", "avx2", []string{"Haswell", "Nehalem"}},
		"old-1": {"Nehalem", "aes", []string{"Nehalem"}}, "old-2": {"Nehalem", "aes", []string{"Nehalem"}},
	} {
		nodes = append(nodes, testNode(t, name, func(c *api.CPUFacts) {
			c.Model, c.Adds, c.Models, c.Features = host.model, []string{host.adds}, host.models, []string{"aes", host.adds}
		}))
	}
	got := scores(t, testPlugin(nodes...), testPod(nil), nodes...)
	if want := map[string]int64{"new": 50, "old-1": 100, "old-2": 100}; !maps.Equal(got, want) {
		t.Errorf("scores = %v; want %v", got, want)
	}
}

func TestDecodeArgs(t *testing.T) {
	tests := map[string]struct {
		raw  string
		want string // error; "" for none
	}{
		"nothing":         {``, ""},
		"the example":     {`{"apiVersion":"scheduler.podvirt.dev/v1","kind":"VirtualMachineArgs","score":{"cpuFit":2,"growth":0}}`, ""},
		"unknown field":   {`{"score":{"cellPackin":1}}`, "score.cellPackin: unknown field; nearest: cellPacking"},
		"not a namespace": {`{"configMap":"x"}`, `configMap: "x": want namespace/name`},
		"two mistakes": {`{"avoidAfterRefusal":"2h","requireFacts":1}`,
			"avoidAfterRefusal: \"2h\": want a duration from 0s to 1h0m0s\nrequireFacts: 1: not true or false"},
		"another kind": {`{"kind":"NodeAffinityArgs"}`, `kind: "NodeAffinityArgs": want "VirtualMachineArgs"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := decodeArgs(&runtime.Unknown{Raw: []byte(tt.raw)})
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("error = %q; want %q", got, tt.want)
			}
		})
	}
}

func TestCatalogFollowsNodes(t *testing.T) {
	node := testNode(t, "n", nil)
	c := newFactsCatalog()
	c.onUpdate(node)
	first := c.get(node)
	if first == nil || !first.models.Has("Penryn") {
		t.Fatalf("facts = %+v", first)
	}
	c.onUpdate(node.DeepCopy())
	if c.get(node) != first {
		t.Error("equal annotations were parsed again")
	}
	changed := testNode(t, "n", func(f *api.CPUFacts) { f.Models = []string{"Nehalem"} })
	if got := c.get(changed); got.models.Has("Penryn") || got.features != first.features {
		t.Error("a snapshot newer than the last event got old facts, or an equal list of its own")
	}
	c.onDelete(node)
	if len(c.nodes) != 0 {
		t.Errorf("facts of a deleted Node stay: %v", c.nodes)
	}
}
