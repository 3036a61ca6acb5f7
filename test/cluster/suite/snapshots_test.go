package suite

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

// snapshotController is Kubernetes' own, as its project tells to run it for drivers that serve one node each.
const snapshotController = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: t-snapshot-controller, namespace: podvirt-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: t-snapshot-controller}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: ServiceAccount, name: t-snapshot-controller, namespace: podvirt-system}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: t-snapshot-controller, namespace: podvirt-system}
spec:
  selector: {matchLabels: {app: t-snapshot-controller}}
  template:
    metadata: {labels: {app: t-snapshot-controller}}
    spec:
      serviceAccountName: t-snapshot-controller
      containers:
      - name: main
        image: localhost/podvirt/snapshot-controller:dev
        imagePullPolicy: IfNotPresent
        args: [--enable-distributed-snapshotting, -v=2]
`

// snapshotResource is a resource of the snapshot API.
func snapshotResource(name string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: name}
}

// installSnapshots adds what VolumeSnapshots need to the cluster until the test ends.
func installSnapshots(t *testing.T) *harness.Cluster {
	t.Helper()
	c := harness.Installed(t)
	c.RequireImage(t, "csi-snapshotter")
	c.RequireImage(t, "snapshot-controller")
	kubectl := func(stdin string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(context.WithoutCancel(t.Context()), c.Kubectl(), append([]string{"--kubeconfig", c.Kubeconfig()}, args...)...)
		cmd.Stdin = strings.NewReader(stdin)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, stderr.String())
		}
		return string(out)
	}
	const image = "podvirt/csi-snapshotter"
	ours := strings.ReplaceAll(kubectl("", "kustomize", "../../../manifests/csi-snapshots"), image+"\n", "localhost/"+image+":dev\n")
	all := definitions(t) + "---\n" + snapshotController
	t.Cleanup(func() {
		kubectl("", "wait", "--for=delete", "volumesnapshotcontents", "--all", "--timeout=120s")
		kubectl(all+"---\n"+ours, "delete", "--ignore-not-found", "-f", "-")
	})
	kubectl(all, "apply", "--server-side", "-f", "-")
	kubectl("", "wait", "--for=condition=Established", "crd/volumesnapshotclasses.snapshot.storage.k8s.io", "--timeout=60s")
	kubectl(ours, "apply", "--server-side", "-f", "-")
	kubectl("", "-n", api.SystemNamespace, "rollout", "status", "deployment/t-snapshot-controller", "--timeout=120s")
	kubectl("", "-n", api.SystemNamespace, "rollout", "status", "daemonset/podvirt-csi-snapshotter", "--timeout=120s")
	return c
}

// definitions are the CRDs of the version that the images are built from.
func definitions(t *testing.T) string {
	t.Helper()
	list := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/kubernetes-csi/external-snapshotter/client/v8")
	list.Dir = "../../programs/csi"
	dir, err := list.Output()
	if err != nil {
		t.Fatalf("the module with the CRDs: %v", err)
	}
	var all strings.Builder
	for _, kind := range []string{"classes", "contents", "s"} {
		file := "config/crd/snapshot.storage.k8s.io_volumesnapshot" + kind + ".yaml"
		text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), file))
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString("---\n" + string(text) + "\n")
	}
	return all.String()
}

// waitSnapshot waits until a VolumeSnapshot is ready and returns its content.
func waitSnapshot(t *testing.T, ns *harness.Namespace, name string) *unstructured.Unstructured {
	t.Helper()
	var content string
	harness.Eventually(t, 2*harness.Medium, "snapshot "+name, func(ctx context.Context) error {
		snapshot, err := ns.Dynamic.Resource(snapshotResource("volumesnapshots")).Namespace(ns.Name).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		ready, _, _ := unstructured.NestedBool(snapshot.Object, "status", "readyToUse")
		content, _, _ = unstructured.NestedString(snapshot.Object, "status", "boundVolumeSnapshotContentName")
		if !ready {
			return fmt.Errorf("status is %v", snapshot.Object["status"])
		}
		return nil
	})
	found, err := ns.Dynamic.Resource(snapshotResource("volumesnapshotcontents")).Get(t.Context(), content, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// from lets a claim begin as a snapshot or another claim.
func from(t *testing.T, c claim, group, kind, name string) string {
	t.Helper()
	source := fmt.Sprintf("  dataSource: {apiGroup: %q, kind: %s, name: %s}\n", group, kind, name)
	return strings.Replace(c.manifest(t), "spec:\n", "spec:\n"+source, 1)
}

// snapshot is a VolumeSnapshot of a claim of the same name.
func snapshot(claim string) string {
	return fmt.Sprintf(`
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: %[1]s}
spec:
  volumeSnapshotClassName: podvirt-local
  source: {persistentVolumeClaimName: %[1]s}
`, claim)
}

// TestSnapshots takes snapshots of a running VM's disks, boots another VM from claims that are made of them, one of them
// larger, clones a disk, and lets a disk grow under the running guest (ST-024, ST-025, ST-028, ST-033, ST-035).
func TestSnapshots(t *testing.T) {
	long(t, "test-storage")
	installSnapshots(t)
	ns := setUp(t, "guest-tiny")
	ns.Apply(t, claim{name: "root", size: "128Mi", block: true}.manifest(t))
	ns.Apply(t, claim{name: "state", size: "64Mi", block: true}.manifest(t))
	fill(t, ns, nil, []string{"root"})
	ns.Apply(t, rooted("origin", "root", true).use("state", "state", true).httpReady(8080).manifest(t))
	pod := ns.WaitPod(t, "origin", 2*harness.Medium, harness.Ready)
	ns.WaitLog(t, "origin", api.ContainerName, "podvirt-tiny: data on", harness.Medium)
	note := func(pod *corev1.Pod) string {
		return "http://" + net.JoinHostPort(pod.Status.PodIP, "8080") + "/data/note"
	}
	mustCurl(t, ns, "--request", "PUT", "--data", "before", note(pod))
	ns.Apply(t, snapshot("root")+"---"+snapshot("state"))
	waitSnapshot(t, ns, "root")
	checkQuiesced(t, ns, "state", "none", "is as after a power cut") // the guest has no agent
	mustCurl(t, ns, "--request", "PUT", "--data", "after!", note(pod))

	ns.Apply(t, from(t, claim{name: "clone", size: "64Mi", block: true}, "", "PersistentVolumeClaim", "state"))
	ns.Apply(t, from(t, claim{name: "state-old", size: "96Mi", block: true}, "snapshot.storage.k8s.io", "VolumeSnapshot", "state"))
	ns.Apply(t, from(t, claim{name: "root-old", size: "128Mi", block: true}, "snapshot.storage.k8s.io", "VolumeSnapshot", "root"))
	ns.Apply(t, newVM("cloned", "guest-tiny").use("data", "clone", true).httpReady(8080).manifest(t))
	ns.Apply(t, rooted("restored", "root-old", true).use("state-old", "state-old", true).httpReady(8080).manifest(t))
	for name, want := range map[string]string{"cloned": "after!", "restored": "before"} {
		copied := ns.WaitPod(t, name, harness.Long, harness.Ready)
		if copied.Spec.NodeName != pod.Spec.NodeName {
			t.Errorf("%s runs on %s, its source is on %s", name, copied.Spec.NodeName, pod.Spec.NodeName)
		}
		if got := mustCurl(t, ns, note(copied)); strings.TrimSpace(got) != want {
			t.Errorf("%s holds %q; want %q", name, got, want)
		}
	}
	checkSizes(t, ns, "restored", map[string]int64{"state-old": 96 << 20})
	t.Run("growth under a guest", func(t *testing.T) { growUnderGuest(t, ns) })
	t.Run("growth at rest", func(t *testing.T) { growAtRest(t, ns) })
}

// checkQuiesced wants to be told how consistent the snapshot of a claim is.
func checkQuiesced(t *testing.T, ns *harness.Namespace, claim, how, event string) {
	t.Helper()
	content := waitSnapshot(t, ns, claim)
	contents := ns.Dynamic.Resource(snapshotResource("volumesnapshotcontents"))
	harness.Eventually(t, harness.Medium, "how the snapshot was made consistent", func(ctx context.Context) error {
		now, err := contents.Get(ctx, content.GetName(), metav1.GetOptions{})
		if err == nil && now.GetAnnotations()["podvirt.dev/quiesced"] != how {
			err = fmt.Errorf("annotations are %v", now.GetAnnotations())
		}
		return err
	})
	waitEvent(t, ns, claim, event)
}

// resize edits what a claim asks for.
func resize(t *testing.T, ns *harness.Namespace, claim, size string) error {
	t.Helper()
	patch := []byte(`{"spec":{"resources":{"requests":{"storage":"` + size + `"}}}}`)
	_, err := ns.Client.CoreV1().PersistentVolumeClaims(ns.Name).Patch(t.Context(), claim, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// grow asks for more than there is, and then for less than that but more than the claim has.
func grow(t *testing.T, ns *harness.Namespace, claim, size string) {
	t.Helper()
	if err := resize(t, ns, claim, "100Ti"); err != nil {
		t.Fatal(err)
	}
	waitEvent(t, ns, claim, "not enough room in the pool")
	if err := resize(t, ns, claim, size); err != nil {
		t.Fatal(err)
	}
	want := resource.MustParse(size)
	harness.Eventually(t, harness.Medium, "capacity of claim "+claim, func(ctx context.Context) error {
		found, err := ns.Client.CoreV1().PersistentVolumeClaims(ns.Name).Get(ctx, claim, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if has := found.Status.Capacity[corev1.ResourceStorage]; has.Cmp(want) != 0 {
			return errors.New(has.String())
		}
		return nil
	})
	if err := resize(t, ns, claim, "32Mi"); err == nil || !strings.Contains(err.Error(), "can not be less than status.capacity") {
		t.Errorf("shrinking %s: %v; want to be refused", claim, err)
	}
}

// growUnderGuest edits the claim of the running VM and looks into the guest.
func growUnderGuest(t *testing.T, ns *harness.Namespace) {
	term := ns.Shell(t, "origin", api.ContainerName, "launcher", "ctl", "console")
	logIn(t, term)
	grow(t, ns, "state", "96Mi")
	term.Send(t, "until [ $(cat /sys/block/vdb/size) = 196608 ]; do sleep 1; done; echo gr''own\n")
	term.Expect(t, harness.Medium, "grown")
}

// growAtRest edits a claim that no Pod uses, and starts one then.
func growAtRest(t *testing.T, ns *harness.Namespace) {
	deletePod(t, ns, "cloned")
	grow(t, ns, "clone", "96Mi")
	ns.Apply(t, userPod{name: "cloned", devices: []string{"clone"}}.manifest(t))
	ns.WaitPod(t, "cloned", harness.Medium, harness.Ready)
	if size := ns.Exec(t, "cloned", "main", "sh", "-c", "head -c 1G /d/clone | wc -c"); strings.TrimSpace(size) != "100663296" {
		t.Errorf("the device has %s bytes; want 96Mi", size)
	}
}

// writer is a database in the guest that gets a row at a time, as fast as it goes.
const writer = `sudo mkfs.ext4 -q /dev/disk/by-id/virtio-data && sudo mkdir /data && sudo mount /dev/disk/by-id/virtio-data /data &&
sudo systemd-run --quiet --unit=writer python3 -c '
import sqlite3
db = sqlite3.connect("/data/db", isolation_level=None)
db.execute("create table rows (n integer)")
n = 0
while True:
    n += 1
    db.execute("insert into rows values (?)", (n,))
' && until sudo test -s /data/db; do sleep 1; done`

// reader looks at the database in the copy without ever having replayed a journal.
const reader = `state=$(sudo dumpe2fs -h /dev/disk/by-id/virtio-data 2>/dev/null | grep -c needs_recovery)
sudo mkdir /data && sudo mount /dev/disk/by-id/virtio-data /data && sudo python3 -c '
import sqlite3
db = sqlite3.connect("/data/db")
print("journal", '$state', db.execute("pragma integrity_check").fetchone()[0], db.execute("select count(*) = max(n) from rows").fetchone()[0])
'`

// TestFrozenSnapshot takes a snapshot of a disk to which a database in a Debian guest writes: its file systems are frozen
// through the guest agent, the copy needs no recovery, and the database in it is whole (ST-030).
func TestFrozenSnapshot(t *testing.T) {
	long(t, "test-storage")
	installSnapshots(t)
	ns := setUp(t, "guest-debian")
	private, public := sshKey(t)
	putKey(t, ns, private)
	ask := func(vm, command string) (answer string) {
		t.Helper()
		pod := ns.WaitPod(t, vm, harness.Long, harness.Ready)
		harness.Eventually(t, harness.Medium, "ssh to "+vm, func(ctx context.Context) error {
			_, err := guestSSH(ctx, ns, pod.Status.PodIP, "true")
			return err
		})
		answer, err := guestSSH(t.Context(), ns, pod.Status.PodIP, command)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	ns.Apply(t, claim{name: "data", size: "512Mi", block: true}.manifest(t))
	ns.Apply(t, seedSecret("writes-seed", public))
	ns.Apply(t, newDebian("writes").use("data", "data", true).agentReady().manifest(t))
	ask("writes", writer)
	ns.Apply(t, snapshot("data"))
	checkQuiesced(t, ns, "data", "agent", "were frozen for the snapshot")
	ask("writes", "sudo touch /data/goes-on && sync") // thawed
	deletePod(t, ns, "writes")

	ns.Apply(t, from(t, claim{name: "copy", size: "512Mi", block: true}, "snapshot.storage.k8s.io", "VolumeSnapshot", "data"))
	ns.Apply(t, seedSecret("reads-seed", public))
	ns.Apply(t, newDebian("reads").use("data", "copy", true).agentReady().manifest(t))
	if got := strings.TrimSpace(ask("reads", reader)); got != "journal 0 ok 1" {
		t.Errorf("the copy: %q; want no journal to replay and a whole database", got)
	}
}
