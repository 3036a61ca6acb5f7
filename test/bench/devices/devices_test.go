// Package devices measures the built device plugin beside the simplest one, both as processes on the kubelet's side of the
// protocol: the time from the start of the process until all units could be handed out, the duration of Allocate, and memory.
// Nothing here passes or fails by time.
package devices

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/api"
	"podvirt.dev/internal/apitest"
	"podvirt.dev/internal/kubelettest"
	"podvirt.dev/internal/require"
)

const (
	resource = "bench.example/unit"
	nodeName = "node-a"
	calls    = 1000
	patience = time.Minute
)

// BenchmarkPlugins prints one line for each plugin and number of units.
func BenchmarkPlugins(b *testing.B) {
	require.Root(b)
	bin := b.TempDir()
	for _, folder := range []string{"device-plugin", "device-plugin/device-hook", "test/bench/devices/simple"} {
		build := exec.CommandContext(b.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(bin, filepath.Base(folder)),
			"podvirt.dev/"+folder)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
	}
	server := apitest.Start(b)
	for _, count := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("podvirt/%d", count), func(b *testing.B) {
			h := newHost(b)
			h.measure(b, count, h.podvirt(b, server, bin, count))
		})
		b.Run(fmt.Sprintf("simplest/%d", count), func(b *testing.B) {
			h := newHost(b)
			h.measure(b, count, exec.Command(filepath.Join(bin, "simple"), h.path("registry/simple.sock"), resource, fmt.Sprint(count)))
		})
	}
}

// host is the directories of a node and the kubelet's side.
type host struct {
	root    string
	kubelet *kubelettest.Kubelet
}

func newHost(b *testing.B) *host {
	b.Helper()
	h := &host{root: kubelettest.ShortDir(b)}
	for _, dir := range []string{"dev", "run", "facts", "registry", "seccomp", "cdi", "bin", "sys/bus/pci/devices"} {
		if err := os.MkdirAll(h.path(dir), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	h.kubelet, _ = kubelettest.Start(b, h.path("registry"), "")
	h.kubelet.ServeHolders(b, h.path("pods.sock"))
	return h
}

func (h *host) path(name string) string { return filepath.Join(h.root, name) }

// podvirt makes the files of a class and the objects it is told by, and returns the command.
func (h *host) podvirt(b *testing.B, server *apitest.Server, bin string, count int) *exec.Cmd {
	b.Helper()
	for i := range count {
		err := unix.Mknod(h.path(fmt.Sprintf("dev/bench%d", i)), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))
		require.Feature(b, err == nil, "permission to make device files")
	}
	ctx := b.Context()
	if _, err := server.Client.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{}); err != nil {
		server.Make(b, api.SystemNamespace, "podvirt-device-plugin")
		server.Apply(b, api.SystemNamespace, "../../../manifests/device-plugin/rbac.yaml")
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}
		if _, err := server.Client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
			b.Fatal(err)
		}
		config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: api.ConfigName}, Data: map[string]string{
			"device.bench": "resource=" + resource + ",path=/dev/bench*",
		}}
		if _, err := server.Client.CoreV1().ConfigMaps(api.SystemNamespace).Create(ctx, config, metav1.CreateOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	kubeconfig := server.Kubeconfig(b, server.AccountOn(b, api.SystemNamespace, "podvirt-device-plugin", nodeName))
	return exec.Command(filepath.Join(bin, "device-plugin"),
		"--node-name="+nodeName, "--instance=u1", "--kubeconfig="+kubeconfig, "--metrics=127.0.0.1:0", "--dev="+h.path("dev"),
		"--run="+h.path("run"), "--facts-dir="+h.path("facts"), "--plugin-dir="+h.path("registry"), "--seccomp-dir="+h.path("seccomp"),
		"--cdi-dir="+h.path("cdi"), "--hook-dir="+h.path("bin"), "--hook="+filepath.Join(bin, "device-hook"), "--sysfs="+h.path("sys"),
		"--journal="+h.path("devices.json"), "--pod-resources="+h.path("pods.sock"))
}

func (h *host) measure(b *testing.B, count int, cmd *exec.Cmd) {
	b.Helper()
	start := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	kubelettest.Eventually(b, patience, "all units", func() bool { return h.kubelet.Healthy(resource) == count })
	ready := time.Since(start)
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	units := h.kubelet.Units(resource)
	took := make([]time.Duration, calls)
	for i := range took {
		before := time.Now()
		if _, err := h.kubelet.Allocate(ctx, resource, units[i%len(units)]); err != nil {
			b.Fatal(err)
		}
		took[i] = time.Since(before)
	}
	slices.Sort(took)
	b.ReportMetric(float64(ready.Milliseconds()), "ms-to-allocatable")
	b.ReportMetric(float64(took[calls/2].Microseconds()), "µs-allocate-p50")
	b.ReportMetric(float64(took[calls*99/100].Microseconds()), "µs-allocate-p99")
	b.ReportMetric(resident(b, cmd.Process.Pid), "MiB-RSS")
	b.ReportMetric(0, "ns/op")
}

// resident returns the resident set of a process in MiB.
func resident(b *testing.B, pid int) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kib float64
		if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kib); err == nil {
			return kib / 1024
		}
	}
	b.Fatal("no VmRSS")
	return 0
}
