package program

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/facts"
	"podvirt.dev/internal/apitest"
	"podvirt.dev/internal/cli"
	"podvirt.dev/internal/kubelettest"
	"podvirt.dev/internal/require"
	"podvirt.dev/internal/transcript"
)

const (
	repository = "../../.."
	nodeName   = "node-a"
	otherNode  = "node-b"
	podName    = "podvirt-device-plugin-x"
)

// rights are the manifests that say what the plugin's account may do.
func rights() []string {
	return []string{
		filepath.Join(repository, "manifests/device-plugin/rbac.yaml"),
		filepath.Join(repository, "manifests/admission/own-node.yaml"),
	}
}

// bench is a host's directories, an API server with our manifests, and a kubelet.
type bench struct {
	t       *testing.T
	server  *apitest.Server
	kubelet *kubelettest.Kubelet
	root    string // of the host
	configz *configz
	config  string // kubeconfig of the plugin's account
	boot    string
	metrics string
	stop    func() // ends the plugin that was started first
}

func newBench(t *testing.T) *bench {
	t.Helper()
	require.Root(t) // device files are made
	server := apitest.Start(t)
	server.Make(t, api.SystemNamespace, "podvirt-device-plugin")
	server.Apply(t, api.SystemNamespace, rights()...)
	for _, name := range []string{nodeName, otherNode} {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name}}}
		if _, err := server.Client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	boot, err := facts.BootID("/proc")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, server: server, root: kubelettest.ShortDir(t), boot: boot, metrics: "127.0.0.1:" + apitest.FreePort(t)}
	b.configz = serveConfigz(t)
	b.configz.addTo(t, server, nodeName)
	b.config = server.Kubeconfig(t, server.AccountOn(t, api.SystemNamespace, "podvirt-device-plugin", nodeName))
	for _, dir := range []string{"dev/net", "run", "facts", "registry", "seccomp", "cdi", "bin", "sys/bus/pci/devices"} {
		if err := os.MkdirAll(b.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.mknod("kvm", unix.Mkdev(10, 232))
	b.mknod("net/tun", unix.Mkdev(10, 200))
	if err := os.WriteFile(b.path("hook"), []byte("#!hook"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.kubelet, _ = kubelettest.Start(t, b.path("registry"), "")
	b.kubelet.ServeHolders(t, b.path("pods.sock"))
	return b
}

func (b *bench) path(name string) string { return filepath.Join(b.root, name) }

func (b *bench) mknod(name string, device uint64) {
	b.t.Helper()
	err := unix.Mknod(b.path("dev/"+name), unix.S_IFCHR|0o600, int(device))
	require.Feature(b.t, err == nil, "permission to make device files")
}

func (b *bench) args(instance string) []string {
	return []string{
		"--node-name=" + nodeName, "--instance=" + instance, "--pod=" + api.SystemNamespace + "/" + podName, "--kubeconfig=" + b.config, "--metrics=" + b.metrics,
		"--dev=" + b.path("dev"), "--run=" + b.path("run"), "--facts-dir=" + b.path("facts"), "--plugin-dir=" + b.path("registry"),
		"--seccomp-dir=" + b.path("seccomp"), "--cdi-dir=" + b.path("cdi"), "--hook-dir=" + b.path("bin"), "--hook=" + b.path("hook"),
		"--sysfs=" + b.path("sys"), "--journal=" + b.path("devices.json"), "--pod-resources=" + b.path("pods.sock"),
	}
}

// start runs the program inside the test process; its log goes to the test's log.
func (b *bench) start(instance string) (stop func()) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	var log transcript.Transcript
	done := make(chan int, 1)
	go func() { done <- Run(ctx, b.args(instance), cli.Streams{Out: io.Discard, Err: &log}) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if code := <-done; code != 0 {
			b.t.Errorf("exit code %d", code)
		}
		b.t.Logf("log of %s:\n%s", instance, log.String())
	})
	b.t.Cleanup(stop)
	return stop
}

// runFacts makes the plugin's Pod, whose container facts runs an image, as the kubelet reports it.
func (b *bench) runFacts(image string) {
	b.t.Helper()
	pods := b.server.Client.CoreV1().Pods(api.SystemNamespace)
	pod, err := pods.Create(b.t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: podName},
		Spec: corev1.PodSpec{NodeName: nodeName, ServiceAccountName: "podvirt-device-plugin", Containers: []corev1.Container{
			{Name: "plugin", Image: "none"}, {Name: factsContainer, Image: "none"},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{
		{Name: "plugin", Image: "none", ImageID: "sha256:other"}, {Name: factsContainer, Image: "none", ImageID: image},
	}
	if _, err := pods.UpdateStatus(b.t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		b.t.Fatal(err)
	}
}

// observe writes facts as the launcher does.
func (b *bench) observe(accelerator api.Accelerator, models ...string) {
	b.t.Helper()
	cpu := api.CPUFacts{
		V: 1, Boot: b.boot, Observed: time.Now(), QEMU: "10.0.2", Arch: "amd64", Accelerator: accelerator,
		Vendor: "Intel", Model: "Haswell", Models: models, Problems: []string{"kvm: no sign of life after 10 s"},
	}
	text, err := cpu.Encode()
	if err != nil {
		b.t.Fatal(err)
	}
	b.replace("facts/"+facts.CPUFile, text)
}

func (b *bench) replace(name, text string) {
	b.t.Helper()
	tmp := b.path("facts/.new")
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(tmp, b.path(name)); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) node() *corev1.Node {
	b.t.Helper()
	node, err := b.server.Client.CoreV1().Nodes().Get(b.t.Context(), nodeName, metav1.GetOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	return node
}

func (b *bench) configure(data map[string]string) {
	b.t.Helper()
	maps := b.server.Client.CoreV1().ConfigMaps(api.SystemNamespace)
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: api.ConfigName}, Data: data}
	if _, err := maps.Update(b.t.Context(), object, metav1.UpdateOptions{}); err == nil {
		return
	}
	if _, err := maps.Create(b.t.Context(), object, metav1.CreateOptions{}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) events() string {
	b.t.Helper()
	list, err := b.server.Client.CoreV1().Events("default").List(b.t.Context(), metav1.ListOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	var lines []string
	for _, e := range list.Items {
		lines = append(lines, fmt.Sprintf("%s %s %s: %s", e.Type, e.InvolvedObject.Name, e.Reason, e.Message))
	}
	return strings.Join(lines, "\n")
}

func (b *bench) get(path string) (int, string) {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	resp, err := client.Get("https://" + b.metrics + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

func (b *bench) healthy(resource string) int { return b.kubelet.Healthy(api.Prefix + resource) }

const second = time.Second

func (b *bench) annotate(key, value string) {
	b.t.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{key: value}}})
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.server.Client.CoreV1().Nodes().Patch(b.t.Context(), nodeName, "application/merge-patch+json", patch, metav1.PatchOptions{}); err != nil {
		b.t.Fatal(err)
	}
}
