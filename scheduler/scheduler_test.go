package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"podvirt.dev/api"
	"podvirt.dev/internal/apitest"
)

const (
	manifests = "../manifests/scheduler"
	boot      = "0b7f5f3e-7d0c-4b3e-9a43-6a5a2f1f9b11"
	patience  = 60 * time.Second
)

// TestScheduler runs the real binary with the configuration, account and roles of the manifests against a real API
// server with three Nodes that differ in their facts.
func TestScheduler(t *testing.T) {
	server := apitest.Start(t)
	server.Make(t, api.SystemNamespace, "podvirt-scheduler")
	server.Make(t, "shop", "default")
	server.Apply(t, api.SystemNamespace, filepath.Join(manifests, "rbac.yaml"))
	client := server.Client
	makeNode(t, client, "old", &api.CPUFacts{Accelerator: api.AcceleratorKVM, Models: []string{"Penryn"}, Features: []string{"ssse3"}})
	makeNode(t, client, "modern", &api.CPUFacts{
		Accelerator: api.AcceleratorKVM, Models: []string{"Haswell", "Penryn"}, Features: []string{"avx2", "ssse3"},
	})
	makeNode(t, client, "bare", nil)
	startScheduler(t, server)

	tests := map[string]struct {
		annotations map[string]string
		node        string // where it lands; "": nowhere
		message     string // of the condition, if nowhere
	}{
		"a model that one node has":      {map[string]string{api.KeyCPUModel: "Haswell"}, "modern", ""},
		"the least capable node":         {map[string]string{api.KeyCPUModel: "Penryn"}, "old", ""},
		"a required feature":             {map[string]string{api.KeyCPUFeatures: "avx2"}, "modern", ""},
		"a forbidden feature":            {map[string]string{api.KeyCPUFeatures: "avx2=forbid"}, "old", ""},
		"an optional feature":            {map[string]string{api.KeyCPUFeatures: "avx2=optional"}, "modern", ""},
		"a model that no node has":       {map[string]string{api.KeyCPUModel: "EPYC"}, "", "2 CPU model EPYC not usable"},
		"and nodes without facts":        {map[string]string{api.KeyCPUModel: "EPYC"}, "", "1 no podvirt facts"},
		"two mistakes are said at once":  {map[string]string{api.KeyCPUFeatures: "aes=need", api.KeyFirmware: "efi"}, "", "aes=need"},
		"emulation that is not allowed":  {map[string]string{api.KeyAccelerator: "tcg"}, "", "emulation is not allowed"},
		"a model with a typing mistake":  {map[string]string{api.KeyCPUModel: "haswell"}, "", "nearest: Haswell"},
		"a Pod that is no VM goes there": {nil, "*", ""},
	}
	number := 0
	for name, tt := range tests {
		number++
		pod := fmt.Sprintf("pod-%d", number)
		t.Run(name, func(t *testing.T) {
			makePod(t, client, pod, tt.annotations)
			got := awaitDecision(t, client, pod)
			placed := got.Spec.NodeName == tt.node || tt.node == "*" && got.Spec.NodeName != ""
			if message := condition(got).Message; !placed || !strings.Contains(message, tt.message) {
				t.Errorf("node %q, message %q; want %q, %q", got.Spec.NodeName, message, tt.node, tt.message)
			}
		})
	}
	t.Run("rights", func(t *testing.T) { wantRights(t, server) })
	t.Run("new facts wake who waited for them", func(t *testing.T) {
		makePod(t, client, "waits", map[string]string{api.KeyCPUModel: "Nehalem"})
		if got := awaitDecision(t, client, "waits"); got.Spec.NodeName != "" {
			t.Fatalf("it is on %s already", got.Spec.NodeName)
		}
		annotate(t, client, "old", &api.CPUFacts{Accelerator: api.AcceleratorKVM, Models: []string{"Nehalem", "Penryn"}, Features: []string{"ssse3"}})
		await(t, "it is placed", func() bool { return getPod(t, client, "waits").Spec.NodeName == "old" })
	})
	t.Run("overcommit", func(t *testing.T) { overcommit(t, server) })
}

// startScheduler builds the program and runs it under the account of the manifests until the test ends.
func startScheduler(t *testing.T, server *apitest.Server) {
	t.Helper()
	newProcess(t, server).start(t)
}

// process is a scheduler that can be killed and started again.
type process struct {
	args []string
	port string
	log  *os.File
	kill func()
}

// newProcess builds the program.
func newProcess(t *testing.T, server *apitest.Server) *process {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "scheduler")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	config := filepath.Join(dir, "config.yaml")
	kubeconfig := server.Kubeconfig(t, server.Account(t, api.SystemNamespace, "podvirt-scheduler"))
	if err := os.WriteFile(config, []byte(configuration(t, kubeconfig)), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	p := &process{port: apitest.FreePort(t), log: log, kill: func() {}}
	p.args = []string{binary, "--config=" + config, "--secure-port=" + p.port, "--cert-dir=" + dir, "--v=2",
		"--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig}
	t.Cleanup(func() {
		p.kill()
		_ = log.Close()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("log of the scheduler:\n%s", text)
		}
	})
	return p
}

// twin is a second one of the same program and configuration.
func (p *process) twin(t *testing.T) *process {
	t.Helper()
	port := apitest.FreePort(t)
	same := &process{args: slices.Clone(p.args), port: port, log: p.log, kill: func() {}}
	for i, arg := range same.args {
		if strings.HasPrefix(arg, "--secure-port=") {
			same.args[i] = "--secure-port=" + port
		}
	}
	t.Cleanup(func() { same.kill() })
	return same
}

// start runs the program; kill ends it without notice. The next one has to wait for its lease.
func (p *process) start(t *testing.T) {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), p.args[0], p.args[1:]...)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
}

// configuration is that of the manifests, with the way to this API server.
func configuration(t *testing.T, kubeconfig string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(manifests, "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var object corev1.ConfigMap
	if err := yaml.Unmarshal(text, &object); err != nil {
		t.Fatal(err)
	}
	const connection = "clientConnection: {"
	if !strings.Contains(object.Data["config.yaml"], connection) {
		t.Fatal("the configuration of the manifests says nothing of its connection")
	}
	own := strings.Replace(object.Data["config.yaml"], connection, fmt.Sprintf("%skubeconfig: %q, ", connection, kubeconfig), 1)
	return strings.Replace(own, "kind: VirtualMachineArgs}", "kind: VirtualMachineArgs, progressInterval: 1s}", 1)
}

func encode(t *testing.T, cpu *api.CPUFacts) map[string]string {
	t.Helper()
	if cpu == nil {
		return nil
	}
	cpu.V, cpu.Boot, cpu.Arch, cpu.MaxVCPUs = 1, boot, "amd64", 64
	text, err := cpu.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{api.NodeCPU: text}
}

// makeNode makes a Node that is Ready, as its kubelet and the node controller would.
func makeNode(t *testing.T, client kubernetes.Interface, name string, cpu *api.CPUFacts) {
	t.Helper()
	nodes := client.CoreV1().Nodes()
	node, err := nodes.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: encode(t, cpu)}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node.Spec.Taints = nil
	if node, err = nodes.Update(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	node.Status.NodeInfo.BootID = boot
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	node.Status.Allocatable = corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("64Gi"), corev1.ResourcePods: resource.MustParse("100"),
		api.ResourceKVM: resource.MustParse("100"), api.ResourceTun: resource.MustParse("100"),
	}
	if _, err := nodes.UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func annotate(t *testing.T, client kubernetes.Interface, name string, cpu *api.CPUFacts) {
	t.Helper()
	node, err := client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node.Annotations = encode(t, cpu)
	if _, err := client.CoreV1().Nodes().Update(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// makePod makes a VM Pod as admission leaves it, or an ordinary one when there are no annotations.
func makePod(t *testing.T, client kubernetes.Interface, name string, annotations map[string]string) {
	t.Helper()
	if _, err := client.CoreV1().Pods("shop").Create(t.Context(), newPod(name, annotations), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func newPod(name string, annotations map[string]string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{SchedulerName: api.SchedulerName, Containers: []corev1.Container{{
			Name: api.ContainerName, Image: "none",
			Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("1Gi"),
			}},
		}}},
	}
	if annotations == nil {
		return pod
	}
	pod.Labels = map[string]string{api.LabelVM: name}
	pod.Annotations = map[string]string{api.KeyVM: name, api.KeyMemory: "64Mi"}
	maps.Copy(pod.Annotations, annotations)
	container := &pod.Spec.Containers[0]
	container.Resources.Limits[api.ResourceKVM] = resource.MustParse("1")
	container.Resources.Limits[api.ResourceTun] = resource.MustParse("1")
	empty := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
	for volume, path := range map[string]string{"pod": api.PathPod, "run": api.PathRun, "scratch": api.PathScratch} {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: volume, VolumeSource: empty})
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: volume, MountPath: path})
	}
	return pod
}

func getPod(t *testing.T, client kubernetes.Interface, name string) *corev1.Pod {
	t.Helper()
	pod, err := client.CoreV1().Pods("shop").Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// awaitDecision waits until the Pod is bound or was found unschedulable.
func awaitDecision(t *testing.T, client kubernetes.Interface, name string) *corev1.Pod {
	t.Helper()
	await(t, "a decision about "+name, func() bool {
		pod := getPod(t, client, name)
		return pod.Spec.NodeName != "" || condition(pod).Reason == corev1.PodReasonUnschedulable
	})
	return getPod(t, client, name)
}

func condition(pod *corev1.Pod) corev1.PodCondition {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			return c
		}
	}
	return corev1.PodCondition{}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("not within %v: %s", patience, what)
		case <-tick.C:
		}
	}
}
