package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"podvirt.dev/api"
	"podvirt.dev/internal/apitest"
)

// fleet is an API server with Nodes that exist there only, and the scheduler under the account of the manifests.
type fleet struct {
	*testing.T
	client    kubernetes.Interface
	admin     *rest.Config
	scheduler *process
	standby   *process // waits for the lease once it is started

	kubeconfig string // of the administrator
}

// sub is the same fleet in a subtest.
func (f *fleet) sub(t *testing.T) *fleet {
	same := *f
	same.T = t
	return &same
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	server := apitest.Start(t)
	server.Make(t, api.SystemNamespace, "podvirt-scheduler")
	server.Make(t, "shop", "default")
	server.Apply(t, api.SystemNamespace, manifests+"/rbac.yaml")
	f := &fleet{T: t, client: server.Client, admin: server.Admin}
	f.scheduler = newProcess(t, server)
	f.standby = f.scheduler.twin(t)
	f.kubeconfig = server.Kubeconfig(t, server.Admin)
	return f
}

// machine is a Node to be: what its CPU offers and how many pages of 2Mi each of its cells has.
type machine struct {
	name  string
	cpu   *api.CPUFacts
	cells []api.Pages
}

const pageSize = "2Mi"

func (m machine) node(t *testing.T) *corev1.Node {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: m.name, Annotations: encode(t, m.cpu)}}
	node.Status.NodeInfo.BootID = boot
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	pages := resource.NewQuantity(0, resource.BinarySI)
	for _, pool := range m.cells {
		pages.Add(*resource.NewQuantity(pool.Total*2<<20, resource.BinarySI))
	}
	node.Status.Allocatable = corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("64Gi"), corev1.ResourcePods: resource.MustParse("250"),
		api.ResourceKVM: resource.MustParse("1000"), api.ResourceTun: resource.MustParse("1000"), "hugepages-2Mi": *pages,
	}
	node.Status.Capacity = node.Status.Allocatable
	if m.cells != nil {
		node.Annotations[api.NodeNUMA] = numa(t, m.cells)
	}
	return node
}

func numa(t *testing.T, cells []api.Pages) string {
	t.Helper()
	facts := api.NUMAFacts{V: 1, Boot: boot, Observed: time.Now(), ThreadsPerCore: 1}
	for id, pool := range cells {
		facts.Cells = append(facts.Cells, api.Cell{ID: id, CPUs: fmt.Sprint(id), Hugepages: map[string]api.Pages{pageSize: pool}, Distances: []int{10}})
	}
	text, err := facts.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// add makes Nodes, many at a time.
func (f *fleet) add(machines ...machine) {
	f.Helper()
	var wait sync.WaitGroup
	slots := make(chan struct{}, 32)
	for _, m := range machines {
		node := m.node(f.T)
		wait.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if _, err := f.client.CoreV1().Nodes().Create(f.Context(), node, metav1.CreateOptions{}); err != nil {
				f.Error(err)
			}
		})
	}
	wait.Wait()
}

// vm is a Pod to be. Nodes here are never made ready by a node controller, so it tolerates that.
type vm struct {
	name        string
	annotations map[string]string
	pages       int64
	priority    string
	cpus        string // "": 1
}

func (f *fleet) create(v vm) *corev1.Pod {
	f.Helper()
	annotations := map[string]string{api.KeyMemory: "64Mi"}
	maps.Copy(annotations, v.annotations)
	if v.pages > 0 {
		annotations[api.KeyHugepages], annotations[api.KeyMemory] = pageSize, fmt.Sprintf("%dMi", 2*v.pages)
	}
	pod := newPod(v.name, annotations)
	pod.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists}}
	pod.Spec.PriorityClassName = v.priority
	if v.cpus != "" {
		pod.Spec.Containers[0].Resources.Limits[corev1.ResourceCPU] = resource.MustParse(v.cpus)
	}
	if v.pages > 0 {
		pod.Spec.Containers[0].Resources.Limits["hugepages-2Mi"] = resource.MustParse(annotations[api.KeyMemory])
	}
	made, err := f.client.CoreV1().Pods("shop").Create(f.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		f.Fatal(err)
	}
	return made
}

// placed waits for the decision and returns NODE/CELLS, or the message of the refusal.
func (f *fleet) placed(name string) string {
	f.Helper()
	pod := awaitDecision(f.T, f.client, name)
	if pod.Spec.NodeName == "" {
		return condition(pod).Message
	}
	return pod.Spec.NodeName + "/" + pod.Annotations[api.KeyNUMACell]
}

func (f *fleet) annotateNode(name, key, value string) {
	f.Helper()
	node, err := f.client.CoreV1().Nodes().Get(f.Context(), name, metav1.GetOptions{})
	if err != nil {
		f.Fatal(err)
	}
	node.Annotations[key] = value
	if _, err := f.client.CoreV1().Nodes().Update(f.Context(), node, metav1.UpdateOptions{}); err != nil {
		f.Fatal(err)
	}
}

// remove ends a Pod at once, as a kubelet does when its containers have ended.
func (f *fleet) remove(name string) {
	f.Helper()
	now := int64(0)
	if err := f.client.CoreV1().Pods("shop").Delete(f.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil && !apierrors.IsNotFound(err) {
		f.Fatal(err)
	}
}

// metric returns the sum of the samples of a metric of the scheduler whose labels match.
func (f *fleet) metric(pattern string) float64 {
	f.Helper()
	client, err := rest.HTTPClientFor(&rest.Config{BearerToken: f.admin.BearerToken, TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		f.Fatal(err)
	}
	request, err := http.NewRequestWithContext(f.Context(), http.MethodGet, "https://127.0.0.1:"+f.scheduler.port+"/metrics", nil)
	if err != nil {
		f.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		f.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		f.Fatalf("metrics: %v, %s", err, response.Status)
	}
	return f.samples(text, pattern)
}

// requests is metric for the API server.
func (f *fleet) requests(pattern string) float64 {
	f.Helper()
	text, err := f.client.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	return f.samples(text, pattern)
}

func (f *fleet) samples(text []byte, pattern string) float64 {
	f.Helper()
	var sum float64
	for _, m := range regexp.MustCompile(`(?m)^`+pattern+` (\S+)$`).FindAllStringSubmatch(string(text), -1) {
		var value float64
		if _, err := fmt.Sscan(m[1], &value); err != nil {
			f.Fatal(err)
		}
		sum += value
	}
	return sum
}

func cpuFacts(models string, features string) *api.CPUFacts {
	list := strings.Fields(models)
	return &api.CPUFacts{Accelerator: api.AcceleratorKVM, Model: list[0], Models: list, Features: strings.Fields(features)}
}

// TestFleet goes through one cluster that grows: a few Nodes of different kinds, then five thousand.
func TestFleet(t *testing.T) {
	f := newFleet(t)
	f.scheduler.start(t)
	f.noFactsAnywhere()
	f.add(
		machine{"intel", cpuFacts("Haswell Nehalem", "avx2 pcid"), nil}, machine{"amd", cpuFacts("EPYC Opteron_G3", "sse4a svm"), nil},
		machine{"old", cpuFacts("Penryn", "ssse3"), nil},
	)
	for _, step := range []struct {
		name string
		run  func(*fleet)
	}{
		{"models", (*fleet).models}, {"mistakes preempt nobody", (*fleet).mistakes}, {"obsolete models", (*fleet).obsolete},
		{"a reboot", (*fleet).reboot}, {"units", (*fleet).units}, {"a disk is imported", (*fleet).imports}, {"large pages are kept", (*fleet).largePages},
		{"beside the default scheduler", (*fleet).beside},
		{"a kubelet refuses", (*fleet).refusal}, {"cells", testCells}, {"CPUs of one's own", (*fleet).dedicated}, {"five thousand", (*fleet).thousands},
	} {
		t.Run(step.name, func(t *testing.T) { step.run(f.sub(t)) })
	}
}

// noFactsAnywhere: there is nothing a model could be near to (SC-027).
func (f *fleet) noFactsAnywhere() {
	f.Helper()
	f.add(machine{name: "bare"})
	f.create(vm{name: "nothing-known", annotations: map[string]string{api.KeyCPUModel: "EPYC"}})
	if got := f.placed("nothing-known"); !strings.Contains(got, "0/1 nodes are available: 1 no podvirt facts") {
		f.Errorf("message %q; want that no facts are known", got)
	}
	f.remove("nothing-known")
}

// models: nine VMs with a model each, three per Node that has it (SC-026).
func (f *fleet) models() {
	wants := map[string]string{"Haswell": "intel", "Opteron_G3": "amd", "Penryn": "old"}
	for model := range wants {
		for i := range 3 {
			f.create(vm{name: fmt.Sprintf("m-%s-%d", strings.ToLower(strings.ReplaceAll(model, "_", "")), i), annotations: map[string]string{api.KeyCPUModel: model}})
		}
	}
	for model, node := range wants {
		for i := range 3 {
			name := fmt.Sprintf("m-%s-%d", strings.ToLower(strings.ReplaceAll(model, "_", "")), i)
			if got := f.placed(name); got != node+"/" {
				f.Errorf("%s is on %s; want %s", name, got, node)
			}
		}
	}
	f.create(vm{name: "m-wide", annotations: map[string]string{api.KeyCPUTopology: "cores=65"}})
	if got := f.placed("m-wide"); !strings.Contains(got, "3 more than the machine's vCPU limit; at most 64 on any node") {
		f.Errorf("message %q; want the most vCPUs of any Node", got)
	}
	f.create(vm{name: "m-pages", pages: 100})
	if got := f.placed("m-pages"); !strings.Contains(got, "no podvirt facts") {
		f.Errorf("message %q; want that no cells are known", got)
	}
	f.remove("m-pages")
	f.create(vm{name: "m-odd", annotations: map[string]string{api.KeyMemory: "500Mi", api.KeyHugepages: "1Gi"}})
	if got := f.placed("m-odd"); !strings.Contains(got, "podvirt.dev/hugepages: 500Mi is not a multiple of 1Gi") {
		f.Errorf("message %q; want the parser's", got)
	}
	f.create(vm{name: "m-none", annotations: map[string]string{api.KeyCPUModel: "EPYC-Milan"}})
	if got := f.placed("m-none"); !strings.Contains(got, "3 CPU model EPYC-Milan not usable; nearest: EPYC") {
		f.Errorf("message %q; want the nearest model that a Node has", got)
	}
}

// mistakes: three errors of one Pod are one message, and nobody has to go for it, at the highest priority (SC-027, SC-082).
func (f *fleet) mistakes() {
	class := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "high"}, Value: 1000000}
	if _, err := f.client.SchedulingV1().PriorityClasses().Create(f.Context(), class, metav1.CreateOptions{}); err != nil {
		f.Fatal(err)
	}
	await(f.T, "admission to know the PriorityClass", func() bool {
		probe := newPod("probe", map[string]string{api.KeyMemory: "64Mi"})
		probe.Spec.PriorityClassName = class.Name
		_, err := f.client.CoreV1().Pods("shop").Create(f.Context(), probe, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err == nil
	})
	f.create(vm{name: "wrong", priority: "high", annotations: map[string]string{
		api.KeyCPUModel: "epyc", api.KeyCPUFeatures: "aes=need", api.KeyFirmware: "efi",
	}})
	got := f.placed("wrong")
	for _, want := range []string{
		`podvirt.dev/cpu-model: "epyc": no such model; nearest: EPYC`, "aes=need: policy is not one of", `podvirt.dev/firmware: "efi": not one of`,
	} {
		if !strings.Contains(got, want) {
			f.Errorf("message %q lacks %q", got, want)
		}
	}
	f.create(vm{name: "misfit", priority: "high", annotations: map[string]string{api.KeyCPUFeatures: "amx-tile"}})
	const hopeless = "preemption: 0/4 nodes are available: 4 Preemption is not helpful for scheduling."
	if got := f.placed("misfit"); !strings.HasSuffix(got, hopeless) {
		f.Errorf("message %q; want no Node to be tried: %s", got, hopeless)
	}
	if victims := f.metric(`scheduler_preemption_victims_sum(?:\{.*\})?`); victims != 0 {
		f.Errorf("%v victims; want none", victims)
	}
}

// largePages: of ten Nodes that one in three has large pages, VMs without take the others while there is room (SC-061).
func (f *fleet) largePages() {
	host := cpuFacts("Broadwell", "aes")
	var list []machine
	for i := range 10 {
		list = append(list, machine{fmt.Sprintf("ten%d", i), host, nil})
	}
	f.add(list...)
	for i := range 3 {
		f.annotateNode(list[i].name, api.NodeNUMA, strings.ReplaceAll(numa(f.T, []api.Pages{{Total: 4, Free: 4}}), `"2Mi"`, `"1Gi"`))
	}
	const each = 4 // of 16 CPUs, of 64 that a Node has
	count := 0
	place := func(n int) (kept int) {
		for range n {
			name := fmt.Sprintf("small-%d", count)
			count++
			f.create(vm{name: name, annotations: map[string]string{api.KeyCPUModel: "Broadwell"}, cpus: "16"})
			if got := f.placed(name); got == "ten0/" || got == "ten1/" || got == "ten2/" {
				kept++
			}
		}
		return kept
	}
	if kept := place(7 * each); kept != 0 {
		f.Errorf("%d of %d VMs are on Nodes with large pages, while there is room elsewhere", kept, 7*each)
	}
	if kept := place(2); kept != 2 {
		f.Errorf("%d of 2 VMs are on Nodes with large pages, when all others are full", kept)
	}
}

// refusal: who replaces a VM that a kubelet has refused goes elsewhere, and waits with the reason when there is no
// elsewhere (SC-054).
func (f *fleet) refusal() {
	f.add(machine{"picky1", cpuFacts("Cooperlake", "aes"), nil}, machine{"picky2", cpuFacts("Cooperlake", "aes"), nil})
	seen := map[string]bool{}
	for i := range 2 {
		name := fmt.Sprintf("replica-%d", i)
		f.create(vm{name: name, annotations: map[string]string{api.KeyCPUModel: "Cooperlake"}})
		pod := awaitDecision(f.T, f.client, name)
		seen[pod.Spec.NodeName] = true
		pod.Status.Phase, pod.Status.Reason = corev1.PodFailed, "UnexpectedAdmissionError"
		if _, err := f.client.CoreV1().Pods("shop").UpdateStatus(f.Context(), pod, metav1.UpdateOptions{}); err != nil {
			f.Fatal(err)
		}
		await(f.T, "the refusal is known", func() bool {
			return f.metric(`podvirt_scheduler_kubelet_refusals_total\{reason="UnexpectedAdmissionError"\}`) == float64(i+1)
		})
	}
	if avoided := f.metric("podvirt_scheduler_avoided_shapes"); avoided != 2 {
		f.Errorf("%v shapes are avoided; want 2", avoided)
	}
	if !seen["picky1"] || !seen["picky2"] {
		f.Errorf("the VMs were on %v; want each on another Node", seen)
	}
	f.create(vm{name: "replica-2", annotations: map[string]string{api.KeyCPUModel: "Cooperlake"}})
	if got := f.placed("replica-2"); !strings.Contains(got, "2 kubelet refused this shape recently") {
		f.Errorf("third: %q; want it to wait", got)
	}
	f.create(vm{name: "smaller", cpus: "2", annotations: map[string]string{api.KeyCPUModel: "Cooperlake"}})
	if got := f.placed("smaller"); !strings.HasPrefix(got, "picky") {
		f.Errorf("another shape: %q; want it placed", got)
	}
}

// beside: the scheduler of Kubernetes runs as well, each with its own Pods (SC-087).
func (f *fleet) beside() {
	stock := exec.CommandContext(f.Context(), apitest.Program(f.T, "kube-scheduler"), "--kubeconfig="+f.kubeconfig,
		"--authentication-kubeconfig="+f.kubeconfig, "--authorization-kubeconfig="+f.kubeconfig, "--secure-port="+apitest.FreePort(f.T), "--cert-dir="+f.TempDir())
	stock.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := stock.Start(); err != nil {
		f.Fatal(err)
	}
	defer func() {
		_ = stock.Process.Kill()
		_ = stock.Wait() // it was killed
	}()
	by := map[string]string{}
	for i := range 20 {
		name := fmt.Sprintf("both-%d", i)
		pod := newPod(name, nil)
		pod.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists}}
		by[name] = api.SchedulerName
		if i%2 == 0 {
			by[name] = corev1.DefaultSchedulerName
		}
		pod.Spec.SchedulerName = by[name]
		if _, err := f.client.CoreV1().Pods("shop").Create(f.Context(), pod, metav1.CreateOptions{}); err != nil {
			f.Fatal(err)
		}
	}
	for name, want := range by {
		if pod := awaitDecision(f.T, f.client, name); pod.Spec.NodeName == "" {
			f.Errorf("%s was not placed by %s: %s", name, want, condition(pod).Message)
		}
	}
	leases, err := f.client.CoordinationV1().Leases("").List(f.Context(), metav1.ListOptions{})
	if err != nil {
		f.Fatal(err)
	}
	held := map[string]bool{}
	for _, lease := range leases.Items {
		held[lease.Namespace+"/"+lease.Name] = true
	}
	if !held["kube-system/kube-scheduler"] || !held["podvirt-system/podvirt-scheduler"] {
		f.Errorf("leases %v; want one for each scheduler", held)
	}
}

// thousands: one line for five thousand Nodes (SC-082).
func (f *fleet) thousands() {
	nodes, err := f.client.CoreV1().Nodes().List(f.Context(), metav1.ListOptions{})
	if err != nil {
		f.Fatal(err)
	}
	var machines []machine
	for i := len(nodes.Items); i < 4990+1; i++ { // one of those that are there has no facts
		machines = append(machines, machine{fmt.Sprintf("n%04d", i), cpuFacts("Penryn", "ssse3"), nil})
	}
	for i := range 9 {
		machines = append(machines, machine{name: fmt.Sprintf("without%d", i)})
	}
	f.add(machines...)
	await(f.T, "the scheduler knows all Nodes", func() bool { return f.metric(`scheduler_cache_size\{type="nodes"\}`) == 5000 })
	f.create(vm{name: "nowhere", annotations: map[string]string{api.KeyCPUModel: "KnightsMill"}})
	const want = "0/5000 nodes are available: 10 no podvirt facts, 4990 CPU model KnightsMill not usable."
	if got := f.placed("nowhere"); !strings.HasPrefix(got, want) {
		f.Errorf("message %q; want %q", got, want)
	}
}

// awaitBound waits until a Pod has a node and returns the first version of it that has one.
func (f *fleet) awaitBound(ctx context.Context, name string) *corev1.Pod {
	f.Helper()
	w, err := f.client.CoreV1().Pods("shop").Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		f.Fatal(err)
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		if pod, ok := event.Object.(*corev1.Pod); ok && pod.Spec.NodeName != "" {
			return pod
		}
	}
	f.Fatalf("%s: not bound", name)
	return nil
}
