package scheduler

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/yaml"

	"podvirt.dev/api"
	"podvirt.dev/internal/apitest"
)

const (
	boot       = "0b7f5f3e-7d0c-4b3e-9a43-6a5a2f1f9b11"
	namespace  = "bench"
	workers    = 32
	patience   = 10 * time.Minute
	repository = "../../.."
	cellPages  = 8192 // of 2 MiB in each of two cells
	vmPages    = 512
)

// contest is one way to schedule the same Pods.
type contest struct {
	name   string
	vms    bool // the Pods are VMs: models, features, and cells for every second one
	binary string
	config string
}

// BenchmarkScheduler fills clusters of three sizes with Pods in three ways each: kube-scheduler with ordinary Pods, ours
// with ordinary Pods, ours with VMs. All Pods are there before the scheduler starts; the time from the first Binding to
// the last counts. The order is turned in the second round.
func BenchmarkScheduler(b *testing.B) {
	server := apitest.Start(b)
	server.Make(b, namespace, "default")
	server.Make(b, api.SystemNamespace, "default")
	contests := []contest{
		{"default", false, apitest.Program(b, "kube-scheduler"),
			"apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nprofiles:\n- schedulerName: podvirt\n"},
		{"plain", false, ours(b), manifest(b)},
		{"vms", true, "", manifest(b)},
	}
	contests[2].binary = contests[1].binary
	nodes := 0
	for _, size := range []struct{ nodes, pods int }{{100, 2000}, {1000, 5000}, {5000, 10000}} {
		addNodes(b, server, nodes, size.nodes)
		nodes = size.nodes
		for _, round := range []int{1, 2} {
			for _, c := range contests {
				b.Run(fmt.Sprintf("%dNodes/%dPods/%s/%d", size.nodes, size.pods, c.name, round), func(b *testing.B) {
					for b.Loop() {
						c.run(b, server, size.pods)
					}
				})
			}
			slices.Reverse(contests)
		}
	}
}

func (c contest) run(b *testing.B, server *apitest.Server, count int) {
	parallel(b, count, func(i int) error {
		_, err := server.Client.CoreV1().Pods(namespace).Create(b.Context(), newPod(i, c.vms), metav1.CreateOptions{})
		return err
	})
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	bound := watchBindings(ctx, b, server, count)
	s := c.start(b, server)
	times := <-bound
	if len(times) < count {
		b.Fatalf("%d of %d Pods are bound", len(times), count)
	}
	slices.SortFunc(times, time.Time.Compare)
	b.ReportMetric(float64(count-1)/times[len(times)-1].Sub(times[0]).Seconds(), "pods/s")
	b.ReportMetric(1000*s.p99(b), "p99-ms")
	b.ReportMetric(s.resident(b), "MiB")
	b.ReportMetric(0, "ns/op")
	s.stop()
	clear(b, server)
}

// watchBindings sends the times at which Pods got their nodes, when all have one or ctx ends.
func watchBindings(ctx context.Context, b *testing.B, server *apitest.Server, count int) <-chan []time.Time {
	b.Helper()
	var mu sync.Mutex
	seen := map[string]time.Time{}
	all := make(chan struct{})
	see := func(obj any) {
		pod, ok := obj.(*corev1.Pod)
		if !ok || pod.Spec.NodeName == "" {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if _, known := seen[pod.Name]; known {
			return
		}
		if seen[pod.Name] = time.Now(); len(seen) == count {
			close(all)
		}
	}
	watching, stop := context.WithCancel(ctx)
	factory := informers.NewSharedInformerFactoryWithOptions(server.Client, 0, informers.WithNamespace(namespace))
	informer := factory.Core().V1().Pods().Informer()
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: see, UpdateFunc: func(_, obj any) { see(obj) }}); err != nil {
		b.Fatal(err)
	}
	factory.Start(watching.Done())
	factory.WaitForCacheSync(watching.Done())
	result := make(chan []time.Time, 1)
	go func() {
		defer stop()
		select {
		case <-all:
		case <-ctx.Done():
		}
		mu.Lock()
		defer mu.Unlock()
		result <- slices.Collect(maps.Values(seen))
	}()
	return result
}

// scheduler is one that runs.
type scheduler struct {
	cmd    *exec.Cmd
	port   string
	client *http.Client
	stop   func()
}

func (c contest) start(b *testing.B, server *apitest.Server) *scheduler {
	b.Helper()
	dir := b.TempDir()
	kubeconfig := server.Kubeconfig(b, server.Admin)
	config := filepath.Join(dir, "config.yaml")
	text := regexp.MustCompile(`(?m)^(?:leaderElection|clientConnection):.*$`).ReplaceAllString(c.config, "") +
		fmt.Sprintf("\nleaderElection: {leaderElect: false}\nclientConnection: {kubeconfig: %q, qps: 5000, burst: 5000}\n", kubeconfig)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err == nil {
		err = os.WriteFile(config, []byte(text), 0o600)
	}
	if err != nil {
		b.Fatal(err)
	}
	s := &scheduler{port: apitest.FreePort(b)}
	s.client, err = rest.HTTPClientFor(&rest.Config{BearerToken: server.Admin.BearerToken, TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		b.Fatal(err)
	}
	s.cmd = exec.CommandContext(b.Context(), c.binary, "--config="+config, "--secure-port="+s.port, "--cert-dir="+dir,
		"--authentication-kubeconfig="+kubeconfig, "--authorization-kubeconfig="+kubeconfig)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	s.stop = sync.OnceFunc(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait() // it was killed
		_ = log.Close()
		if text, err := os.ReadFile(log.Name()); err == nil && b.Failed() {
			b.Logf("log of the scheduler:\n%s", text[max(0, len(text)-4000):])
		}
	})
	b.Cleanup(s.stop)
	return s
}

// p99 takes the duration of successful attempts from the scheduler's own histogram, between the bounds of its buckets, in
// seconds.
func (s *scheduler) p99(b *testing.B) float64 {
	b.Helper()
	request, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "https://127.0.0.1:"+s.port+"/metrics", nil)
	if err != nil {
		b.Fatal(err)
	}
	response, err := s.client.Do(request)
	if err != nil {
		b.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		b.Fatal(err)
	}
	buckets := map[float64]float64{}
	pattern := regexp.MustCompile(`(?m)^scheduler_scheduling_attempt_duration_seconds_bucket\{.*result="scheduled".*le="([0-9.e+-]+|\+Inf)"\} (\d+)$`)
	for _, m := range pattern.FindAllStringSubmatch(string(text), -1) {
		bound, err := strconv.ParseFloat(m[1], 64)
		count, countErr := strconv.ParseFloat(m[2], 64)
		if cmp.Or(err, countErr) != nil {
			b.Fatal(err, countErr)
		}
		buckets[bound] += count
	}
	bounds := slices.Sorted(maps.Keys(buckets))
	if len(bounds) == 0 {
		b.Fatal("no durations among the metrics")
	}
	rank := 0.99 * buckets[bounds[len(bounds)-1]]
	low, below := 0.0, 0.0
	for _, bound := range bounds {
		if buckets[bound] >= rank && math.IsInf(bound, 1) {
			return low // longer than the last bound, nobody knows how much
		}
		if buckets[bound] >= rank {
			return low + (bound-low)*(rank-below)/(buckets[bound]-below)
		}
		low, below = bound, buckets[bound]
	}
	return low
}

// resident is what the process has in memory, in MiB.
func (s *scheduler) resident(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "VmRSS:" {
			kib, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib / 1024
		}
	}
	return 0
}

func ours(b *testing.B) string {
	b.Helper()
	binary := filepath.Join(b.TempDir(), "scheduler")
	cmd := exec.CommandContext(b.Context(), "go", "build", "-trimpath", "-o", binary, "./scheduler")
	cmd.Dir = repository
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("go build: %v\n%s", err, out)
	}
	return binary
}

// manifest is the configuration that is installed.
func manifest(b *testing.B) string {
	b.Helper()
	text, err := os.ReadFile(filepath.Join(repository, "manifests/scheduler/config.yaml"))
	if err != nil {
		b.Fatal(err)
	}
	var object corev1.ConfigMap
	if err := yaml.Unmarshal(text, &object); err != nil {
		b.Fatal(err)
	}
	return object.Data["config.yaml"]
}

// parallel calls do for 0 to count-1, many at a time.
func parallel(b *testing.B, count int, do func(i int) error) {
	b.Helper()
	var wait sync.WaitGroup
	next := make(chan int)
	for range workers {
		wait.Go(func() {
			for i := range next {
				if err := do(i); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := range count {
		next <- i
	}
	close(next)
	wait.Wait()
	if b.Failed() {
		b.FailNow()
	}
}

// clear removes all Pods at once, as if their kubelets had.
func clear(b *testing.B, server *apitest.Server) {
	b.Helper()
	now := int64(0)
	pods := server.Client.CoreV1().Pods(namespace)
	for {
		if err := pods.DeleteCollection(b.Context(), metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{}); err != nil {
			b.Fatal(err)
		}
		left, err := pods.List(b.Context(), metav1.ListOptions{Limit: 1})
		if err != nil {
			b.Fatal(err)
		}
		if len(left.Items) == 0 {
			return
		}
	}
}

// generation is a kind of machine: its own model and what else it can give.
type generation struct {
	models, features []string
}

func generations() []generation {
	features := strings.Fields("aes apic cx16 fxsr mmx popcnt sse2 ssse3 sse4.1 sse4.2 pclmuldq xsave avx f16c rdrand avx2 bmi1 bmi2 fma movbe " +
		"avx512f avx512bw avx512dq avx512vl")
	models := strings.Fields("Penryn Nehalem Westmere SandyBridge IvyBridge Haswell-noTSX Broadwell-noTSX Skylake-Server-noTSX-IBRS")
	return []generation{
		{models[:3], features[:12]}, {models[:5], features[:15]}, {models[:7], features[:20]}, {models, features},
	}
}

// addNodes brings the number of Nodes to the one wanted: four generations of machines, two cells each.
func addNodes(b *testing.B, server *apitest.Server, have, want int) {
	b.Helper()
	kinds := generations()
	parallel(b, want-have, func(n int) error {
		i := have + n
		kind := kinds[i%len(kinds)]
		cpu, err := api.CPUFacts{
			V: 1, Boot: boot, Observed: time.Now(), Launcher: "sha256:0", Arch: "amd64", Accelerator: api.AcceleratorKVM, Vendor: "Intel",
			Model: kind.models[len(kind.models)-1], Models: kind.models, Features: kind.features, MaxVCPUs: 288,
		}.Encode()
		if err != nil {
			return err
		}
		cells := api.NUMAFacts{V: 1, Boot: boot, Observed: time.Now(), ThreadsPerCore: 2}
		for id, cpus := range []string{"0-31", "32-63"} {
			cells.Cells = append(cells.Cells, api.Cell{ID: id, CPUs: cpus, Memory: 128 << 30, Distances: []int{10, 21}, Hugepages: map[string]api.Pages{
				"2Mi": {Total: cellPages, Free: cellPages},
			}})
		}
		numa, err := cells.Encode()
		if err != nil {
			return err
		}
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("n%05d", i), Annotations: map[string]string{api.NodeCPU: cpu, api.NodeNUMA: numa},
		}}
		node.Status.NodeInfo.BootID = boot
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		node.Status.Allocatable = corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("256Gi"), corev1.ResourcePods: resource.MustParse("250"),
			api.ResourceKVM: resource.MustParse("1000"), api.ResourceTun: resource.MustParse("1000"), "hugepages-2Mi": resource.MustParse("32Gi"),
		}
		node.Status.Capacity = node.Status.Allocatable
		_, err = server.Client.CoreV1().Nodes().Create(b.Context(), node, metav1.CreateOptions{})
		return err
	})
}

// newPod is Pod i of the crowd. Every second one has huge pages; as VMs they ask for models and features besides.
func newPod(i int, vm bool) *corev1.Pod {
	name := fmt.Sprintf("pod-%05d", i)
	limits := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("2Gi"),
		api.ResourceKVM: resource.MustParse("1"), api.ResourceTun: resource.MustParse("1"),
	}
	if i%2 == 0 {
		limits["hugepages-2Mi"] = *resource.NewQuantity(vmPages*2<<20, resource.BinarySI)
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			SchedulerName: api.SchedulerName,
			Tolerations:   []corev1.Toleration{{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists}}, // no controller makes them ready
			Containers:    []corev1.Container{{Name: api.ContainerName, Image: "none", Resources: corev1.ResourceRequirements{Limits: limits}}},
		},
	}
	empty := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
	for volume, path := range map[string]string{"pod": api.PathPod, "run": api.PathRun, "scratch": api.PathScratch} {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: volume, VolumeSource: empty})
		pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: volume, MountPath: path})
	}
	if !vm {
		return pod
	}
	pod.Labels = map[string]string{api.LabelVM: name}
	pod.Annotations = map[string]string{api.KeyVM: name, api.KeyMemory: "1Gi"}
	if i%2 == 0 {
		pod.Annotations[api.KeyHugepages] = "2Mi"
	}
	if kinds := generations(); i%3 != 0 { // two of three name a model and eight features
		kind := kinds[i%len(kinds)]
		pod.Annotations[api.KeyCPUModel] = kind.models[len(kind.models)-1]
		pod.Annotations[api.KeyCPUFeatures] = strings.Join(kind.features[:8], ",")
	}
	return pod
}
