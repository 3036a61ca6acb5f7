package suite

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

// claim is a PersistentVolumeClaim under construction; the zero value of a field leaves it to Kubernetes.
type claim struct {
	name, class, size string
	block             bool
	access            []corev1.PersistentVolumeAccessMode
	annotations       map[string]string
	volume            string // name of the PersistentVolume to take
}

// annotation of the scheduler's choice (external-provisioner, storage-capacity-tracking).
const selectedNode = "volume.kubernetes.io/selected-node"

func (c claim) manifest(t *testing.T) string {
	t.Helper()
	mode := corev1.PersistentVolumeFilesystem
	if c.block {
		mode = corev1.PersistentVolumeBlock
	}
	if len(c.access) == 0 {
		c.access = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	}
	if c.class == "" {
		c.class = "podvirt-local"
	}
	object := corev1.PersistentVolumeClaim{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
		ObjectMeta: metav1.ObjectMeta{Name: c.name, Annotations: c.annotations},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &c.class, AccessModes: c.access, VolumeMode: &mode, VolumeName: c.volume,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(c.size)}},
		},
	}
	return manifest(t, object)
}

// boundVolume waits until a claim is bound and returns its volume.
func boundVolume(t *testing.T, ns *harness.Namespace, name string) *corev1.PersistentVolume {
	t.Helper()
	var volume string
	harness.Eventually(t, harness.Medium, "claim "+name+" bound", func(ctx context.Context) error {
		claim, err := ns.Client.CoreV1().PersistentVolumeClaims(ns.Name).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if volume = claim.Spec.VolumeName; claim.Status.Phase != corev1.ClaimBound {
			return fmt.Errorf("phase is %s", claim.Status.Phase)
		}
		return nil
	})
	found, err := ns.Client.CoreV1().PersistentVolumes().Get(t.Context(), volume, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// nodeOf is the only node that a volume may be used on.
func nodeOf(t *testing.T, volume *corev1.PersistentVolume) string {
	t.Helper()
	terms := volume.Spec.NodeAffinity.Required.NodeSelectorTerms
	if len(terms) != 1 || len(terms[0].MatchExpressions) != 1 || len(terms[0].MatchExpressions[0].Values) != 1 {
		t.Fatalf("volume %s has node affinity %+v; want one node", volume.Name, terms)
	}
	return terms[0].MatchExpressions[0].Values[0]
}

// storageClass makes a class of the driver that goes with the test.
func storageClass(t *testing.T, ns *harness.Namespace, class storagev1.StorageClass) {
	t.Helper()
	class.Provisioner = api.CSIDriver
	if class.VolumeBindingMode == nil {
		class.VolumeBindingMode = new(storagev1.VolumeBindingWaitForFirstConsumer)
	}
	classes := ns.Client.StorageV1().StorageClasses()
	if _, err := classes.Create(t.Context(), &class, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = classes.Delete(context.WithoutCancel(t.Context()), class.Name, metav1.DeleteOptions{}) })
}

// userPod is an ordinary Pod that a restricted namespace admits and that has claims: file volumes at /v/NAME, devices
// at /d/NAME.
type userPod struct {
	name      string
	volumes   []string
	devices   []string
	labels    map[string]string
	affinity  *corev1.Affinity
	node      map[string]string
	image     string // tools where empty
	command   []string
	imageFrom string // guest whose image is mounted at /source
}

func (u userPod) manifest(t *testing.T) string {
	t.Helper()
	if u.image == "" {
		u.image = "tools"
	}
	if u.command == nil {
		u.command = []string{"sleep", "infinity"}
	}
	pod := corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: u.name, Labels: u.labels},
		Spec: corev1.PodSpec{
			Affinity: u.affinity, NodeSelector: u.node, RestartPolicy: corev1.RestartPolicyNever,
			TerminationGracePeriodSeconds: new(int64(1)),
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: new(true), RunAsUser: new(int64(api.LauncherUID)), RunAsGroup: new(int64(api.LauncherUID)),
				FSGroup: new(int64(api.LauncherUID)), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name: "main", Image: "localhost/podvirt/" + u.image + ":dev", ImagePullPolicy: corev1.PullIfNotPresent, Command: u.command,
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
	container := &pod.Spec.Containers[0]
	for _, name := range slices.Concat(u.volumes, u.devices) {
		source := corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: source})
	}
	for _, name := range u.volumes {
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: "/v/" + name})
	}
	for _, name := range u.devices {
		container.VolumeDevices = append(container.VolumeDevices, corev1.VolumeDevice{Name: name, DevicePath: "/d/" + name})
	}
	if u.imageFrom != "" {
		source := corev1.VolumeSource{Image: &corev1.ImageVolumeSource{
			Reference: "localhost/podvirt/" + u.imageFrom + ":dev", PullPolicy: corev1.PullIfNotPresent,
		}}
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "source", VolumeSource: source})
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: "source", MountPath: "/source"})
	}
	return manifest(t, pod)
}

// waitEvent waits for an event about an object whose message contains a text.
func waitEvent(t *testing.T, ns *harness.Namespace, object, text string) {
	t.Helper()
	harness.Eventually(t, harness.Medium, fmt.Sprintf("event %q of %s", text, object), func(ctx context.Context) error {
		events, err := ns.Client.CoreV1().Events(ns.Name).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + object})
		if err != nil {
			return err
		}
		var seen []string
		for _, event := range events.Items {
			if strings.Contains(event.Message, text) {
				return nil
			}
			seen = append(seen, event.Reason+": "+event.Message)
		}
		return fmt.Errorf("there are %q", seen)
	})
}

// TestClassAndReclaim: a class that is made anew does not change its old volumes, Delete deletes, and what was retained
// is bound again under another name with its data (ST-007, ST-026).
func TestClassAndReclaim(t *testing.T) {
	ns := setUp(t)
	const class = "podvirt-test-class"
	storageClass(t, ns, storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: class}, Parameters: map[string]string{"content": "disk"},
		ReclaimPolicy: new(corev1.PersistentVolumeReclaimRetain),
	})
	ns.Apply(t, claim{name: "old", class: class, size: "64Mi"}.manifest(t))
	ns.Apply(t, userPod{name: "first", volumes: []string{"old"}}.manifest(t))
	ns.WaitPod(t, "first", harness.Medium, harness.Ready)
	ns.Exec(t, "first", "main", "sh", "-c", "echo marked | dd of=/v/old/disk.img conv=notrunc,fsync status=none")
	deletePod(t, ns, "first")
	retained := boundVolume(t, ns, "old")

	if err := ns.Client.StorageV1().StorageClasses().Delete(t.Context(), class, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	storageClass(t, ns, storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: class}, Parameters: map[string]string{"content": "files"}})
	ns.Apply(t, claim{name: "new", class: class, size: "64Mi"}.manifest(t))
	ns.Apply(t, userPod{name: "second", volumes: []string{"old", "new"}}.manifest(t))
	ns.WaitPod(t, "second", harness.Medium, harness.Ready)
	out := ns.Exec(t, "second", "main", "sh", "-c",
		"touch /v/new/file && ls /v/new; touch /v/old/file 2>/dev/null || echo refused; stat -c %s /v/old/disk.img; head -c 6 /v/old/disk.img")
	for _, want := range []string{"file", "refused", "67108864", "marked"} {
		if !strings.Contains(out, want) {
			t.Errorf("the volumes of the old and of the new class lack %q: %s", want, out)
		}
	}
	deleted := boundVolume(t, ns, "new")

	claims := ns.Client.CoreV1().PersistentVolumeClaims(ns.Name)
	for _, name := range []string{"old", "new"} {
		if err := claims.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := claims.Get(t.Context(), "old", metav1.GetOptions{}); err != nil || left.DeletionTimestamp == nil {
		t.Errorf("a claim that a Pod uses: %v, %v; want it to stay until the Pod is gone", left, err)
	}
	deletePod(t, ns, "second")
	volumes := ns.Client.CoreV1().PersistentVolumes()
	harness.Eventually(t, harness.Medium, "one volume deleted, one released", func(ctx context.Context) error {
		list, err := volumes.List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		released := false
		for _, volume := range list.Items {
			if volume.Name == deleted.Name {
				return errors.New("the volume with policy Delete is still there")
			}
			released = released || volume.Name == retained.Name && volume.Status.Phase == corev1.VolumeReleased
		}
		if !released {
			return errors.New("the volume with policy Retain is not released")
		}
		return nil
	})

	edit := func(patch string) {
		t.Helper()
		if _, err := volumes.Patch(t.Context(), retained.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	edit(`{"spec":{"claimRef":null}}`)
	ns.Apply(t, claim{name: "again", class: class, size: "64Mi", volume: retained.Name}.manifest(t))
	ns.Apply(t, userPod{name: "third", volumes: []string{"again"}}.manifest(t))
	ns.WaitPod(t, "third", harness.Medium, harness.Ready)
	edit(`{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`) // not before it is bound, or it goes
	if out := ns.Exec(t, "third", "main", "head", "-c", "6", "/v/again/disk.img"); out != "marked" {
		t.Errorf("the retained volume holds %q", out)
	}
}

// TestAccessModes: two Pods write one ReadWriteMany device, a second Pod of a ReadWriteOncePod claim waits, and Pods of
// other nodes are told why they cannot have a volume (ST-017).
func TestAccessModes(t *testing.T) {
	ns := setUp(t)
	ns.Apply(t, claim{name: "many", size: "64Mi", block: true, access: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}}.manifest(t))
	ns.Apply(t, claim{name: "one", size: "64Mi", access: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}}.manifest(t))
	ns.Apply(t, userPod{name: "a", devices: []string{"many"}, volumes: []string{"one"}, labels: map[string]string{"app": "a"}}.manifest(t))
	first := ns.WaitPod(t, "a", harness.Medium, harness.Ready)
	ns.Apply(t, userPod{name: "b", devices: []string{"many"}}.manifest(t))
	ns.Apply(t, userPod{name: "c", volumes: []string{"one"}}.manifest(t))
	ns.Apply(t, userPod{name: "d", devices: []string{"many"}, node: map[string]string{
		corev1.LabelHostname: ns.Nodes[1-slices.Index(ns.Nodes, first.Spec.NodeName)],
	}}.manifest(t))
	notBesideA := &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
		TopologyKey: corev1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}},
	}}}}
	ns.Apply(t, userPod{name: "e", devices: []string{"many"}, affinity: notBesideA}.manifest(t))
	second := ns.WaitPod(t, "b", harness.Medium, harness.Ready)
	if second.Spec.NodeName != first.Spec.NodeName {
		t.Errorf("the second writer is on %s, the volume on %s", second.Spec.NodeName, first.Spec.NodeName)
	}
	ns.Exec(t, "a", "main", "sh", "-c", "printf from-a | dd of=/d/many bs=4096 seek=0 conv=notrunc,fsync status=none")
	ns.Exec(t, "b", "main", "sh", "-c", "printf from-b | dd of=/d/many bs=4096 seek=1 conv=notrunc,fsync status=none")
	for _, pod := range []string{"a", "b"} {
		out := ns.Exec(t, pod, "main", "sh", "-c", "dd if=/d/many bs=4096 count=2 iflag=direct status=none | tr -d '\\0'")
		if out != "from-afrom-b" {
			t.Errorf("%s reads %q", pod, out)
		}
	}
	for pod, want := range map[string]string{"c": "ReadWriteOncePod", "d": "node affinity", "e": "anti-affinity"} {
		refused := ns.WaitPod(t, pod, harness.Short, harness.Unschedulable)
		if message := harness.SchedulingMessage(refused); !strings.Contains(message, want) {
			t.Errorf("Pod %s waits because of %q; want %q in it", pod, message, want)
		}
	}
	deletePod(t, ns, "a")
	ns.WaitPod(t, "c", harness.Medium, harness.Ready)
}
