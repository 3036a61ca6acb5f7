package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/test/cluster/harness"
)

const (
	guestRAM = 1 << 30 // bytes
	rounds   = 7       // of each kind, in turn
)

// vmPod is a VM of 1 GiB and one vCPU.
const vmPod = `
apiVersion: v1
kind: Pod
metadata:
  name: %[1]s
  labels: {podvirt.dev/vm: %[1]s}
  annotations: {podvirt.dev/memory: 1Gi, podvirt.dev/accelerator: tcg, podvirt.dev/console: log}
spec:
  restartPolicy: Never
  nodeSelector: {kubernetes.io/hostname: node1}
  containers:
  - name: vm
    image: podvirt.dev/launcher
    volumeMounts: [{name: root, mountPath: /vm/disks/root}]
  volumes:
  - {name: root, image: {reference: "localhost/podvirt/guest-tiny:dev", pullPolicy: IfNotPresent}}
`

// plainPod runs a command in a Pod of the same image, node, scheduler and security context.
const plainPod = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  restartPolicy: Never
  schedulerName: podvirt
  nodeSelector: {kubernetes.io/hostname: node1}
  terminationGracePeriodSeconds: 1
  securityContext: {runAsNonRoot: true, runAsUser: 107, runAsGroup: 107, fsGroup: 107, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: vm
    image: localhost/podvirt/launcher:dev
    imagePullPolicy: IfNotPresent
    command: [/bin/sh, -c, %[2]q]
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
    volumeMounts: [{name: root, mountPath: /image}, {name: scratch, mountPath: /scratch}]
  volumes:
  - {name: root, image: {reference: "localhost/podvirt/guest-tiny:dev", pullPolicy: IfNotPresent}}
  - {name: scratch, emptyDir: {}}
`

// byHand is QEMU with the devices that the launcher gives this VM, without libvirt and without a launcher. The
// translation cache is bounded as the launcher bounds it; the network is a socket with nobody at its other end.
const byHand = `qemu-img create -q -f qcow2 -F qcow2 -b "$(ls /image/disk/*.qcow2)" /scratch/root.qcow2 &&
exec qemu-system-x86_64 -nodefaults -no-user-config -machine q35,usb=off,vmport=off -accel tcg,tb-size=128 -cpu max -m 1024 -smp 1 -display none
 -drive file=/scratch/root.qcow2,if=none,id=root,discard=unmap,cache=none,aio=native -object iothread,id=io1
 -device virtio-blk-pci,drive=root,iothread=io1,bootindex=1
 -netdev stream,id=net0,server=on,addr.type=unix,addr.path=/scratch/net -device virtio-net-pci,netdev=net0,romfile=
 -device virtio-serial-pci -chardev socket,id=agent,path=/scratch/agent,server=on,wait=off
 -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0
 -device virtio-scsi-pci -device virtio-balloon-pci,free-page-reporting=on
 -object rng-random,id=rng0,filename=/dev/urandom -device virtio-rng-pci,rng=rng0
 -device qemu-xhci -device usb-tablet -device VGA -device pvpanic-pci -vnc unix:/scratch/vnc
 -monitor none -serial stdio </dev/null`

const bootedLine = "podvirt-tiny: ready after"

// BenchmarkMemory compares the proportional set size of everything in a VM Pod, guest memory apart, with that of QEMU
// started by hand with the same devices.
func BenchmarkMemory(b *testing.B) {
	c := harness.Installed(b)
	ns := c.Namespace(b, harness.Restricted)
	for b.Loop() {
		ns.Apply(b, fmt.Sprintf(vmPod, "measured"))
		pod := booted(b, ns, "measured")
		ours := measure(b, ns, pod)
		remove(b, ns, "measured")

		ns.Apply(b, fmt.Sprintf(plainPod, "by-hand", strings.ReplaceAll(byHand, "\n", " ")))
		pod = booted(b, ns, "by-hand")
		theirs := measure(b, ns, pod)
		remove(b, ns, "by-hand")

		b.Logf("VM Pod beyond guest memory: %s", ours)
		b.Logf("QEMU by hand beyond guest memory: %s", theirs)
		b.Logf("difference: %+.1f MiB; ratio %.2f", mib(ours.total()-theirs.total()), float64(ours.total())/float64(theirs.total()))
		b.ReportMetric(mib(ours.total()), "pod-MiB")
		b.ReportMetric(mib(theirs.total()), "by-hand-MiB")
		b.ReportMetric(mib(ours.total()-theirs.total()), "difference-MiB")
	}
}

// BenchmarkStart compares the time from the creation of a VM Pod to its QEMU running with that from the creation of a
// plain Pod of the same image to its first command, on one node in one run.
func BenchmarkStart(b *testing.B) {
	c := harness.Installed(b)
	ns := c.Namespace(b, harness.Restricted)
	for b.Loop() {
		var vms, plains []time.Duration
		for range rounds {
			plains = append(plains, startPlain(b, ns))
			vms = append(vms, startVM(b, ns))
		}
		slices.Sort(vms)
		slices.Sort(plains)
		vm, plain := vms[rounds/2], plains[rounds/2]
		b.Logf("VM Pod to running QEMU: median %s of %v", vm.Round(time.Millisecond), vms)
		b.Logf("plain Pod to its first command: median %s of %v", plain.Round(time.Millisecond), plains)
		b.Logf("difference: %s; ratio %.2f", (vm - plain).Round(time.Millisecond), vm.Seconds()/plain.Seconds())
		b.ReportMetric(vm.Seconds(), "vm-s")
		b.ReportMetric(plain.Seconds(), "plain-s")
		b.ReportMetric((vm - plain).Seconds(), "difference-s")
	}
}

func startPlain(b *testing.B, ns *harness.Namespace) time.Duration {
	begin := time.Now()
	ns.Apply(b, fmt.Sprintf(plainPod, "plain", "date +began:%s.%N; exec sleep 1000"))
	defer remove(b, ns, "plain")
	ns.WaitLog(b, "plain", "vm", "began:", harness.Medium)
	_, after, _ := strings.Cut(ns.Log(b, "plain", "vm"), "began:")
	seconds, err := strconv.ParseFloat(strings.TrimSpace(after), 64)
	if err != nil {
		b.Fatal(err)
	}
	return time.Unix(0, int64(seconds*float64(time.Second))).Sub(begin)
}

func startVM(b *testing.B, ns *harness.Namespace) time.Duration {
	begin := time.Now()
	ns.Apply(b, fmt.Sprintf(vmPod, "timed"))
	defer remove(b, ns, "timed")
	const resumed = `"step":"resume"`
	ns.WaitLog(b, "timed", "vm", resumed, harness.Medium)
	for line := range strings.Lines(ns.Log(b, "timed", "vm")) {
		var entry struct{ Time time.Time }
		if !strings.Contains(line, resumed) {
			continue
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			b.Fatal(err)
		}
		return entry.Time.Sub(begin)
	}
	b.Fatal("the launcher's log does not say when the guest ran")
	return 0
}

func booted(b *testing.B, ns *harness.Namespace, name string) *corev1.Pod {
	b.Helper()
	ns.WaitLog(b, name, "vm", bootedLine, harness.Medium)
	return ns.WaitPod(b, name, harness.Short, harness.Running)
}

func remove(b *testing.B, ns *harness.Namespace, name string) {
	b.Helper()
	pods := ns.Client.CoreV1().Pods(ns.Name)
	var now int64
	if err := pods.Delete(b.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		b.Fatal(err)
	}
	harness.Eventually(b, harness.Medium, "end of "+name, func(ctx context.Context) error {
		list, err := pods.List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("still there")
		}
		return err
	})
}

// usage is bytes of proportional set size by program.
type usage map[string]int64

func (u usage) total() int64 {
	var sum int64
	for _, bytes := range u {
		sum += bytes
	}
	return sum
}

func (u usage) String() string {
	parts := []string{fmt.Sprintf("%.1f MiB", mib(u.total()))}
	for name, bytes := range u {
		parts = append(parts, fmt.Sprintf("%s %.1f", name, mib(bytes)))
	}
	slices.Sort(parts[1:])
	return strings.Join(parts, ", ")
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// measure sums up the processes of a Pod, its sandbox apart, without the mapping that is guest memory: the one of
// exactly that size that cannot be executed. (The translation cache can.)
func measure(b *testing.B, ns *harness.Namespace, pod *corev1.Pod) usage {
	b.Helper()
	out := ns.OnNode(b, pod.Spec.NodeName, "sh", "-c", `for p in /proc/[0-9]*; do
		grep -qs "`+string(pod.UID)+`" $p/cgroup || continue
		echo "program $(cat $p/comm)"; cat $p/smaps; done; true`)
	used := usage{}
	program, size, code := "", int64(0), false
	scanner := bufio.NewScanner(strings.NewReader(out))
	for scanner.Scan() {
		fields := strings.Fields(scanner.Text())
		switch {
		case len(fields) < 2:
		case fields[0] == "program":
			program = fields[1]
		case fields[0] == "Size:":
			size = kib(fields[1])
		case fields[0] == "Pss:" && program != "pause" && (size != guestRAM || code):
			used[program] += kib(fields[1])
		case strings.Contains(fields[0], "-") && len(fields[1]) == len("rwxp"):
			code = fields[1][2] == 'x'
		}
	}
	if err := scanner.Err(); err != nil {
		b.Fatal(err)
	}
	return used
}

func kib(text string) int64 {
	value, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0
	}
	return value << 10
}
