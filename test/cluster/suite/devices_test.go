package suite

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

const devicePlugin = "podvirt-device-plugin"

// deviceless and deviceful are what the two containers of a Pod say about a device that one of them asked for.
const (
	deviceful  = `stat -c '%a %u' /dev/userfaultfd; (exec 3<>/dev/userfaultfd) && echo opened; grep -E 'CapEff|NoNewPrivs' /proc/self/status; echo end`
	deviceless = `stat /dev/userfaultfd || echo absent; mknod /tmp/x c 10 200 || echo refused; echo end`
)

// holder is a Pod as restricted as a VM Pod, with a device in one of its containers.
func holder(name, node string, uid int) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  nodeName: %[2]s
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  securityContext: {runAsNonRoot: true, runAsUser: %[3]d, runAsGroup: %[3]d, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: with
    image: localhost/podvirt/tools:dev
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "%[4]s; exec sleep infinity"]
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
    resources: {limits: {podvirt.dev/userfaultfd: "1"}}
  - name: without
    image: localhost/podvirt/tools:dev
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "%[5]s; exec sleep infinity"]
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
`, name, node, uid, deviceful, deviceless)
}

// TestDevicesForThoseWhoAsk shows that a device file belongs to the user of the container that asked for it, whoever that is,
// that its sibling has nothing, and that the host's file is as before.
func TestDevicesForThoseWhoAsk(t *testing.T) {
	c := harness.Installed(t)
	c.RequireImage(t, "tools")
	ns := c.Namespace(t, harness.Restricted)
	node := c.Nodes[0]
	before := c.OnNode(t, node, "stat", "-c", "%a %u %g", "/dev/userfaultfd")
	for name, uid := range map[string]int{"launcher": api.LauncherUID, "arbitrary": 1000730000} {
		ns.Apply(t, holder(name, node, uid))
		ns.WaitPod(t, name, harness.Medium, harness.Running)
		ns.WaitLog(t, name, "with", "end", harness.Short)
		ns.WaitLog(t, name, "without", "end", harness.Short)
		want := fmt.Sprintf("600 %d\nopened\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n", uid)
		if log := ns.Log(t, name, "with"); !strings.Contains(log, want) {
			t.Errorf("%s, with the device: %q; want %q", name, log, want)
		}
		if log := ns.Log(t, name, "without"); !strings.Contains(log, "absent") || !strings.Contains(log, "refused") {
			t.Errorf("%s, without the device: %q; want neither a file nor mknod", name, log)
		}
	}
	t.Run("a container that the kubelet restarts", func(t *testing.T) { checkRestarted(t, ns, "launcher") })
	if after := c.OnNode(t, node, "stat", "-c", "%a %u %g", "/dev/userfaultfd"); after != before {
		t.Errorf("the host's file was %s and is %s", before, after)
	}
}

// checkRestarted: a container that the kubelet starts again has the unit that it had, and can use it (DP-019).
func checkRestarted(t *testing.T, ns *harness.Namespace, name string) {
	t.Helper()
	pod := ns.WaitPod(t, name, harness.Short, harness.Running)
	units := unitsOf(t, ns, pod, "with")
	at := slices.IndexFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return s.Name == "with" })
	_, id, _ := strings.Cut(pod.Status.ContainerStatuses[at].ContainerID, "://")
	ns.OnNode(t, pod.Spec.NodeName, "sh", "-c", `for p in /proc/[0-9]*; do grep -qs `+id+` $p/cgroup && kill -9 ${p#/proc/}; done; true`)
	ns.WaitPod(t, name, harness.Medium, func(pod *corev1.Pod) error {
		if s := pod.Status.ContainerStatuses[at]; s.RestartCount == 0 || s.State.Running == nil {
			return fmt.Errorf("state %+v", s)
		}
		return nil
	})
	ns.WaitLog(t, name, "with", "end", harness.Short)
	if log := ns.Log(t, name, "with"); !strings.Contains(log, "opened") {
		t.Errorf("the restarted container says %q; want the device again", log)
	}
	if again := unitsOf(t, ns, pod, "with"); len(units) != 1 || !slices.Equal(again, units) {
		t.Errorf("units were %v and are %v", units, again)
	}
}

// unitsOf are the units that the kubelet has written down for a container.
func unitsOf(t *testing.T, ns *harness.Namespace, pod *corev1.Pod, container string) []string {
	t.Helper()
	var checkpoint struct {
		Data struct {
			PodDeviceEntries []struct {
				PodUID, ContainerName string
				DeviceIDs             map[string][]string // by NUMA cell
			}
		}
	}
	text := ns.OnNode(t, pod.Spec.NodeName, "cat", "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint")
	if err := json.Unmarshal([]byte(text), &checkpoint); err != nil {
		t.Fatalf("%v: %.200s", err, text)
	}
	var units []string
	for _, entry := range checkpoint.Data.PodDeviceEntries {
		if entry.PodUID == string(pod.UID) && entry.ContainerName == container {
			for _, ids := range entry.DeviceIDs {
				units = append(units, ids...)
			}
		}
	}
	return units
}

// TestSeccompProfile shows that the profile is on every node, that a restricted Pod may name it, and that it allows what
// RuntimeDefault does not, and no more.
func TestSeccompProfile(t *testing.T) {
	c := harness.Installed(t)
	c.RequireImage(t, "tools")
	ns := c.Namespace(t, harness.Restricted)
	for i, node := range c.Nodes {
		name := fmt.Sprintf("profile-%d", i)
		ns.Apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeName: %s
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  securityContext: {runAsNonRoot: true, runAsUser: 107, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: main
    image: localhost/podvirt/tools:dev
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "unshare -U true; echo user=$?; unshare -n true; echo net=$?; unshare -U -m true; echo mount=$?; exec sleep infinity"]
    securityContext:
      {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, seccompProfile: {type: Localhost, localhostProfile: %s}}
`, name, node, api.LocalhostProfile))
		ns.WaitPod(t, name, harness.Medium, harness.Running)
		ns.WaitLog(t, name, "main", "mount=", harness.Short)
		for _, want := range []string{"user=0", "net=1", "mount=1"} {
			if log := ns.Log(t, name, "main"); !strings.Contains(log, want) {
				t.Errorf("on %s: %s; want %s", node, log, want)
			}
		}
	}
	for _, node := range c.Nodes {
		const file = "/var/lib/kubelet/seccomp/" + api.LocalhostProfile
		c.OnNode(t, node, "rm", file)
		harness.Eventually(t, harness.Short, "profile is back on "+node, func(context.Context) error {
			if out := c.OnNode(t, node, "sh", "-c", "cat "+file+" || true"); !strings.Contains(out, "userfaultfd") {
				return fmt.Errorf("content %.40q", out)
			}
			return nil
		})
	}
}

// TestNodeFacts shows what stands on a Node, and that nothing is written when there is nothing new.
func TestNodeFacts(t *testing.T) {
	c := harness.Installed(t)
	for _, name := range c.Nodes {
		node := c.Node(t, name)
		cpu, err := api.DecodeCPUFacts(node.Annotations[api.NodeCPU])
		if err != nil {
			t.Fatal(err)
		}
		numa, err := api.DecodeNUMAFacts(node.Annotations[api.NodeNUMA])
		if err != nil {
			t.Fatal(err)
		}
		if boot := node.Status.NodeInfo.BootID; cpu.Boot != boot || numa.Boot != boot || !slices.IsSorted(cpu.Models) || len(cpu.Models) == 0 {
			t.Errorf("%s: boot %s, facts of %s and %s, models %v", name, boot, cpu.Boot, numa.Boot, cpu.Models)
		}
		kvm := node.Status.Allocatable[corev1.ResourceName(api.ResourceKVM)]
		if usable := cpu.Accelerator == api.AcceleratorKVM; usable != (kvm.Value() > 0) || !usable && len(cpu.Problems) == 0 {
			t.Errorf("%s: accelerator %s, kvm %s, problems %q", name, cpu.Accelerator, &kvm, cpu.Problems)
		}
		want := map[string]string{
			api.NodeLabelSchedulable: "true", api.NodeLabelAccelerator: string(cpu.Accelerator),
			api.NodeLabelCPUVendor: cpu.Vendor, api.NodeLabelCPUModel: cpu.Model,
		}
		if labels := ourLabels(node); !maps.Equal(labels, want) {
			t.Errorf("%s: labels %v; want exactly %v", name, labels, want)
		}
	}
	kubeletsAreKnown(t, c)
	idleNodesAreLeftAlone(t, c)
}

// kubeletsAreKnown: the policies of the kubelets here are those that a kubelet has by itself (SC-011).
func kubeletsAreKnown(t *testing.T, c *harness.Cluster) {
	t.Helper()
	want := api.Kubelet{CPU: "none", Memory: "None", Topology: "none", TopologyScope: "container"}
	for _, name := range c.Nodes {
		deadline := time.Now().Add(2 * time.Minute) // a question that failed is asked again after half a minute
		for {
			numa, err := api.DecodeNUMAFacts(c.Node(t, name).Annotations[api.NodeNUMA])
			if err == nil && numa.Kubelet != nil && reflect.DeepEqual(*numa.Kubelet, want) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: policies of the kubelet %+v, %v; want %+v", name, numa.Kubelet, err, want)
			}
			<-time.After(time.Second)
		}
	}
}

func ourLabels(node *corev1.Node) map[string]string {
	labels := map[string]string{}
	for key, value := range node.Labels {
		if strings.HasPrefix(key, api.Prefix) {
			labels[key] = value
		}
	}
	return labels
}

// idleNodesAreLeftAlone looks for writes that change nothing. Other programs of this machine may take huge pages meanwhile.
func idleNodesAreLeftAlone(t *testing.T, c *harness.Cluster) {
	t.Helper()
	for range 3 {
		written, content := lastWrites(t, c)
		<-time.After(20 * time.Second) // ten looks of the launcher
		switch now, nowContent := lastWrites(t, c); {
		case maps.Equal(written, now):
			return
		case maps.Equal(content, nowContent):
			t.Fatalf("facts were written at %v and at %v, although nothing changed", written, now)
		}
	}
	t.Error("the facts of this machine never stay the same")
}

// lastWrites returns when the device plugin wrote each Node last, and what stands there but for the times of observation.
func lastWrites(t *testing.T, c *harness.Cluster) (times, content map[string]string) {
	t.Helper()
	times, content = map[string]string{}, map[string]string{}
	observed := regexp.MustCompile(`"observed":"[^"]*"`)
	for _, name := range c.Nodes {
		node := c.Node(t, name)
		content[name] = observed.ReplaceAllString(node.Annotations[api.NodeCPU]+node.Annotations[api.NodeNUMA], "")
		for _, entry := range node.ManagedFields {
			if entry.Manager == devicePlugin {
				times[name] = entry.Time.String()
			}
		}
	}
	if len(times) != len(c.Nodes) {
		t.Fatalf("field manager %s is on %v", devicePlugin, times)
	}
	return times, content
}

// allocatableWatch remembers the lowest number of units of a resource that a Node ever showed.
type allocatableWatch struct {
	mu     sync.Mutex
	lowest map[string]int64
}

func watchAllocatable(t *testing.T, c *harness.Cluster, node string, resources ...corev1.ResourceName) *allocatableWatch {
	t.Helper()
	w := &allocatableWatch{lowest: map[string]int64{}}
	watch, err := c.Client.CoreV1().Nodes().Watch(t.Context(), metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, node).String(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watch.Stop)
	go func() {
		for event := range watch.ResultChan() {
			if n, ok := event.Object.(*corev1.Node); ok {
				w.see(n, resources)
			}
		}
	}()
	return w
}

func (w *allocatableWatch) see(node *corev1.Node, resources []corev1.ResourceName) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range resources {
		q := node.Status.Allocatable[name]
		if lowest, seen := w.lowest[string(name)]; !seen || q.Value() < lowest {
			w.lowest[string(name)] = q.Value()
		}
	}
}

// never fails the test if fewer units than wanted were ever seen.
func (w *allocatableWatch) never(t *testing.T, below int64) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, lowest := range w.lowest {
		if lowest < below {
			t.Errorf("allocatable %s was %d; want never less than %d", name, lowest, below)
		}
	}
	if len(w.lowest) == 0 {
		t.Error("the watch saw nothing")
	}
}

// TestKubeletRestarts kills the kubelet again and again: no container is restarted, units are handed out again at once,
// and the Pods keep what they hold.
func TestKubeletRestarts(t *testing.T) {
	c := harness.Installed(t)
	c.RequireImage(t, "tools")
	ns := c.Namespace(t, harness.Restricted)
	node := c.Nodes[1]
	ns.Apply(t, holder("old", node, api.LauncherUID))
	old := ns.WaitPod(t, "old", harness.Medium, harness.Running)
	for round := range 3 {
		if killed := killOn(t, c, node, "kubelet-*"); killed != 1 {
			t.Fatalf("%d kubelets killed", killed)
		}
		name := fmt.Sprintf("new-%d", round)
		ns.Apply(t, holder(name, node, api.LauncherUID))
		ns.WaitPod(t, name, harness.Medium, harness.Running)
	}
	now := ns.WaitPod(t, "old", harness.Short, harness.Running)
	for i, status := range now.Status.ContainerStatuses {
		if status.ContainerID != old.Status.ContainerStatuses[i].ContainerID {
			t.Errorf("container %s was replaced", status.Name)
		}
	}
	harness.Eventually(t, harness.Short, "units are offered", func(context.Context) error { return offered(c.Node(t, node)) })
}

// TestDevicePluginUpgrade replaces every Pod of the DaemonSet while the Node is watched: the number of units never changes.
func TestDevicePluginUpgrade(t *testing.T) {
	c := harness.Installed(t)
	node := c.Nodes[0]
	harness.Eventually(t, harness.Short, "units are offered", func(context.Context) error { return offered(c.Node(t, node)) })
	watch := watchAllocatable(t, c, node, api.ResourceMemlock, api.ResourceUserfaultfd)
	sets := c.Client.AppsV1().DaemonSets(api.SystemNamespace)
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"template": map[string]any{"metadata": map[string]any{
		"annotations": map[string]string{"podvirt-test/restarted": time.Now().Format(time.RFC3339Nano)},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	set, err := sets.Patch(t.Context(), devicePlugin, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, harness.Medium, "every Pod replaced", func(ctx context.Context) error {
		now, err := sets.Get(ctx, devicePlugin, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if s := now.Status; s.ObservedGeneration < set.Generation || s.UpdatedNumberScheduled != s.DesiredNumberScheduled || s.NumberUnavailable > 0 {
			return fmt.Errorf("status %+v", s)
		}
		return nil
	})
	<-time.After(12 * time.Second) // one status period of the kubelet
	watch.never(t, 1000)
	for _, name := range c.Nodes {
		out := c.OnNode(t, name, "sh", "-c", "ls /var/lib/kubelet/plugins_registry | grep -c ^podvirt-")
		if strings.TrimSpace(out) != "7" { // one per resource, none of the former Pod
			t.Errorf("sockets on %s: %s; want 7", name, out)
		}
	}
}

// TestSocketsRemoved removes the plugin's sockets by hand: units are handed out again.
func TestSocketsRemoved(t *testing.T) {
	c := harness.Installed(t)
	c.RequireImage(t, "tools")
	ns := c.Namespace(t, harness.Restricted)
	node := c.Nodes[0]
	const list = "cd /var/lib/kubelet/plugins_registry && ls podvirt-* | sort"
	before := c.OnNode(t, node, "sh", "-c", list)
	c.OnNode(t, node, "sh", "-c", "rm /var/lib/kubelet/plugins_registry/podvirt-*")
	harness.Eventually(t, harness.Short, "sockets are back", func(context.Context) error {
		if now := c.OnNode(t, node, "sh", "-c", list+" || true"); now != before {
			return fmt.Errorf("%q", now)
		}
		return nil
	})
	// The Node's status is up to a period old: a Pod that comes before the kubelet has registered the units again fails.
	harness.Eventually(t, harness.Short, "units are handed out", func(ctx context.Context) error {
		const name = "after"
		if err := ns.TryApply(ctx, holder(name, node, api.LauncherUID)); err != nil {
			return err
		}
		pod, err := c.Client.CoreV1().Pods(ns.Name).Get(ctx, name, metav1.GetOptions{})
		if err == nil && pod.Status.Phase == corev1.PodFailed {
			err = c.Client.CoreV1().Pods(ns.Name).Delete(ctx, name, metav1.DeleteOptions{})
		}
		if err != nil {
			return err
		}
		return harness.Running(pod)
	})
}

// offered says whether a Node offers what it always can.
func offered(node *corev1.Node) error {
	for _, name := range []corev1.ResourceName{api.ResourceMemlock, api.ResourceUserfaultfd} {
		if q := node.Status.Allocatable[name]; q.Value() != 1000 {
			return fmt.Errorf("allocatable %s is %s", name, &q)
		}
	}
	return nil
}

// killOn kills the programs of one node whose file name matches a pattern of the shell.
func killOn(t *testing.T, c *harness.Cluster, node, pattern string) int {
	t.Helper()
	out := c.OnNode(t, node, "sh", "-c",
		`for p in /proc/[0-9]*; do case "$(readlink $p/exe)" in */`+pattern+`) kill -9 ${p#/proc/} && echo killed;; esac; done; true`)
	return strings.Count(out, "killed")
}
