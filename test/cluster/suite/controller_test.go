package suite

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

// rebooter is a VM without an operating system, whose boot sector asks the keyboard controller for a reset at once:
// mov al,0xfe; out 0x64,al; hlt.
func rebooter(name string) *vm {
	v := newVM(name, "guest-tiny").mount("root", "/vm/disks/root", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
	uid := int64(api.LauncherUID)
	no := false
	v.Spec.InitContainers = []corev1.Container{{
		Name: "write", Image: "localhost/podvirt/tools:dev", ImagePullPolicy: corev1.PullIfNotPresent,
		Command: []string{"sh", "-c", `cd /vm/disks/root && truncate -s 1M new && printf '\260\376\346\144\364' | dd of=new conv=notrunc &&
			printf '\125\252' | dd of=new bs=1 seek=510 conv=notrunc && mv new disk.img`},
		VolumeMounts: []corev1.VolumeMount{{Name: "root", MountPath: "/vm/disks/root"}},
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: &uid, AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
	}}
	return v
}

// TestController follows the life of a guest in its Pod's conditions and Events, as people and programs see it who know
// nothing of launchers (VM-210, VM-214, VM-118).
func TestController(t *testing.T) {
	long(t, "test-controller")
	c := harness.Installed(t)
	for _, image := range []string{"launcher", "tools", "guest-tiny", "controller"} {
		c.RequireImage(t, image)
	}
	ns := c.Namespace(t, harness.Restricted)
	ns.Apply(t, newVM("life", "guest-tiny").restart(corev1.RestartPolicyNever).manifest(t))
	ns.Apply(t, rebooter("loop").manifest(t))

	var want []string
	t.Run("started", func(t *testing.T) {
		waitMirrored(t, ns, "life", api.ConditionGuestRunning, corev1.ConditionTrue, "Running")
		want = []string{"Started"}
		waitEvents(t, ns, "life", want)
		all := eventsOf(t.Context(), t, ns, "life")
		if most := 8; len(all) > most {
			t.Errorf("%d Events from create to running, want at most %d: %v", len(all), most, all)
		}
		checkStatus(t, ns, "life")
	})
	ns.WaitLog(t, "life", api.ContainerName, "podvirt-tiny: ready after", harness.Medium)
	t.Run("paused and resumed", func(t *testing.T) {
		ctl(t, ns, "life", "pause")
		waitMirrored(t, ns, "life", api.ConditionPaused, corev1.ConditionTrue, "User")
		waitMirrored(t, ns, "life", api.ConditionGuestRunning, corev1.ConditionFalse, "Paused")
		ctl(t, ns, "life", "resume")
		waitMirrored(t, ns, "life", api.ConditionPaused, corev1.ConditionFalse, "")
		want = append(want, "Paused", "Resumed")
		waitEvents(t, ns, "life", want)
	})
	t.Run("the guest reboots", func(t *testing.T) {
		term := ns.Shell(t, "life", api.ContainerName, "launcher", "ctl", "console")
		logIn(t, term)
		term.Send(t, "reboot\n")
		want = append(want, "GuestReboot")
		waitEvents(t, ns, "life", want)
	})
	t.Run("the controller is killed", func(t *testing.T) {
		node, pid := leader(t, ns)
		t.Logf("memory of the leader: %s", ns.OnNode(t, node, "sh", "-c", fmt.Sprintf("grep -E 'VmRSS|RssAnon|RssFile' /proc/%d/status", pid)))
		ns.OnNode(t, node, "kill", "-9", fmt.Sprint(pid))
		ctl(t, ns, "life", "pause")
		ctl(t, ns, "life", "resume") // nobody looks meanwhile, and nothing is missed
		want = append(want, "Paused", "Resumed")
		waitEvents(t, ns, "life", want)
	})
	t.Run("a reboot loop", func(t *testing.T) {
		waitMirrored(t, ns, "loop", api.ConditionGuestRunning, corev1.ConditionTrue, "RebootLoop")
		waitEvents(t, ns, "loop", []string{"Started", "GuestReboot", "RebootLoop"})
	})
	t.Run("ended", func(t *testing.T) {
		ctl(t, ns, "life", "poweroff")
		waitMirrored(t, ns, "life", api.ConditionGuestRunning, corev1.ConditionFalse, "Destroyed")
		waitEvents(t, ns, "life", want) // no more than these, and each once
	})
}

// TestMadeAgain: a VM Pod whose network our stage did not make says so, and is made again by its owner, once (NW-010).
// The stage goes by the annotations, which here come after the sandbox was made.
func TestMadeAgain(t *testing.T) {
	long(t, "test-controller")
	c := harness.Installed(t)
	for _, image := range []string{"launcher", "tools", "controller"} {
		c.RequireImage(t, image)
	}
	ns := c.Namespace(t, harness.Restricted)
	v := rebooter("late")
	write := &v.Spec.InitContainers[0]
	write.Command[2] = "until grep -q ^podvirt.dev/vm= /vm/pod/annotations; do sleep 1; done; " + write.Command[2]
	pod := completed(t, ns, v)
	write = &pod.Spec.InitContainers[0]
	write.VolumeMounts = append(write.VolumeMounts, corev1.VolumeMount{Name: "pod", MountPath: "/vm/pod", ReadOnly: true})
	pod.Spec.SchedulerName = "default-scheduler"
	labels := map[string]string{"app": "late", api.LabelVM: "late"}
	replicaSet := func(meta metav1.ObjectMeta) string {
		return manifest(t, map[string]any{
			"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": map[string]any{"name": "late"},
			"spec": map[string]any{
				"replicas": 1, "selector": map[string]any{"matchLabels": map[string]string{"app": "late"}},
				"template": corev1.PodTemplateSpec{ObjectMeta: meta, Spec: pod.Spec},
			},
		})
	}
	ns.Apply(t, replicaSet(metav1.ObjectMeta{Labels: map[string]string{"app": "late"}}))
	first := theOne(t, ns, "")
	ns.WaitPod(t, first, harness.Medium, func(pod *corev1.Pod) error {
		if len(pod.Status.InitContainerStatuses) == 0 || pod.Status.InitContainerStatuses[0].State.Running == nil {
			return errors.New("the init container does not run yet")
		}
		return nil
	})
	ns.Apply(t, replicaSet(metav1.ObjectMeta{Labels: labels, Annotations: pod.Annotations})) // for the next Pod
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels, "annotations": pod.Annotations}})
	if err != nil {
		t.Fatal(err)
	}
	patchPod(t, ns, first, string(patch))
	second := theOne(t, ns, first)
	t.Logf("%s is gone, %s is there", first, second)
	waitMirrored(t, ns, second, api.ConditionGuestRunning, corev1.ConditionTrue, "Running")
	told := slices.DeleteFunc(eventsOf(t.Context(), t, ns, "late"), func(e string) bool { return !strings.HasPrefix(e, "PodReplaced: ") })
	if len(told) != 1 || !strings.Contains(told[0], api.MissedNetworkStage) {
		t.Errorf("Events of the owner: %q", told)
	}
}

// theOne is the name of the only Pod of ReplicaSet late, once it is not the one named before.
func theOne(t *testing.T, ns *harness.Namespace, before string) string {
	t.Helper()
	var name string
	harness.Eventually(t, harness.Medium, "a Pod other than "+before, func(ctx context.Context) error {
		list, err := ns.Client.CoreV1().Pods(ns.Name).List(ctx, metav1.ListOptions{LabelSelector: "app=late"})
		if err != nil {
			return err
		}
		for _, pod := range list.Items {
			if pod.Name != before && pod.DeletionTimestamp == nil {
				name = pod.Name
				return nil
			}
		}
		return errors.New("none")
	})
	return name
}

// TestGoneNode: a claim whose selected node is gone is free for another one after a minute, and a Pod that waits for it
// starts (ST-008).
func TestGoneNode(t *testing.T) {
	long(t, "test-controller")
	ns := setUp(t)
	ns.Apply(t, claim{name: "free", size: "64Mi", annotations: map[string]string{selectedNode: "gone"}}.manifest(t))
	text := strings.ReplaceAll(clientPod, "name: client", "name: waits")
	ns.Apply(t, strings.ReplaceAll(text, "emptyDir: {}", "persistentVolumeClaim: {claimName: free}"))
	ns.WaitPod(t, "waits", harness.Long, harness.Ready)
	list := eventsOf(t.Context(), t, ns, "free")
	if !slices.ContainsFunc(list, func(e string) bool { return strings.HasPrefix(e, "SelectedNodeGone: node gone is gone") }) {
		t.Errorf("Events of the claim: %q", list)
	}
}

// waitMirrored waits for a condition of the Pod itself.
func waitMirrored(t *testing.T, ns *harness.Namespace, name, kind string, status corev1.ConditionStatus, reason string) {
	t.Helper()
	ns.WaitPod(t, name, harness.Medium, func(pod *corev1.Pod) error {
		for _, c := range pod.Status.Conditions {
			if string(c.Type) != kind {
				continue
			}
			if c.Status == status && c.Reason == reason {
				return nil
			}
			return fmt.Errorf("%s is %s, %s: %s; want %s, %s", kind, c.Status, c.Reason, c.Message, status, reason)
		}
		return fmt.Errorf("no condition %s", kind)
	})
}

// waitEvents waits until the controller's Events of an object begin with these reasons; where they are all, no other one
// may be among them.
func waitEvents(t *testing.T, ns *harness.Namespace, name string, want []string) {
	t.Helper()
	harness.Eventually(t, harness.Medium, "Events of "+name, func(ctx context.Context) error {
		var got []string
		for _, e := range reported(ctx, t, ns, name) {
			if e.ReportingController == "podvirt.dev/controller" {
				got = append(got, e.Reason)
			}
		}
		if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
			return fmt.Errorf("%v; want %v", got, want)
		}
		if name == "life" && len(got) > len(want) {
			return fmt.Errorf("%w: %v; want %v", harness.ErrNever, got, want)
		}
		return nil
	})
}

// reported are all Events about an object, in the order in which things happened.
func reported(ctx context.Context, t *testing.T, ns *harness.Namespace, name string) []eventsv1.Event {
	t.Helper()
	list, err := ns.Client.EventsV1().Events(ns.Name).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Log(err)
		return nil
	}
	events := slices.DeleteFunc(list.Items, func(e eventsv1.Event) bool { return e.Regarding.Name != name })
	slices.SortFunc(events, func(a, b eventsv1.Event) int {
		return cmp.Or(a.EventTime.Compare(b.EventTime.Time), cmp.Compare(len(a.Name), len(b.Name)), strings.Compare(a.Name, b.Name))
	})
	return events
}

func eventsOf(ctx context.Context, t *testing.T, ns *harness.Namespace, name string) []string {
	t.Helper()
	var lines []string
	for _, e := range reported(ctx, t, ns, name) {
		lines = append(lines, e.Reason+": "+e.Note)
	}
	return lines
}

// checkStatus compares the annotation with what the launcher itself says.
func checkStatus(t *testing.T, ns *harness.Namespace, name string) {
	t.Helper()
	type status struct {
		State                  string
		VCPUs                  int
		MemoryMiB, OverheadMiB int64
		Accelerator, Launcher  string
		StartSeconds           map[string]float64
		Boots                  int
		NICs, Interfaces       []struct{ Name, MAC, Binding string }
		Conditions             []struct{ Type, Status, Reason string }
	}
	var said, mirrored status
	if err := json.Unmarshal([]byte(ctl(t, ns, name, "status", "-o", "json")), &said); err != nil {
		t.Fatal(err)
	}
	pod := ns.WaitPod(t, name, harness.Short, func(pod *corev1.Pod) error {
		if !strings.Contains(pod.Annotations[api.KeyStatus], `"state":"running"`) {
			return errors.New("no status: " + pod.Annotations[api.KeyStatus])
		}
		return nil
	})
	if err := json.Unmarshal([]byte(pod.Annotations[api.KeyStatus]), &mirrored); err != nil {
		t.Fatal(err)
	}
	if mirrored.VCPUs != said.VCPUs || mirrored.MemoryMiB != said.MemoryMiB || mirrored.OverheadMiB != said.OverheadMiB ||
		mirrored.Accelerator != said.Accelerator || mirrored.Launcher != said.Launcher || mirrored.Boots != 1 ||
		len(mirrored.StartSeconds) != len(said.StartSeconds) || !slices.Equal(mirrored.Interfaces, said.NICs) || len(said.NICs) != 1 {
		t.Errorf("mirrored %+v\nsaid %+v", mirrored, said)
	}
	for _, c := range said.Conditions {
		if c.Type != api.ConditionGuestRunning { // the guest may be on its way
			waitMirrored(t, ns, name, c.Type, corev1.ConditionStatus(c.Status), c.Reason)
		}
	}
}

// leader is the process of the controller that leads, and its node.
func leader(t *testing.T, ns *harness.Namespace) (node string, pid int) {
	t.Helper()
	harness.Eventually(t, harness.Medium, "a leader", func(ctx context.Context) error {
		lease, err := ns.Client.CoordinationV1().Leases(api.SystemNamespace).Get(ctx, "podvirt-controller", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if lease.Spec.HolderIdentity == nil {
			return errors.New("the lease is free")
		}
		pod, err := ns.Client.CoreV1().Pods(api.SystemNamespace).Get(ctx, *lease.Spec.HolderIdentity, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("the lease is held by %s", *lease.Spec.HolderIdentity)
		}
		if err != nil {
			return err
		}
		node, pid = pod.Spec.NodeName, vmProcesses(t, ns, pod)["controller"]
		if pid == 0 {
			return errors.New("its process is not there")
		}
		return nil
	})
	return node, pid
}
