package program

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/facts"
	"podvirt.dev/device-plugin/internal/kubelet/kubelettest"
	"podvirt.dev/internal/apitest"
	"podvirt.dev/internal/cli"
	"podvirt.dev/internal/require"
)

const (
	repository = "../../.."
	nodeName   = "node-a"
	otherNode  = "node-b"
)

// bench is a host's directories, an API server with our manifests, and a kubelet.
type bench struct {
	t       *testing.T
	server  *apitest.Server
	kubelet *kubelettest.Kubelet
	root    string // of the host
	config  string // kubeconfig of the plugin's account
	boot    string
	metrics string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	require.Root(t) // device files are made
	server := apitest.Start(t)
	server.Make(t, api.SystemNamespace, "podvirt-device-plugin")
	server.Apply(t, api.SystemNamespace, filepath.Join(repository, "manifests/device-plugin/rbac.yaml"), filepath.Join(repository, "manifests/admission/own-node.yaml"))
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
	b := &bench{t: t, server: server, root: kubelettest.ShortDir(t), boot: boot, metrics: freePort(t)}
	b.config = server.Kubeconfig(t, server.AccountOn(t, api.SystemNamespace, "podvirt-device-plugin", nodeName))
	for _, dir := range []string{"dev/net", "run", "facts", "registry", "seccomp", "cdi", "bin"} {
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
		"--node-name=" + nodeName, "--instance=" + instance, "--kubeconfig=" + b.config, "--metrics=" + b.metrics,
		"--dev=" + b.path("dev"), "--run=" + b.path("run"), "--facts-dir=" + b.path("facts"), "--plugin-dir=" + b.path("registry"),
		"--seccomp-dir=" + b.path("seccomp"), "--cdi-dir=" + b.path("cdi"), "--hook-dir=" + b.path("bin"), "--hook=" + b.path("hook"),
	}
}

// start runs the program inside the test process; its log goes to the test's log.
func (b *bench) start(instance string) (stop func()) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	var log lockedBuffer
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

// The whole plugin against a real API server, under the account, role and policy of the manifests, and a kubelet.
func TestServe(t *testing.T) {
	b := newBench(t)
	stop := b.start("uid-1")

	t.Run("what is known at once is offered at once", func(t *testing.T) {
		kubelettest.Eventually(t, 5*second, "memlock", func() bool {
			return b.healthy("memlock") == 1000 && b.healthy("vhost-net") == 0 && b.healthy("tun") == 0
		})
		if b.healthy("kvm") != -1 || b.healthy("tun") != 0 || b.healthy("vhost-net") != 0 {
			t.Errorf("kvm %d, tun %d, vhost-net %d; want -1 (nobody knows), 0, 0", b.healthy("kvm"), b.healthy("tun"), b.healthy("vhost-net"))
		}
	})
	t.Run("files of the host", func(t *testing.T) {
		for _, name := range []string{"cdi/podvirt.dev-kvm.json", "seccomp/podvirt/launcher.json", "bin/device-hook"} {
			if err := os.Remove(b.path(name)); err != nil {
				t.Error(err)
			}
			kubelettest.Eventually(t, second, name+" is back", func() bool { _, err := os.Stat(b.path(name)); return err == nil })
		}
	})
	t.Run("KVM after the facts", func(t *testing.T) {
		b.observe(api.AcceleratorKVM, "Haswell", "Nehalem")
		kubelettest.Eventually(t, 5*second, "kvm", func() bool { return b.healthy("kvm") == 1000 })
		kubelettest.Eventually(t, 5*second, "labels", func() bool { return b.node().Labels[api.NodeLabelSchedulable] == "true" })
		want := map[string]string{
			"kubernetes.io/hostname": nodeName, api.NodeLabelSchedulable: "true", api.NodeLabelAccelerator: "kvm",
			api.NodeLabelCPUVendor: "Intel", api.NodeLabelCPUModel: "Haswell",
		}
		if got := b.node().Labels; !maps.Equal(got, want) {
			t.Errorf("labels = %v; want exactly four of ours", got)
		}
		published, err := api.DecodeCPUFacts(b.node().Annotations[api.NodeCPU])
		if err != nil || !slices.Equal(published.Models, []string{"Haswell", "Nehalem"}) {
			t.Errorf("published %+v, %v", published, err)
		}
	})
	t.Run("ready", func(t *testing.T) {
		kubelettest.Eventually(t, 5*second, "ready", func() bool { code, _ := b.get("/readyz"); return code == http.StatusOK })
		_, metrics := b.get("/metrics")
		for _, line := range []string{
			`podvirt_device_units{resource="podvirt.dev/kvm",state="healthy"} 1000`, "podvirt_node_kvm 1", "podvirt_node_schedulable 1",
			`podvirt_device_registrations_total{reason="registered",resource="podvirt.dev/kvm"} 1`,
		} {
			if !strings.Contains(metrics, line) {
				t.Errorf("metrics lack %s", line)
			}
		}
	})
	t.Run("nothing is written when nothing is new", func(t *testing.T) {
		before := b.node().ResourceVersion
		for range 20 {
			b.observe(api.AcceleratorKVM, "Haswell", "Nehalem")
		}
		_, metrics := b.get("/metrics")
		if after := b.node().ResourceVersion; after != before || !strings.Contains(metrics, `podvirt_node_facts_writes_total{annotation="podvirt.dev/cpu"} 1`) {
			t.Errorf("resourceVersion %s, then %s", before, after)
		}
	})
	t.Run("the CNI plugin appears and goes", func(t *testing.T) {
		if err := os.MkdirAll(b.path("run/cni"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(b.path("run/cni/called"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		kubelettest.Eventually(t, 5*second, "tun", func() bool { return b.healthy("tun") == 1000 })
		if err := os.RemoveAll(b.path("run/cni")); err != nil {
			t.Fatal(err)
		}
		kubelettest.Eventually(t, 5*second, "no tun", func() bool { return b.healthy("tun") == 0 })
	})
	t.Run("a driver is loaded", func(t *testing.T) {
		b.mknod("vhost-net", unix.Mkdev(10, 238))
		if f, err := os.OpenFile(b.path("dev/vhost-net"), os.O_RDWR, 0); err == nil {
			_ = f.Close()
			kubelettest.Eventually(t, 5*second, "vhost-net", func() bool { return b.healthy("vhost-net") == 1000 })
		} else { // a node in advance, and no driver behind it: this kernel has none
			_, metrics := b.get("/metrics")
			if b.healthy("vhost-net") != 0 || !strings.Contains(metrics, `podvirt_device_units{resource="podvirt.dev/vhost-net",state="healthy"} 0`) {
				t.Errorf("vhost-net = %d; want 0", b.healthy("vhost-net"))
			}
		}
	})
	t.Run("allocation", func(t *testing.T) {
		answer, err := b.kubelet.Allocate(t.Context(), api.ResourceKVM, "kvm-17")
		if err != nil || len(answer.CdiDevices) != 1 || answer.CdiDevices[0].Name != "podvirt.dev/kvm=any" || len(answer.Devices) != 0 {
			t.Errorf("Allocate = %v, %v", answer, err)
		}
	})
	t.Run("a restart takes nothing away", func(t *testing.T) {
		if err := os.Remove(b.path("facts/" + facts.CPUFile)); err != nil { // the new Pod's launcher has not looked yet
			t.Fatal(err)
		}
		before := b.node().ResourceVersion
		stop()
		b.start("uid-2")
		kubelettest.Eventually(t, 5*second, "kvm again", func() bool { return b.healthy("kvm") == 1000 })
		kubelettest.Eventually(t, 5*second, "ready", func() bool { code, _ := b.get("/readyz"); return code == http.StatusOK })
		if after := b.node().ResourceVersion; after != before {
			t.Error("the Node was written although nothing is new")
		}
	})
	t.Run("KVM stops working", func(t *testing.T) {
		b.observe(api.AcceleratorTCG, "Haswell")
		kubelettest.Eventually(t, 5*second, "kvm 0", func() bool { return b.healthy("kvm") == 0 })
		kubelettest.Eventually(t, 15*second, "labels", func() bool {
			l := b.node().Labels
			return l[api.NodeLabelSchedulable] == "false" && l[api.NodeLabelAccelerator] == "tcg"
		})
		kubelettest.Eventually(t, 5*second, "event", func() bool {
			return strings.Contains(b.events(), "Normal "+nodeName+" FactsChanged: accelerator is tcg, was kvm")
		})
	})
	t.Run("configuration", func(t *testing.T) {
		b.configure(map[string]string{"emulation": "allow", "devices.capacity.kvm": "7"})
		kubelettest.Eventually(t, 15*second, "schedulable by emulation", func() bool { return b.node().Labels[api.NodeLabelSchedulable] == "true" })
		b.configure(map[string]string{"emulation": "perhaps"})
		kubelettest.Eventually(t, 5*second, "mistake counted", func() bool {
			_, metrics := b.get("/metrics")
			return strings.Contains(metrics, "podvirt_device_config_errors 1")
		})
		if b.node().Labels[api.NodeLabelSchedulable] != "true" {
			t.Error("an invalid configuration was applied")
		}
	})
	t.Run("skip-node", func(t *testing.T) {
		b.annotate(api.NodeSkip, "true")
		b.annotate(api.NodeCPU, `{"v":1,"boot":"x","accelerator":"kvm"}`)
		b.observe(api.AcceleratorTCG, "EPYC")
		kubelettest.Eventually(t, 5*second, "the plugin has looked", func() bool { return b.healthy("kvm") == 0 })
		if text := b.node().Annotations[api.NodeCPU]; !strings.Contains(text, `"boot":"x"`) {
			t.Errorf("hand-made facts were overwritten: %s", text)
		}
		b.annotate(api.NodeSkip, "yes")
		kubelettest.Eventually(t, 5*second, "normal again", func() bool { return strings.Contains(b.node().Annotations[api.NodeCPU], "EPYC") })
		kubelettest.Eventually(t, 5*second, "event", func() bool { return strings.Contains(b.events(), `"yes": not one of true, false; nearest: true`) })
	})
}

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

// With the token of the DaemonSet nothing can be changed but our keys on the own Node (SC-020).
func TestOwnNodePolicy(t *testing.T) {
	server := apitest.Start(t)
	server.Make(t, api.SystemNamespace, "podvirt-device-plugin")
	server.Apply(t, api.SystemNamespace, filepath.Join(repository, "manifests/device-plugin/rbac.yaml"), filepath.Join(repository, "manifests/admission/own-node.yaml"))
	for _, name := range []string{nodeName, otherNode} {
		node := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"foreign": "x"}, Annotations: map[string]string{"foreign": "x"}},
			Spec:       corev1.NodeSpec{PodCIDR: "10.0.0.0/24", Taints: []corev1.Taint{{Key: "foreign", Effect: "NoSchedule"}, {Key: api.TaintNotReady, Effect: "NoSchedule"}}},
		}
		if _, err := server.Client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	bound, err := kubernetes.NewForConfig(server.AccountOn(t, api.SystemNamespace, "podvirt-device-plugin", nodeName))
	if err != nil {
		t.Fatal(err)
	}
	unbound, err := kubernetes.NewForConfig(server.Account(t, api.SystemNamespace, "podvirt-device-plugin"))
	if err != nil {
		t.Fatal(err)
	}
	patch := func(c kubernetes.Interface, node, body string, sub ...string) error {
		_, err := c.CoreV1().Nodes().Patch(t.Context(), node, "application/merge-patch+json", []byte(body), metav1.PatchOptions{}, sub...)
		return err
	}
	kubelettest.Eventually(t, 30*second, "the policy is in force", func() bool {
		return patch(bound, otherNode, `{"metadata":{"annotations":{"podvirt.dev/cpu":"x"}}}`) != nil
	})
	// The second is put on every new Node by the API server itself.
	const foreignTaint = `{"key":"foreign","effect":"NoSchedule"},{"key":"node.kubernetes.io/not-ready","effect":"NoSchedule"}`
	tests := map[string]struct {
		client kubernetes.Interface
		node   string
		body   string
		want   string // in the refusal; "": allowed
	}{
		"own annotation":            {bound, nodeName, `{"metadata":{"annotations":{"podvirt.dev/cpu":"y"}}}`, ""},
		"own annotation removed":    {bound, nodeName, `{"metadata":{"annotations":{"podvirt.dev/cpu":null}}}`, ""},
		"own label":                 {bound, nodeName, `{"metadata":{"labels":{"podvirt.dev/accelerator":"tcg"}}}`, ""},
		"model label":               {bound, nodeName, `{"metadata":{"labels":{"cpu-model.podvirt.dev/EPYC":"true"}}}`, ""},
		"our taint removed":         {bound, nodeName, `{"spec":{"taints":[` + foreignTaint + `]}}`, ""},
		"another Node":              {bound, otherNode, `{"metadata":{"annotations":{"podvirt.dev/cpu":"y"}}}`, "Node node-b is not the one this agent runs on (node-a)"},
		"foreign label":             {bound, nodeName, `{"metadata":{"labels":{"node-role.kubernetes.io/x":""}}}`, "label node-role.kubernetes.io/x is not a key of podvirt"},
		"foreign label changed":     {bound, nodeName, `{"metadata":{"labels":{"foreign":"y"}}}`, "label foreign is not a key of podvirt"},
		"foreign label removed":     {bound, nodeName, `{"metadata":{"labels":{"foreign":null}}}`, "label foreign is not a key of podvirt"},
		"foreign annotation":        {bound, nodeName, `{"metadata":{"annotations":{"x":"y"}}}`, "annotation x is not a key of podvirt"},
		"foreign annotation gone":   {bound, nodeName, `{"metadata":{"annotations":{"foreign":null}}}`, "annotation foreign is not a key of podvirt"},
		"foreign taint removed":     {bound, nodeName, `{"spec":{"taints":[]}}`, "the only taint"},
		"taint added":               {bound, nodeName, `{"spec":{"taints":[` + foreignTaint + `,{"key":"x","effect":"NoExecute"}]}}`, "the only taint"},
		"unschedulable":             {bound, nodeName, `{"spec":{"unschedulable":true}}`, "do not change the spec"},
		"provider":                  {bound, nodeName, `{"spec":{"providerID":"x"}}`, "do not change the spec"},
		"finalizer":                 {bound, nodeName, `{"metadata":{"finalizers":["x.example/y"]}}`, "no finalizers"},
		"token without a node":      {unbound, nodeName, `{"metadata":{"annotations":{"podvirt.dev/cpu":"y"}}}`, "not bound to a Pod"},
		"the administrator changes": {server.Client, otherNode, `{"metadata":{"labels":{"foreign":"z"}}}`, ""},
	}
	for _, name := range slices.Sorted(maps.Keys(tests)) {
		tt := tests[name]
		t.Run(name, func(t *testing.T) {
			err := patch(tt.client, tt.node, tt.body)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("patch = %v; want %q", err, tt.want)
			}
		})
	}
	for name, err := range map[string]error{
		"status of the own Node": patch(bound, nodeName, `{"status":{"phase":"x"}}`, "status"),
		"delete":                 bound.CoreV1().Nodes().Delete(t.Context(), nodeName, metav1.DeleteOptions{}),
		"Secrets":                listSecrets(t.Context(), bound),
		"another ConfigMap":      getConfigMap(t.Context(), bound, "other"),
	} {
		if err == nil || !strings.Contains(err.Error(), "forbidden") {
			t.Errorf("%s: %v; want it forbidden", name, err)
		}
	}
}

func listSecrets(ctx context.Context, c kubernetes.Interface) error {
	_, err := c.CoreV1().Secrets("").List(ctx, metav1.ListOptions{})
	return err
}

func getConfigMap(ctx context.Context, c kubernetes.Interface, name string) error {
	_, err := c.CoreV1().ConfigMaps(api.SystemNamespace).Get(ctx, name, metav1.GetOptions{})
	return err
}

// The DaemonSet's arguments and mounts fit the program's flags.
func TestTheDaemonSetFitsTheFlags(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repository, "manifests/device-plugin/daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var object struct {
		Spec struct {
			Template struct{ Spec corev1.PodSpec }
		}
	}
	if err := yaml.Unmarshal(text, &object); err != nil {
		t.Fatal(err)
	}
	plugin := object.Spec.Template.Spec.Containers[0]
	args := slices.Clone(plugin.Args)
	for i := range args {
		args[i] = strings.NewReplacer("$(NODE_NAME)", "n", "$(POD_UID)", "u").Replace(args[i])
	}
	o, err := parseServe(args, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	mounted := map[string]bool{}
	for _, m := range plugin.VolumeMounts {
		mounted[m.MountPath] = !m.ReadOnly
	}
	for path, writable := range map[string]bool{
		o.dev: false, o.run: false, o.factsDir: false, o.cdiDir: true, o.pluginDir: true, o.seccompDir: true, o.hookDir: true,
	} {
		if w, ok := mounted[path]; !ok || w != writable {
			t.Errorf("%s: mounted %v, writable %v; want writable %v", path, ok, w, writable)
		}
	}
}

func TestUsage(t *testing.T) {
	tests := map[string]struct {
		args []string
		code int
		want string
	}{
		"unknown flag":     {[]string{"--nope"}, exitUsage, "unknown flag: --nope"},
		"no node":          {nil, exitUsage, "flag --node-name is required"},
		"no instance":      {[]string{"--node-name=n"}, exitUsage, "flag --instance is required"},
		"bad ConfigMap":    {[]string{"--node-name=n", "--instance=u", "--config=x"}, exitUsage, `"x": want NAMESPACE/NAME`},
		"an argument":      {[]string{"serve"}, exitUsage, `unexpected argument "serve"`},
		"help":             {[]string{"--help"}, exitOK, "--node-name"},
		"list: bad format": {[]string{"list", "-o", "yaml"}, exitUsage, `"yaml": not one of text, json`},
		"list: argument":   {[]string{"list", "x"}, exitUsage, `unexpected argument "x"`},
		"list: help":       {[]string{"list", "--help"}, exitOK, "--facts-dir"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			code := Run(t.Context(), tt.args, cli.Streams{Out: &out, Err: &out})
			if code != tt.code || !strings.Contains(out.String(), tt.want) {
				t.Errorf("exit %d, %q; want %d, %q", code, out.String(), tt.code, tt.want)
			}
		})
	}
}

func TestList(t *testing.T) {
	dir := t.TempDir()
	var out, errs bytes.Buffer
	args := []string{"list", "-o", "json", "--dev=" + dir, "--run=" + dir, "--facts-dir=" + dir}
	if code := Run(t.Context(), args, cli.Streams{Out: &out, Err: &errs}); code != exitOK {
		t.Fatalf("exit %d: %s", code, &errs)
	}
	var lines []listed
	if err := json.Unmarshal(out.Bytes(), &lines); err != nil {
		t.Fatal(err)
	}
	notes := map[string]string{}
	for _, l := range lines {
		notes[l.Resource] = l.Note
	}
	if notes[api.ResourceKVM] != "no node facts in "+dir || notes[api.ResourceVhostNet] != "/dev/vhost-net is missing" || notes[api.ResourceMemlock] != "" {
		t.Errorf("notes = %v", notes)
	}
}

// Killed at any time, the plugin leaves no half-written file and the next one works: kill -9 of the real binary, again
// and again, at random points of its start.
func TestKilledAtAnyTime(t *testing.T) {
	b := newBench(t)
	b.observe(api.AcceleratorKVM, "Haswell")
	binary := filepath.Join(t.TempDir(), "device-plugin")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, filepath.Join(repository, "device-plugin")).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for round := range 40 {
		cmd := exec.CommandContext(t.Context(), binary, b.args("uid-killed")...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Duration(round*round%200) * time.Millisecond) // spread over the start, which takes about 100 ms
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		b.wholeFiles()
	}
	b.start("uid-next")
	kubelettest.Eventually(t, 10*second, "kvm", func() bool { return b.healthy("kvm") == 1000 })
	kubelettest.Eventually(t, 10*second, "facts", func() bool { return b.node().Labels[api.NodeLabelSchedulable] == "true" })
	sockets, err := filepath.Glob(b.path("registry/*uid-killed*"))
	if err != nil || len(sockets) > 0 {
		t.Errorf("sockets of the dead: %v, %v", sockets, err)
	}
}

// wholeFiles checks that every file the plugin writes is there whole or not at all.
func (b *bench) wholeFiles() {
	b.t.Helper()
	for _, dir := range []string{"cdi", "seccomp/podvirt"} {
		entries, err := os.ReadDir(b.path(dir))
		if err != nil {
			continue // not made yet
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") {
				continue // a temporary file, which nobody reads
			}
			text, err := os.ReadFile(b.path(dir + "/" + e.Name()))
			if err != nil || !json.Valid(text) {
				b.t.Errorf("%s/%s: %v, %d bytes", dir, e.Name(), err, len(text))
			}
			if info, err := e.Info(); err != nil || info.Mode() != fs.FileMode(0o644) {
				b.t.Errorf("%s/%s: mode %v, %v", dir, e.Name(), info.Mode(), err)
			}
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// lockedBuffer takes a log from several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
