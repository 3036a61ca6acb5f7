package program

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"podvirt.dev/api"
	"podvirt.dev/controller/internal/mirror"
	"podvirt.dev/internal/transcript"
	"podvirt.dev/internal/vmstatus"
)

// TestServe is the whole controller against a real API server, under the account, the role and the policies of the
// manifests, with launchers that speak the launcher's own types. The steps go on from each other.
func TestServe(t *testing.T) {
	b := newBench(t)
	first := b.start("first")
	v := b.newVM("db1", nil)
	t.Run("the status is mirrored", func(t *testing.T) { b.mirrored(t, first, v) })
	t.Run("news become Events", func(t *testing.T) { b.news(t, v) })
	t.Run("no more than ten Events a minute", func(t *testing.T) { b.limited(t) })
	t.Run("no more than one write a second", func(t *testing.T) { b.paced(t) })
	t.Run("a launcher that is silent", func(t *testing.T) { b.silent(t) })
	t.Run("ends", func(t *testing.T) { b.ends(t) })
	t.Run("made again", func(t *testing.T) { b.madeAgain(t) })
	t.Run("claims of nodes that are gone", func(t *testing.T) { b.claims(t) })
	t.Run("the account may do nothing else", func(t *testing.T) { b.refused(t) })
	t.Run("another leader goes on", func(t *testing.T) { b.handOver(t, first, v) })
}

func (b *bench) mirrored(t *testing.T, i *instance, v *vm) {
	v.expectCondition(t, api.ConditionGuestRunning, "True/Running/")
	v.expectCondition(t, api.ConditionPaused, "False//")
	if got := v.condition(t, "Ready"); got != "" {
		t.Errorf("the launcher forged condition Ready: %s", got)
	}
	d := mirror.Read(v.pod(t).Annotations[api.KeyStatus])
	if d.State != api.StateRunning || d.VCPUs != 2 || len(d.Interfaces) != 1 || d.Interfaces[0].IPs[0] != "10.0.2.2/24" {
		t.Errorf("annotation %s: %s", api.KeyStatus, v.pod(t).Annotations[api.KeyStatus])
	}
	before := v.pod(t).ResourceVersion
	b.waitAsked(t, v, 5)
	if after := v.pod(t).ResourceVersion; after != before {
		t.Error("the Pod was written although nothing changed")
	}
	eventually(t, "ready", http.StatusOK, func(a, b int) bool { return a == b }, func() int { code, _ := i.get("/readyz"); return code })
	_, metrics := i.get("/metrics")
	for _, line := range []string{
		`podvirt_leader{component="controller"} 1`, `podvirt_component_ready{component="controller"} 1`, "podvirt_controller_vms 1",
		`podvirt_controller_status_writes_total{result="ok"} `, `podvirt_controller_asked_total{result="ok"} `,
	} {
		if !strings.Contains(metrics, line) {
			t.Errorf("metrics lack %s", line)
		}
	}
}

func (b *bench) news(t *testing.T, v *vm) {
	started := "Normal Started: the guest started"
	v.happens(vmstatus.Started, "the guest started")
	b.expectEvents(t, "db1", started)
	v.set(func(s *vmstatus.Status) {
		s.State, s.Reason = api.StatePaused, "user"
		s.Conditions[0], s.Conditions[1] = vmstatus.Condition{Type: api.ConditionGuestRunning, Status: "False", Reason: "Paused"},
			vmstatus.Condition{Type: api.ConditionPaused, Status: "True", Reason: "User"}
	})
	v.happens(vmstatus.Paused, "the guest stands still: user")
	v.expectCondition(t, api.ConditionPaused, "True/User/")
	v.happens(vmstatus.Resumed, "the guest runs again")
	v.happens("Hacked", "no such reason")
	v.happens(vmstatus.IOError, "disk root:\x1b[31m eio\n")
	want := []string{started, "Normal Paused: the guest stands still: user", "Normal Resumed: the guest runs again"}
	b.expectEvents(t, "db1", append(want, "Warning IOError: disk root:[31m eio ")...)
	v.again()
	v.again()
	b.expectEvents(t, "db1", append(want, "Warning IOError x3: disk root:[31m eio ")...)
}

// limited: of what a guest does all the time ten Events are written, and the rest waits.
func (b *bench) limited(t *testing.T) {
	v := b.newVM("noisy", nil)
	for n := range 20 {
		v.happens(vmstatus.Resized, fmt.Sprint("to ", n))
	}
	eventually(t, "ten Events", 10, func(a, b int) bool { return a == b }, func() int { return len(b.events(t, "noisy")) })
	b.waitAsked(t, v, 10)
	if got := b.events(t, "noisy"); len(got) != 10 || got[9] != "Normal Resized: to 9" {
		t.Errorf("%d Events: %v", len(got), got)
	}
}

// paced: a status that changes all the time is written once a second.
func (b *bench) paced(t *testing.T) {
	v := b.newVM("busy", nil)
	v.expectCondition(t, api.ConditionGuestRunning, "True/Running/")
	begin, versions := time.Now(), map[string]bool{}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for n := 0; time.Since(begin) < 3*time.Second; n++ {
		v.set(func(s *vmstatus.Status) { s.GuestReboots = n })
		versions[v.pod(t).ResourceVersion] = true
		<-tick.C
	}
	if took := time.Since(begin).Seconds(); len(versions) < 2 || float64(len(versions)) > took+2 {
		t.Errorf("%d versions of the Pod in %.1f seconds", len(versions), took)
	}
}

func (b *bench) silent(t *testing.T) {
	v := b.newVM("lost", nil)
	v.expectCondition(t, api.ConditionGuestRunning, "True/Running/")
	_ = v.server.Close()
	v.expectCondition(t, api.ConditionGuestRunning, "Unknown/LauncherSilent/status of the launcher: *")
	if got := v.condition(t, api.ConditionPaused); got != "False//" {
		t.Errorf("Paused is %s", got)
	}
	v.listen()
	v.expectCondition(t, api.ConditionGuestRunning, "True/Running/")
}

func (b *bench) ends(t *testing.T) {
	v := b.newVM("crash", nil)
	v.happens(vmstatus.Started, "the guest started")
	b.expectEvents(t, "crash", "Normal Started: the guest started") // what happened last before an end may never be seen
	v.expectCondition(t, api.ConditionGuestRunning, "True/Running/")
	v.ends(20, "GuestPanic: the guest kernel panicked (pvpanic)")
	v.expectCondition(t, api.ConditionGuestRunning, "False/GuestPanic/the guest kernel panicked (pvpanic)")
	b.expectEvents(t, "crash", "Normal Started: the guest started", "Warning GuestPanic: the guest kernel panicked (pvpanic)")
	d := mirror.Read(v.pod(t).Annotations[api.KeyStatus])
	if d.State != "" || d.Ended == nil || d.Ended.Code != 20 || d.Ended.Reason != "GuestPanic" || d.Told.Seq != 1 {
		t.Errorf("annotation %+v", d)
	}
	v.container(corev1.ContainerState{Running: &corev1.ContainerStateRunning{}})
	v.set(func(s *vmstatus.Status) { s.Run, s.News = "run2", nil })
	v.happens(vmstatus.Started, "the guest started")
	v.expectCondition(t, api.ConditionGuestRunning, "True/Running/")
	eventually(t, "the second start", 3, func(a, b int) bool { return a == b }, func() int { return len(b.events(t, "crash")) })
}

// madeAgain: of three Pods whose network was made before the plugin only that of a Deployment goes; and its successor
// stays, because one more would be no better (NW-010).
func (b *bench) madeAgain(t *testing.T) {
	yes := true
	owned := func(kind, version string, uid types.UID) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.OwnerReferences = []metav1.OwnerReference{{APIVersion: version, Kind: kind, Name: "owner", UID: uid, Controller: &yes}}
		}
	}
	const message = "NodeLacks: " + api.MissedNetworkStage + " (made before it was installed, or the runtime passes no annotations); delete this Pod"
	bare, static := b.newVM("bare", nil), b.newVM("static", owned("Node", "v1", "11111111-0000-0000-0000-000000000000"))
	others := b.newVM("others", owned("ReplicaSet", "apps/v1", "22222222-0000-0000-0000-000000000000"))
	old := b.newVM("old", owned("ReplicaSet", "apps/v1", "33333333-0000-0000-0000-000000000000"))
	others.ends(11, "NodeLacks: no CPU model")
	for _, v := range []*vm{bare, static, old} {
		v.ends(11, message)
	}
	pods := b.server.Client.CoreV1().Pods(space)
	there := func(name string) bool {
		_, err := pods.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		return err == nil
	}
	equal := func(a, b bool) bool { return a == b }
	eventually(t, "the Pod of a Deployment is there", false, equal, func() bool {
		pod, err := pods.Get(t.Context(), "old", metav1.GetOptions{})
		return err == nil && pod.DeletionTimestamp == nil
	})
	b.expectEvents(t, "owner", "Warning PodReplaced: Pod old is deleted, to be made again: "+api.MissedNetworkStage)
	next := b.newVM("next", owned("ReplicaSet", "apps/v1", "33333333-0000-0000-0000-000000000000"))
	next.ends(11, message)
	for _, v := range []*vm{next, bare, static, others} {
		v.expectCondition(t, api.ConditionGuestRunning, "False/NodeLacks/*")
		if !there(v.name) || v.pod(t).DeletionTimestamp != nil {
			t.Errorf("Pod %s was deleted", v.name)
		}
	}
}

// claims: the selection of a node that is gone is cleared, and no other one (ST-008).
func (b *bench) claims(t *testing.T) {
	nodes, claims := b.server.Client.CoreV1().Nodes(), b.server.Client.CoreV1().PersistentVolumeClaims(space)
	for _, name := range []string{"stays", "goes"} {
		if _, err := nodes.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct{ node, driver, volume string }{
		"waits": {"goes", api.CSIDriver, ""}, "fine": {"stays", api.CSIDriver, ""}, "foreign": {"goes", "example.org/csi", ""},
		"bound": {"goes", api.CSIDriver, "pv1"},
	} {
		claim := &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{
				"volume.kubernetes.io/selected-node": c.node, "volume.kubernetes.io/storage-provisioner": c.driver,
			}},
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, VolumeName: c.volume,
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
			},
		}
		if _, err := claims.Create(t.Context(), claim, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	selected := func(name string) string {
		claim, err := claims.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return claim.Annotations["volume.kubernetes.io/selected-node"]
	}
	if err := nodes.Delete(t.Context(), "goes", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "selected node", "", func(a, b string) bool { return a == b }, func() string { return selected("waits") })
	b.expectEvents(t, "waits", "Warning SelectedNodeGone: node goes is gone, and nothing was made there: the scheduler may choose another one")
	if got := []string{selected("fine"), selected("foreign"), selected("bound")}; !slices.Equal(got, []string{"stays", "goes", "goes"}) {
		t.Errorf("the others have selected %q", got)
	}
}

// refused: what the manifests keep from the account.
func (b *bench) refused(t *testing.T) {
	client, err := kubernetes.NewForConfig(b.server.Account(t, api.SystemNamespace, account))
	if err != nil {
		t.Fatal(err)
	}
	plain := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "plain"},
		Spec:       corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "none"}}},
	}
	if _, err := b.server.Client.CoreV1().Pods(space).Create(t.Context(), plain, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	patch := func(name, body string, sub ...string) error {
		_, err := client.CoreV1().Pods(space).Patch(t.Context(), name, types.MergePatchType, []byte(body), metav1.PatchOptions{}, sub...)
		return err
	}
	rows := []struct {
		name, want string
		err        error
	}{
		{"deletes an ordinary Pod", "touches Pods of VMs only", client.CoreV1().Pods(space).Delete(t.Context(), "plain", metav1.DeleteOptions{})},
		{"writes to an ordinary Pod", "touches Pods of VMs only", patch("plain", `{"metadata":{"annotations":{"podvirt.dev/status":"{}"}}}`, "status")},
		{"writes another annotation", "podvirt.dev/memory is not for", patch("db1", `{"metadata":{"annotations":{"podvirt.dev/memory":"1Gi"}}}`, "status")},
		{"writes another condition", "podvirt.dev/* only", patch("db1", `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, "status")},
		{"moves a Pod's address", "what the kubelet says", patch("db1", `{"status":{"podIP":"127.0.0.9","podIPs":[{"ip":"127.0.0.9"}]}}`, "status")},
		{"writes a label", "no labels", patch("db1", `{"metadata":{"labels":{"a":"b"}}}`, "status")},
		{"patches a Pod", "cannot patch resource \"pods\"", patch("db1", `{"metadata":{"labels":{"a":"b"}}}`)},
		{"selects a node", "changes no other annotation", func() error {
			_, err := client.CoreV1().PersistentVolumeClaims(space).Patch(t.Context(), "waits", types.MergePatchType,
				[]byte(`{"metadata":{"annotations":{"volume.kubernetes.io/selected-node":"stays"}}}`), metav1.PatchOptions{})
			return err
		}()},
		{"reads a Secret", "forbidden", func() error {
			_, err := client.CoreV1().Secrets(space).List(t.Context(), metav1.ListOptions{})
			return err
		}()},
	}
	for _, row := range rows {
		if row.err == nil || !strings.Contains(row.err.Error(), row.want) {
			t.Errorf("%s: %v; want %q", row.name, row.err, row.want)
		}
	}
}

// handOver: the next leader repeats nothing and misses nothing.
func (b *bench) handOver(t *testing.T, first *instance, v *vm) {
	before := b.events(t, "db1")
	second := b.start("second")
	eventually(t, "the second is ready", http.StatusOK, func(a, b int) bool { return a == b }, func() int { code, _ := second.get("/readyz"); return code })
	if _, metrics := second.get("/metrics"); !strings.Contains(metrics, `podvirt_leader{component="controller"} 0`) {
		t.Error("two leaders")
	}
	first.stop()
	v.happens(vmstatus.GuestReboot, "the guest rebooted")
	b.expectEvents(t, "db1", append(before, "Normal GuestReboot: the guest rebooted")...)
	b.waitAsked(t, v, 5)
	b.expectEvents(t, "db1", append(before, "Normal GuestReboot: the guest rebooted")...)
	if n := len(b.events(t, "crash")); n != 3 {
		t.Errorf("the second leader told an end again: %v", b.events(t, "crash"))
	}
}

func TestUsage(t *testing.T) {
	tests := map[string]struct {
		args []string
		code int
		want string
	}{
		"unknown flag": {[]string{"--nope"}, exitUsage, "unknown flag: --nope"},
		"no identity":  {[]string{"--identity="}, exitUsage, "flag --identity is required"},
		"no namespace": {[]string{"--namespace="}, exitUsage, "flag --namespace is required"},
		"bad period":   {[]string{"--period=1ms"}, exitUsage, "flag --period: 1ms: 100ms to 1m"},
		"an argument":  {[]string{"serve"}, exitUsage, `unexpected argument "serve"`},
		"help":         {[]string{"--help"}, exitOK, "--identity"},
		"no cluster":   {[]string{"--kubeconfig=/none"}, exitError, "reaching the cluster"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out transcript.Transcript
			code := Run(t.Context(), tt.args, streams(&out))
			if code != tt.code || !strings.Contains(out.String(), tt.want) {
				t.Errorf("exit %d, %q; want %d, %q", code, out.String(), tt.code, tt.want)
			}
		})
	}
}

// TestTheDeploymentFitsTheFlags: what the manifest passes is understood, and it runs without any privilege.
func TestTheDeploymentFitsTheFlags(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repository, "manifests/controller/deployment.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var d appsv1.Deployment
	if err := yaml.Unmarshal([]byte(strings.Split(string(text), "\n---\n")[0]), &d); err != nil {
		t.Fatal(err)
	}
	container := d.Spec.Template.Spec.Containers[0]
	var usage transcript.Transcript
	if _, err := parse(container.Args, &usage); err != nil {
		t.Error(err)
	}
	security := container.SecurityContext
	if !*security.ReadOnlyRootFilesystem || *security.AllowPrivilegeEscalation || !*d.Spec.Template.Spec.SecurityContext.RunAsNonRoot ||
		!slices.Equal(security.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(d.Spec.Template.Spec.Volumes) > 0 {
		t.Errorf("security: %+v", security)
	}
}
