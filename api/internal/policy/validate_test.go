package policy

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	celconfig "k8s.io/apiserver/pkg/apis/cel"

	"podvirt.dev/api"
	"podvirt.dev/api/podspec"
)

// vmPod is a complete VM Pod with a root disk, a data disk, a CD-ROM and a seed.
func vmPod(annotations map[string]string) *corev1.Pod {
	grace := int64(180)
	image := func(name string) corev1.Volume {
		return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "x"}}}
	}
	size := resource.MustParse("1Gi")
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "db1", Namespace: "shop", Labels: map[string]string{api.LabelVM: "db1"}, Annotations: annotations},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: "vm", Image: "x",
				Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{
					corev1.ResourceCPU: resource.MustParse("3500m"), corev1.ResourceMemory: resource.MustParse("5Gi"),
				}},
				VolumeDevices: []corev1.VolumeDevice{{Name: "data", DevicePath: "/vm/disks/data"}},
				VolumeMounts: []corev1.VolumeMount{
					{Name: "root", MountPath: "/vm/disks/root"}, {Name: "cd", MountPath: "/vm/cdroms/cd"}, {Name: "seed", MountPath: "/vm/cloud-init"},
					{Name: "scratch", MountPath: "/vm/scratch"},
				},
			}},
			Volumes: []corev1.Volume{
				{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}},
				image("root"), image("cd"),
				{Name: "seed", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "seed"}}},
				{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &size}}},
			},
		},
	}
}

const component = "system:serviceaccount:podvirt-system:podvirt-scheduler"

// compare holds the policy against the parser for one Pod.
func compare(t *testing.T, policy *errorsOf, pod *corev1.Pod) {
	t.Helper()
	_, errs := podspec.Resolve(pod, api.Config{})
	var want []string
	for _, err := range errs {
		want = append(want, withoutNearest(err.Text))
	}
	got, _ := policy.lines(t, request{object: pod, user: component})
	for i := range got {
		got[i] = withoutNearest(got[i])
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("annotations %q\nparser and policy differ (-parser,+policy):\n%s", pod.Annotations, diff)
	}
}

// withoutNearest takes off what the policies may leave out, and values that hold control characters, which the two
// show in different ways.
func withoutNearest(line string) string {
	line = regexp.MustCompile(`; nearest: \S+$`).ReplaceAllString(line, "")
	line = strings.ReplaceAll(line, `\u{1b}`, "?")
	return regexp.MustCompile(`: ".*": control characters`).ReplaceAllString(line, ": …: control characters")
}

// TestPolicyAgreesWithParser feeds every row and every option of the table with good, bad and border values, some rows
// at a time: what is said of one does not depend on another.
func TestPolicyAgreesWithParser(t *testing.T) {
	policy := newErrorsOf(t, validateVM())
	for rows := range slices.Chunk(api.Annotations(), 16) {
		samples, most := map[string][]string{}, 0
		for _, a := range rows {
			key := api.Prefix + strings.Replace(a.Key, "NAME", "root", 1)
			if a.Device() == "nic" {
				key = api.KeyNIC + "default"
			}
			samples[key] = samplesOf(a)
			most = max(most, len(samples[key]))
		}
		t.Run(rows[0].Key, func(t *testing.T) {
			for i := range most {
				annotations := map[string]string{api.KeyMemory: "1Gi"}
				for key, values := range samples {
					if i < len(values) {
						annotations[key] = values[i]
					}
				}
				compare(t, policy, vmPod(annotations))
			}
		})
	}
}

func samplesOf(a api.Annotation) []string {
	switch a.Kind {
	case api.Set:
		return []string{"aes", "aes=require,avx", "aes=need", "aes,aes", "avx5", "", "aes,,avx", " aes , avx=forbid ", "aes=", `"aes"`, "avx5=need",
			"aes=forbid,aes=need"}
	case api.Plain:
		return samples(a.Value)
	}
	out := []string{"", "x", "x=y", " ", ",", `a="b`, "bus", `serial="a, b"`, "=", "a=b=c"}
	if a.HasMain() {
		out = append(out, samples(a.Value)...)
	}
	for _, o := range a.Options {
		out = append(out, o.Name, o.Name+"=", o.Name+"=a b", o.Name+`="`+`a b"`, o.Name+"x=1")
		for _, s := range samples(o.Value) {
			out = append(out, o.Name+"="+s)
		}
	}
	if len(a.Options) > 1 {
		first, last := a.Options[0].Name, a.Options[len(a.Options)-1].Name
		out = append(out, first+"=1,"+first+"=2", first+"=x,"+last+"=x,nope=1", first+","+last)
	}
	// A few at once, to see several lines in one message.
	var joined []string
	for i := 0; i+4 < len(out); i += 5 {
		joined = append(joined, strings.Join(out[i:i+5], ","))
	}
	return append(joined, out[:min(len(out), 40)]...)
}

func samples(v api.Value) []string {
	out := append([]string{"", "x", "true", "1", "a\x1b[0mb", `q"q`, `back\slash`, strings.Repeat("y", 300)}, v.Words[:min(len(v.Words), 6)]...)
	if len(v.Words) > 0 {
		out = append(out, v.Words[0]+"x", strings.ToUpper(v.Words[0]), strings.Join(v.Words[:min(3, len(v.Words))], "+"))
	}
	switch v.Form {
	case api.FormInt:
		out = append(out, strconv.FormatInt(v.Min-1, 10), strconv.FormatInt(v.Min, 10), strconv.FormatInt(v.Max, 10), strconv.FormatInt(v.Max+1, 10), "007",
			"-1", "1.5")
	case api.FormQuantity:
		out = append(out, "8Mi", "16Mi", "64M", "1.5Gi", "4Gi", "0", "-1Gi", "1e3", "4gi", "7999", "8k", "2Ei", "999999999999999E", "100m")
	case api.FormDuration:
		out = append(out, "0s", "1ns", "1s", "90s", "1h30m", "99999h", "100000h", "-5s", "1.5s", "soon")
	case api.FormText:
		out = append(out, strings.Repeat("z", int(v.Max)), strings.Repeat("z", int(v.Max)+1), "ä b")
	case api.FormPattern:
		out = append(out, "02:00:00:00:00:01", "03:00:00:00:00:01", "02:00:00:00:01", "10.0.2.0/24", "10.0.2.0/31", "10.0.2.0/40", "fd00::/64",
			"fd00::/127",
			"22", "22+80/udp", "0", "49150-49153", "49153/udp", "5000-4000", "70000", "a.b", "a/b", "/a/b", "512", "512/4096", "4096/512", "pc-q35-10.0",
			"0b7f5f3e-7d0c-4b3e-9a43-6a5a2f1f9b11", "[1]", "{}", "107", "0:0", "107:107", "0,1", "0-3,^1", "1280x800", "0x1f", "1.1.1.1+8.8.8.8", "Haswell-v4", "EPYC")
	}
	return out
}

// TestPolicyAgreesOnRules feeds combinations: rules between options, annotations and Pod fields.
func TestPolicyAgreesOnRules(t *testing.T) {
	v := newErrorsOf(t, validateVM())
	for _, annotations := range []map[string]string{
		{}, {api.KeyMemory: "6Gi"}, {api.KeyMemory: "5Gi"}, {api.KeyMemory: "1Gi", api.KeyVM: "db2"}, {api.KeyMemory: "bad"},
		{api.KeyCPUTopology: "cores=0,threads=0"}, {api.KeyCPUTopology: "sockets=4096,cores=2"}, {api.KeyCPUTopology: "cores=2", api.KeyCPUMax: "1"},
		{api.KeyFirmware: "bios", api.KeyArch: "arm64"}, {api.KeyFirmware: "bios,secure-boot"}, {api.KeyArch: "arm64", api.KeyWatchdog: "itco"},
		{api.KeyWatchdog: "diag288", api.KeyArch: "amd64"}, {api.KeyWatchdog: "itco", api.KeyMachine: "pc"}, {api.KeyWatchdog: "itco",
			api.KeyMachine: "pc-q35-10.0"},
		{api.KeyWatchdog: "itco"}, {api.KeyConsole: "attach"}, {api.KeyShutdown: "agent,timeout=180s"}, {api.KeyShutdown: "agent+acpi,timeout=3m"},
		{api.KeyShutdown: "agent+agent"}, {api.KeyShutdown: "timeout=179s,then=wait"}, {api.KeyCloudInit: "nocloud"}, {api.KeyCloudInit: "bus=sata"},
		{api.KeyDisk + "root": "boot=1", api.KeyDisk + "data": "boot=1", api.KeyNIC + "default": "boot=1"}, {api.KeyDisk + "root": "boot=1", api.KeyDisk +
			"data": "boot=01"},
		{api.KeyDisk + "dta": ""}, {api.KeyDisk + "tmp": "empty=2Gi", api.KeyDisk + "dta": "boot=2"}, {api.KeyDisk + "tmp": "empty=512Mi"}, {api.KeyDisk +
			"drive": "type=cdrom"},
		{api.KeyDisk + "root": "empty=1Gi"}, {api.KeyDisk + "cd": "bus=virtio"}, {api.KeyDisk + "cd": "bus=nvme"}, {api.KeyDisk +
			"cd": "type=cdrom,bus=nvme"},
		{api.KeyDisk + "root": "queues=8"}, {api.KeyDisk + "root": "queues=4"}, {api.KeyDisk + "root": "serial=123456789012345678901"},
		{api.KeyDisk + "root": "bus=sata,serial=123456789012345678901"}, {api.KeyDisk + "cd": "serial=123456789012345678901"}, {api.KeyDisk +
			"root": "cache=unsafe"},
		{api.KeyDisk + "data": "cache=unsafe"}, {api.KeyDisk + "cd": "cache=unsafe"}, {api.KeyDisk + "data": "cache=writeback,io=native"},
		{api.KeyDisk + "data": "shareable,cache=writeback"}, {api.KeyDisk + "data": "shareable,format=qcow2"}, {api.KeyDisk +
			"data": "tray=open,type=disk"},
		{api.KeyDisk + "d2": "empty=1Gi,type=cdrom"}, {api.KeyDisk + "Root": "", api.KeyDisk + "a_b": "", api.KeyNIC + "net1": "boot=1", api.KeyNIC +
			"very-long-name-of-nic": ""},
		{api.KeyNIC + "default": "model=e1000e,queues=4"}, {api.KeyNIC + "default": "tx-ring=512"}, {api.KeyNIC + "default": "ports=22,binding=none"},
		{api.KeyNIC + "default": "ports=" + strings.Repeat("1+", 130) + "1"}, {api.KeyNIC + "default": "v4-cidr=10.0.0.0/31,v6-cidr=fd00::/127"},
		{api.KeyNIC + "default": "mac=02-AA-00-00-00-01"}, {api.KeyNIC + "default": "mac=01:AA:00:00:00:01,acpi-index=1"}, {api.KeyNIC +
			"default": "queues=64"},
		{api.KeyVM + "x": "1", api.Prefix + "nope": "2", api.Prefix + "foo.bar": "3"}, {api.KeyMemoryOverhead: "100M"},
		{api.KeyDevice + "gpu": "resource=nvidia.com/T4,rom=off", api.KeyDevice + "x": "index=1"}, {api.KeyDevice + "gpu": "resource=claim/a/b"},
		{api.KeyDevice + "gpu": "resource=podvirt.dev/tun,boot=1", api.KeyDisk + "root": "boot=1"}, {api.KeyDevice + "gpu": "resource=T4"},
		{api.KeyAccelerator: "tcg"}, {api.KeyVideo: "none"}, {api.KeyKernel: "path=vmlinuz"},
		{api.KeyKernel: "path=vmlinuz", api.KeyKernelArgs: "quiet", api.KeyVideo: "bochs"}, {api.KeyKernel: "initrd=i"}, {api.KeyKernelArgs: "quiet"},
		{api.KeyKernel: "path=/abs", api.KeyKernelArgs: "quiet"}, {api.KeyKernel: "path=v", api.KeyVideo: "vram=32Mi"},
		{"k8s.v1.cni.cncf.io/networks": "a,b@c"}, {"k8s.v1.cni.cncf.io/networks": `[{"name":"a"},{"name" : "b"}]`}, {"k8s.v1.cni.cncf.io/networks": " "},
		{api.KeyDisk + "root": "iops=10,iops-read=5,bps-max=1Mi,iops-max-length=1s"}, {api.KeyMemory: "4850Mi", api.KeyVideo: "vga,vram=64Mi"},
		{api.KeyHugepages: "2Mi"}, {api.KeyHugepages: "1Gi", api.KeyMemory: "500Mi"}, {api.KeyHugepages: "64Ki", api.KeyMemory: "1Gi"},
		{api.KeyHugepages: "2Mi", api.KeyMemory: "1Gi", api.KeyNUMA: "3"}, {api.KeyNUMA: "single"}, {api.KeyNUMA: "2", api.KeyCPUTopology: "cores=5"},
		{api.KeyCPUDedicated: "true"}, {api.KeyEmulatorThread: "isolated"}, {api.KeyCPUDedicated: "true", api.KeyEmulatorThread: "isolated"},
		{api.KeyCPUDedicated: "true", api.KeyEmulatorThread: "isolated-even", api.KeyCPUTopology: "cores=4"},
		{api.KeyCPUDedicated: "true", api.KeyEmulatorThread: "isolated-even", api.KeyDisk + "root": "queues=8"},
		{api.KeyFirmware: "uefi,secure-boot", api.KeyMachine: "pc-i440fx-10.0", api.KeyFeatures: "smm=false"}, {api.KeyFirmware: "uefi,secure-boot"},
		{api.KeyFirmware: "uefi,secure-boot", api.KeyKernel: "path=v"}, {api.KeyFirmware: "uefi,secure-boot", api.KeyKernel: "path=v,shim=s"},
		{api.KeyFirmware: "uefi", api.KeyKernel: "path=v,shim=s"}, {api.KeyFirmware: "uefi,secure-boot", api.KeyFeatures: "smm", api.KeyMachine: "pc"},
		{api.KeyTPM: "1.2,model=crb"}, {api.KeyTPM: "2.0,persistent=required"}, {api.KeyTPM: "off,persistent=required"}, {api.KeyTPM: "1.2"},
		{api.KeyHostname: strings.Repeat("x", 5000)}, {api.KeyMemory: "1Gi", "example.org/x": "\x00"},
	} {
		for name, change := range podChanges() {
			pod := vmPod(annotations)
			change(pod)
			t.Run(name, func(t *testing.T) { compare(t, v, pod) })
		}
	}
}

// podChanges are variants of the Pod that every set of annotations is tried with.
func podChanges() map[string]func(*corev1.Pod) {
	vm := func(pod *corev1.Pod) *corev1.Container { return &pod.Spec.Containers[0] }
	return map[string]func(*corev1.Pod){
		"complete":    func(*corev1.Pod) {},
		"no limits":   func(pod *corev1.Pod) { vm(pod).Resources = corev1.ResourceRequirements{} },
		"small limit": func(pod *corev1.Pod) { vm(pod).Resources.Limits[corev1.ResourceMemory] = resource.MustParse("130Mi") },
		"odd limit": func(pod *corev1.Pod) {
			vm(pod).Resources.Limits[corev1.ResourceMemory] = resource.MustParse("1000000001")
		},
		"no grace":     func(pod *corev1.Pod) { pod.Spec.TerminationGracePeriodSeconds = nil },
		"terminal":     func(pod *corev1.Pod) { vm(pod).Stdin, vm(pod).TTY = true, true },
		"keys alone":   func(pod *corev1.Pod) { vm(pod).VolumeMounts[2].MountPath = "/vm/ssh-keys/ops" },
		"no seed":      func(pod *corev1.Pod) { vm(pod).VolumeMounts = slices.Delete(vm(pod).VolumeMounts, 2, 3) },
		"no container": func(pod *corev1.Pod) { vm(pod).Name = "other" },
		"host network": func(pod *corev1.Pod) { pod.Spec.HostNetwork, pod.Spec.HostPID = true, true },
		"arch":         func(pod *corev1.Pod) { pod.Spec.NodeSelector = map[string]string{"kubernetes.io/arch": "amd64"} },
		"paths": func(pod *corev1.Pod) {
			vm(pod).VolumeMounts = append(vm(pod).VolumeMounts,
				corev1.VolumeMount{Name: "a", MountPath: "/vm/disk/root"}, corev1.VolumeMount{Name: "a", MountPath: "/vm/disks/Root"},
				corev1.VolumeMount{Name: "a", MountPath: "/vm/shares/x/"}, corev1.VolumeMount{Name: "a", MountPath: "/vm/disks/data"},
				corev1.VolumeMount{Name: "data", MountPath: "/vm/disks/again"}, corev1.VolumeMount{Name: "a", MountPath: "/vm/disks"},
				corev1.VolumeMount{Name: "a", MountPath: "/vm/cdroms/root"}, corev1.VolumeMount{Name: "s", MountPath: "/vm/state"},
				corev1.VolumeMount{Name: "a", MountPath: "/etc/x"})
		},
		"sidecar": func(pod *corev1.Pod) {
			pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "s", Image: api.AliasImage,
				Ports: []corev1.ContainerPort{{ContainerPort: 49153}, {ContainerPort: 80}}})
		},
		"other huge pages": func(pod *corev1.Pod) {
			vm(pod).Resources.Limits["hugepages-2Mi"], vm(pod).Resources.Limits["hugepages-1Gi"] = resource.MustParse("3Mi"), resource.MustParse("1Gi")
			pod.Spec.SecurityContext = &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
		},
		"whole CPUs": func(pod *corev1.Pod) {
			vm(pod).Resources.Limits[corev1.ResourceCPU] = resource.MustParse("5")
			vm(pod).Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("5120Mi")}
			pod.Spec.InitContainers = []corev1.Container{{Name: "first"}}
		},
		"other CPUs": func(pod *corev1.Pod) {
			vm(pod).Resources.Limits[corev1.ResourceCPU] = resource.MustParse("4")
			vm(pod).Resources.Requests = corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("1100m"), corev1.ResourceMemory: resource.MustParse("1Gi"),
			}
			pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "s", Image: "x"})
		},
		"huge pages": func(pod *corev1.Pod) { vm(pod).Resources.Limits["hugepages-2Mi"] = resource.MustParse("1Gi") },
	}
}

// TestPolicyAgreesOnRandomPods mixes rows at random, several errors at once.
func TestPolicyAgreesOnRandomPods(t *testing.T) {
	v := newErrorsOf(t, validateVM())
	rows := api.Annotations()
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same corpus every time
	for range 150 {
		annotations := map[string]string{}
		for range 1 + random.IntN(8) {
			a := rows[random.IntN(len(rows))]
			values := samplesOf(a)
			key := api.Prefix + strings.Replace(a.Key, "NAME", []string{"root", "data", "default", "x"}[random.IntN(4)], 1)
			if value := values[random.IntN(len(values))]; len(value) < 200 {
				annotations[key] = value
			}
		}
		compare(t, v, vmPod(annotations))
	}
}

// TestMessage: as many whole lines as fit, then how many were left out.
func TestMessage(t *testing.T) {
	v := newValidator(t, validateVM())
	annotations := map[string]string{}
	for i := range 60 {
		annotations[fmt.Sprintf("%sno-such-key-with-a-long-name-%02d", api.Prefix, i)] = "x"
	}
	got := v.denied(t, request{object: vmPod(annotations)}, celconfig.RuntimeCELCostBudget)
	if len(got) > 4200 || !strings.HasPrefix(got, "podvirt.dev/no-such-key-with-a-long-name-00: unknown annotation | ") {
		t.Errorf("%d bytes: %.200q", len(got), got)
	}
	several := v.denied(t, request{object: vmPod(map[string]string{api.KeyFirmware: "efi", api.Prefix + "cpu-toplogy": "cores=2"})},
		celconfig.RuntimeCELCostBudget)
	want := `podvirt.dev/cpu-toplogy: unknown annotation | podvirt.dev/firmware: "efi": not one of bios, uefi, none`
	if several != want {
		t.Errorf("got  %s\nwant %s", several, want)
	}
}

// TestCost: the largest legal Pod stays below a quarter of the API server's budget (VM-005).
func TestCost(t *testing.T) {
	v := newValidator(t, validateVM())
	pod := vmPod(map[string]string{
		api.KeyVM: "db1", api.KeyMemory: "1Gi", api.KeyCPUTopology: "sockets=1,cores=2,threads=1", api.KeyFirmware: "uefi", api.KeyMachine: "pc-q35-10.0",
		api.KeyConsole: "log", api.KeyWatchdog: "i6300esb,action=reset", api.KeyShutdown: "agent+acpi,timeout=170s", api.KeyNIC +
			"default": "binding=masquerade,model=virtio",
		api.KeyCPUFeatures: "aes,avx,avx2,pcid=optional,vmx=forbid",
	})
	pod.Spec.Containers[0].Resources.Limits[corev1.ResourceMemory] = resource.MustParse("8Gi")
	for i := range 32 {
		name := fmt.Sprintf("disk-%02d", i)
		pod.Annotations[api.KeyDisk+name] = fmt.Sprintf("bus=scsi,boot=%d,cache=none,io=native,discard=unmap,serial=SERIAL%02d", i+1, i)
		pod.Spec.Containers[0].VolumeDevices = append(pod.Spec.Containers[0].VolumeDevices, corev1.VolumeDevice{Name: name, DevicePath: "/vm/disks/" +
			name})
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
		}})
	}
	if got := v.denied(t, request{object: pod}, celconfig.RuntimeCELCostBudget/4); got != "" {
		t.Errorf("denied: %s", got)
	}
	_, cost := newErrorsOf(t, validateVM()).lines(t, request{object: pod})
	t.Logf("cost of 32 disks: %d of %d", cost, int64(celconfig.RuntimeCELCostBudget))
}

func BenchmarkValidate(b *testing.B) {
	v := newValidator(b, validateVM())
	pod := vmPod(map[string]string{api.KeyVM: "db1", api.KeyMemory: "1Gi", api.KeyDisk + "root": "boot=1", api.KeyConsole: "log"})
	for b.Loop() {
		if got := v.denied(b, request{object: pod}, celconfig.RuntimeCELCostBudget); got != "" {
			b.Fatal(got)
		}
	}
}
