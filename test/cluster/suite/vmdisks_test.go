package suite

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

// contentDisk asks for one raw image in a Filesystem volume.
func contentDisk() map[string]string { return map[string]string{api.Prefix + "content": "disk"} }

// use attaches a claim of any name as a disk.
func (v *vm) use(disk, claim string, block bool) *vm {
	source := corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}
	if !block {
		return v.mount(disk, "/vm/disks/"+disk, source)
	}
	v.drop(disk)
	v.Spec.Volumes = append(v.Spec.Volumes, corev1.Volume{Name: disk, VolumeSource: source})
	v.container().VolumeDevices = append(v.container().VolumeDevices, corev1.VolumeDevice{Name: disk, DevicePath: "/vm/disks/" + disk})
	return v
}

// rooted is a VM whose root disk is a claim.
func rooted(name, claim string, block bool) *vm {
	return newVM(name, "guest-tiny").use("root", claim, block)
}

// fill writes the tiny guest to claims with an ordinary Pod: to disk.img of volumes, and to devices.
func fill(t *testing.T, ns *harness.Namespace, volumes, devices []string) {
	t.Helper()
	var script []string
	for _, name := range volumes {
		script = append(script, "qemu-img convert -n -O raw /source/disk/* /v/"+name+"/disk.img")
	}
	for _, name := range devices {
		script = append(script, "qemu-img convert -n -O raw /source/disk/* /d/"+name)
	}
	ns.Apply(t, userPod{
		name: "fill", volumes: volumes, devices: devices, image: "launcher", imageFrom: "guest-tiny",
		command: []string{"/bin/sh", "-c", strings.Join(script, " && ")},
	}.manifest(t))
	ns.WaitPod(t, "fill", 2*harness.Medium, harness.Phase(corev1.PodSucceeded))
	deletePod(t, ns, "fill")
}

// checkSizes wants claims, named like the disks of the running VM, to have in the guest exactly the size that is asked
// for and that Kubernetes shows.
func checkSizes(t *testing.T, ns *harness.Namespace, pod string, sizes map[string]int64) {
	t.Helper()
	term := ns.Shell(t, pod, api.ContainerName, "launcher", "ctl", "console")
	logIn(t, term)
	for name, want := range sizes {
		found, err := ns.Client.CoreV1().PersistentVolumeClaims(ns.Name).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if capacity := found.Status.Capacity[corev1.ResourceStorage]; capacity.Value() != want {
			t.Errorf("claim %s: capacity %s; want %d", name, &capacity, want)
		}
		term.Send(t, "grep -lx "+name+" /sys/block/vd*/serial | while read f; do echo "+name+"=$(cat ${f%serial}size).; done\n")
		sectors := term.Expect(t, harness.Medium, name+`=([0-9]+)\.`)[1]
		if sectors != strconv.FormatInt(want/512, 10) {
			t.Errorf("claim %s: the guest sees %s sectors; want %d", name, sectors, want/512)
		}
	}
}

// TestOneDiskManyReaders: five VMs boot from one claim that they have read-only, each with an overlay of its own (ST-017).
func TestOneDiskManyReaders(t *testing.T) {
	long(t, "test-storage")
	ns := setUp(t, "guest-tiny")
	ns.Apply(t, claim{
		name: "golden", size: "128Mi", access: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadOnlyMany},
		annotations: contentDisk(),
	}.manifest(t))
	fill(t, ns, []string{"golden"}, nil)
	const readers = 5
	for i := range readers {
		v := rooted(fmt.Sprint("reader", i), "golden", false).annotate(map[string]string{"disk.root": "overlay=true"})
		v.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly = true
		ns.Apply(t, v.manifest(t))
	}
	for i := range readers {
		ns.WaitLog(t, fmt.Sprint("reader", i), api.ContainerName, "podvirt-tiny: ready after", harness.Long)
	}
}

// TestOneWriter: whatever happens to the driver in between, nobody ever writes a disk that a running VM has. The driver
// refuses a second Pod where the claim is for one; where several may have the volume, QEMU's locks hold
// the second VM back until it gives up, and no byte changes (ST-018, VM-083).
func TestOneWriter(t *testing.T) {
	long(t, "test-storage")
	ns := setUp(t, "guest-tiny")
	many := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
	ns.Apply(t, claim{name: "single", size: "64Mi", annotations: contentDisk()}.manifest(t))
	ns.Apply(t, claim{name: "file", size: "64Mi", annotations: contentDisk(), access: many}.manifest(t))
	ns.Apply(t, claim{name: "device", size: "64Mi", block: true, access: many}.manifest(t))
	ns.Apply(t, userPod{name: "reader", volumes: []string{"file"}, devices: []string{"device"}}.manifest(t))
	ns.WaitPod(t, "reader", harness.Medium, harness.Ready)
	const each = "for f in /v/file/disk.img /d/device; do "
	ns.Exec(t, "reader", "main", "sh", "-ec", each+"head -c 64M /dev/urandom | dd of=$f bs=1M conv=notrunc,fsync status=none; done")
	checksum := func() string {
		t.Helper()
		return ns.Exec(t, "reader", "main", "sh", "-ec", each+"dd if=$f bs=1M iflag=direct status=none | sha256sum; done")
	}
	// The guest makes a file system on its first disk only.
	ns.Apply(t, newVM("first", "guest-tiny").use("a-single", "single", false).use("b-file", "file", false).use("c-device", "device", true).
		httpReady(8080).manifest(t))
	ns.WaitPod(t, "first", 2*harness.Medium, harness.Ready)
	before := checksum()
	if killed := killEverywhere(t, ns, "csi-hostpath"); killed == 0 {
		t.Error("no driver runs")
	}

	ns.Apply(t, newVM("second", "guest-tiny").use("data", "single", false).httpReady(8080).manifest(t))
	waitEvent(t, ns, "second", "VolumeInUse: single is written by Pod "+ns.Name+"/first")
	third := manifest(t, completed(t, ns, newVM("third", "guest-tiny").use("data", "single", false).httpReady(8080)))
	t.Run("under the default scheduler", func(t *testing.T) { lockedOut(t, ns) })
	if after := checksum(); after != before {
		t.Errorf("the disks changed:\n%s%s", before, after)
	}
	deletePod(t, ns, "second")
	deletePod(t, ns, "first")
	t.Run("after a Pod that is no VM", func(t *testing.T) {
		ns.Apply(t, userPod{name: "tool", volumes: []string{"single"}}.manifest(t))
		ns.WaitPod(t, "tool", harness.Long, harness.Ready)
		ns.Apply(t, third)
		waitEvent(t, ns, "third", "VolumeInUse: single is written by Pod "+ns.Name+"/tool")
		deletePod(t, ns, "tool")
		ns.WaitPod(t, "third", harness.Long, harness.Ready) // the kubelet tries again within two minutes
		ns.WaitLog(t, "third", api.ContainerName, "podvirt-tiny: data on", harness.Medium)
	})
}

// lockedOut starts VMs on volumes that the running one has and several may have.
func lockedOut(t *testing.T, ns *harness.Namespace) {
	late := map[string]*corev1.Pod{}
	for _, name := range []string{"file", "device"} {
		v := newVM("by-"+name, "guest-tiny").use("data", name, name == "device").restart(corev1.RestartPolicyNever)
		late[v.Name] = completed(t, ns, v)
		late[v.Name].Spec.SchedulerName = corev1.DefaultSchedulerName
	}
	ns.WithoutPolicies(t) // which name our scheduler
	pods := ns.Client.CoreV1().Pods(ns.Name)
	for _, pod := range late {
		harness.Eventually(t, harness.Medium, "the policies are out of force", func(ctx context.Context) error {
			tried, err := pods.Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			if err == nil && tried.Spec.SchedulerName != corev1.DefaultSchedulerName {
				err = fmt.Errorf("the scheduler would be %s", tried.Spec.SchedulerName)
			}
			return err
		})
		ns.Apply(t, manifest(t, pod))
	}
	for name := range late {
		pod := ns.WaitPod(t, name, harness.Long, ended)
		if pod.Spec.SchedulerName != corev1.DefaultSchedulerName {
			t.Errorf("%s was placed by %s", name, pod.Spec.SchedulerName)
		}
		end := terminated(pod)
		for _, want := range []string{"VolumeProblem: ", "data", "locked by another QEMU"} {
			if end.ExitCode != 12 || !strings.Contains(end.Message, want) {
				t.Errorf("%s ended with %d and %q; want 12 and %q", name, end.ExitCode, end.Message, want)
			}
		}
		if waited := end.FinishedAt.Sub(end.StartedAt.Time).Seconds(); waited < 55 {
			t.Errorf("%s gave up after %.0f s; want 60", name, waited)
		}
	}
}

// TestHostilePod mounts a disk into a Pod whose user is root: it can neither add files nor take more of the pool than the
// disk's size and one percent of the pool (ST-016).
func TestHostilePod(t *testing.T) {
	long(t, "test-storage")
	c := harness.Installed(t)
	c.RequireImage(t, "tools")
	ns := c.Namespace(t, harness.Privileged)
	const size, poolSize = 256 << 20, 64 << 30 // of the claim, and of the local cluster's pools
	ns.Apply(t, claim{name: "disk", size: "256Mi", annotations: contentDisk()}.manifest(t))
	ns.Apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: hostile}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: localhost/podvirt/tools:dev
    imagePullPolicy: IfNotPresent
    command: [sleep, infinity]
    securityContext: {runAsUser: 0, runAsNonRoot: false}
    volumeMounts: [{name: disk, mountPath: /v}]
  volumes: [{name: disk, persistentVolumeClaim: {claimName: disk}}]
`)
	pod := ns.WaitPod(t, "hostile", harness.Medium, harness.Ready)
	out := ns.Exec(t, "hostile", "main", "sh", "-c", `id -u; cd /v
		touch file 2>/dev/null && echo added; mkdir dir 2>/dev/null && echo added; rm -f disk.img 2>/dev/null; ls
		truncate -s 20G disk.img 2>/dev/null; head -c 2G /dev/zero | tr '\0' x | dd of=disk.img bs=1M conv=notrunc 2>/dev/null; sync; echo written`)
	if out != "0\ndisk.img\nwritten\n" {
		t.Errorf("root in the Pod: %q; want disk.img to be all there is", out)
	}
	id := strings.SplitN(boundVolume(t, ns, "disk").Spec.CSI.VolumeHandle, "/", 2)[1]
	used := ns.OnNode(t, pod.Spec.NodeName, "sh", "-c", "du -s -B1 /var/lib/podvirt/pools/*/volumes/"+id+" | cut -f 1")
	taken, err := strconv.ParseInt(strings.TrimSpace(used), 10, 64)
	if err != nil || taken < size || taken > size+poolSize/100 {
		t.Errorf("the volume takes %s bytes of the pool (%v); want %d to %d", used, err, size, size+poolSize/100)
	}
}

// bootFromEach fills a claim of each kind of pool with a guest and boots from it: a file, a file in another file system
// and a device, which is attached with direct I/O.
func bootFromEach(t *testing.T, ns *harness.Namespace, node string) {
	ns.Apply(t, claim{name: "on-xfs", class: "t-both", size: "128Mi", annotations: contentDisk()}.manifest(t))
	ns.Apply(t, claim{name: "on-ext4", class: "t-ext4", size: "128Mi", annotations: contentDisk()}.manifest(t))
	ns.Apply(t, claim{name: "on-btrfs", class: "t-btrfs", size: "128Mi", block: true}.manifest(t))
	fill(t, ns, []string{"on-xfs", "on-ext4"}, []string{"on-btrfs"})
	names := []string{"on-xfs", "on-ext4", "on-btrfs"}
	for _, name := range names {
		ns.Apply(t, rooted(name, name, name == "on-btrfs").manifest(t))
	}
	for _, name := range names {
		ns.WaitLog(t, name, api.ContainerName, "podvirt-tiny: ready after", harness.Long)
	}
	out := ns.OnNode(t, node, "sh", "-c",
		"for d in /sys/block/loop*/loop; do case $(cat $d/backing_file) in "+poolsRoot+"t-btrfs/*) cat $d/dio;; esac; done")
	if pool := poolsOf(t, ns, node, "t-btrfs")["t-btrfs"]; strings.TrimSpace(out) != "1" || !pool.DirectIO {
		t.Errorf("direct I/O of the device under the running VM: %q; the pool is %+v", out, pool)
	}
	for _, name := range names {
		deletePod(t, ns, name)
	}
}
