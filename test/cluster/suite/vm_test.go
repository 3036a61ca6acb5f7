package suite

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

// vm is a short VM Pod under construction: what a user would type where the admission policies are installed.
type vm struct{ corev1.Pod }

// newVM starts with an image as root disk, 192 MiB of memory, the console in the log and emulation, since the machine
// that runs these tests need not have a usable KVM.
func newVM(name, guest string) *vm {
	v := &vm{corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{api.LabelVM: name}, Annotations: map[string]string{
			api.KeyMemory: "192Mi", api.KeyAccelerator: string(api.AcceleratorTCG), api.KeyConsole: string(api.ConsoleLog),
		}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: api.ContainerName, Image: api.AliasImage}}},
	}}
	image := corev1.VolumeSource{Image: &corev1.ImageVolumeSource{
		Reference: "localhost/podvirt/" + guest + ":dev", PullPolicy: corev1.PullIfNotPresent,
	}}
	return v.mount("root", "/vm/disks/root", image)
}

func (v *vm) container() *corev1.Container { return &v.Spec.Containers[0] }

// annotate sets annotations, named without the prefix.
func (v *vm) annotate(annotations map[string]string) *vm {
	for key, value := range annotations {
		v.Annotations[api.Prefix+key] = value
	}
	return v
}

func (v *vm) mount(name, path string, source corev1.VolumeSource) *vm {
	v.drop(name)
	v.Spec.Volumes = append(v.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: source})
	v.container().VolumeMounts = append(v.container().VolumeMounts, corev1.VolumeMount{Name: name, MountPath: path})
	return v
}

// claim attaches a PersistentVolumeClaim as the disk of the same name.
func (v *vm) claim(name string, mode corev1.PersistentVolumeMode) *vm {
	source := corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: v.Name + "-" + name}}
	path := "/vm/disks/" + name
	if mode == corev1.PersistentVolumeFilesystem {
		return v.mount(name, path, source)
	}
	v.drop(name)
	v.Spec.Volumes = append(v.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: source})
	v.container().VolumeDevices = append(v.container().VolumeDevices, corev1.VolumeDevice{Name: name, DevicePath: path})
	return v
}

// drop takes a volume and its mount away.
func (v *vm) drop(name string) {
	v.Spec.Volumes = remove(v.Spec.Volumes, func(x corev1.Volume) bool { return x.Name == name })
	c := v.container()
	c.VolumeMounts = remove(c.VolumeMounts, func(x corev1.VolumeMount) bool { return x.Name == name })
	c.VolumeDevices = remove(c.VolumeDevices, func(x corev1.VolumeDevice) bool { return x.Name == name })
}

func remove[T any](list []T, gone func(T) bool) []T {
	var left []T
	for _, x := range list {
		if !gone(x) {
			left = append(left, x)
		}
	}
	return left
}

func (v *vm) seed(secret string) *vm {
	return v.mount("seed", "/vm/cloud-init", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: secret}})
}

// keys gives a user of the guest the public keys of a Secret.
func (v *vm) keys(user, secret string) *vm {
	return v.mount("keys", "/vm/ssh-keys/"+user, corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: secret}})
}

func (v *vm) httpReady(port int32) *vm {
	v.container().ReadinessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(port)}},
		PeriodSeconds: 1, FailureThreshold: 3, TimeoutSeconds: 3,
	}
	return v
}

func (v *vm) agentReady() *vm {
	v.container().ReadinessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"launcher", "probe", "agent"}}},
		PeriodSeconds: 5, FailureThreshold: 3, TimeoutSeconds: 5,
	}
	return v
}

func (v *vm) restart(policy corev1.RestartPolicy) *vm {
	v.Spec.RestartPolicy = policy
	return v
}

// grace is the patience of a stop; the launcher's is ten seconds less.
func (v *vm) grace(seconds int64) *vm {
	v.Spec.TerminationGracePeriodSeconds = &seconds
	return v
}

func (v *vm) terminal() *vm {
	v.container().Stdin, v.container().TTY = true, true
	return v.annotate(map[string]string{"console": "attach"})
}

// manifest is the Pod as YAML.
func (v *vm) manifest(t testing.TB) string { return manifest(t, &v.Pod) }

// deployment is an owner of the VM with one replica.
func (v *vm) deployment(t testing.TB, replicas int) string {
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: v.Labels, Annotations: v.Annotations}, Spec: v.Spec}
	return manifest(t, map[string]any{
		"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": v.Name, "labels": v.Labels},
		"spec": map[string]any{
			"replicas": replicas, "strategy": map[string]any{"type": "Recreate"},
			"selector": map[string]any{"matchLabels": map[string]any{api.LabelVM: v.Name}}, "template": template,
		},
	})
}

func manifest(t testing.TB, object any) string {
	t.Helper()
	text, err := yaml.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// pvc is a claim of the driver's class.
func pvc(name string, mode corev1.PersistentVolumeMode, size string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec:
  storageClassName: podvirt-local
  accessModes: [ReadWriteOncePod]
  volumeMode: %s
  resources: {requests: {storage: %s}}
`, name, mode, size)
}

// service stands in front of a VM.
func service(name string, ports ...int) string {
	var list strings.Builder
	for _, port := range ports {
		fmt.Fprintf(&list, "\n  - {name: p%d, port: %d}", port, port)
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {podvirt.dev/vm: %s}
  ports:%s
`, name, name, list.String())
}

// clientPod is an ordinary Pod that a restricted namespace admits; tests talk to guests from it.
const clientPod = `
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  securityContext: {runAsNonRoot: true, runAsUser: 65534, fsGroup: 65534, seccompProfile: {type: RuntimeDefault}}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: localhost/podvirt/tools:dev
    imagePullPolicy: IfNotPresent
    command: [sleep, infinity]
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    volumeMounts: [{name: tmp, mountPath: /tmp}]
  volumes: [{name: tmp, emptyDir: {}}]
`

// setUp returns a restricted namespace on the installed cluster with a client Pod in it.
func setUp(t *testing.T, guests ...string) *harness.Namespace {
	t.Helper()
	c := harness.Installed(t)
	for _, image := range append([]string{"launcher", "tools"}, guests...) {
		c.RequireImage(t, image)
	}
	ns := c.Namespace(t, harness.Restricted)
	ns.Apply(t, clientPod)
	ns.WaitPod(t, "client", harness.Medium, harness.Ready)
	return ns
}

// curl fetches a URL from the client Pod.
func curl(ctx context.Context, ns *harness.Namespace, args ...string) (string, error) {
	argv := append([]string{"curl", "--silent", "--show-error", "--fail", "--max-time", "5"}, args...)
	result, err := ns.TryExec(ctx, "client", "main", nil, argv...)
	if err == nil && result.Code != 0 {
		err = fmt.Errorf("curl ended with %d: %s", result.Code, result.Stderr)
	}
	return result.Stdout, err
}

// mustCurl repeats a fetch until it succeeds: rules of a Service take a moment to reach every node.
func mustCurl(t *testing.T, ns *harness.Namespace, args ...string) string {
	t.Helper()
	var body string
	harness.Eventually(t, harness.Short, "curl "+args[len(args)-1], func(ctx context.Context) error {
		var err error
		body, err = curl(ctx, ns, args...)
		return err
	})
	return body
}

// ctl runs a verb of the launcher in the VM's container.
func ctl(t *testing.T, ns *harness.Namespace, pod string, verb ...string) string {
	t.Helper()
	return ns.Exec(t, pod, api.ContainerName, append([]string{"launcher", "ctl"}, verb...)...)
}

// ended wants a VM whose container ended, and returns how.
func ended(pod *corev1.Pod) error {
	if terminated(pod) == nil {
		return errors.New("the container has not ended")
	}
	return nil
}

func terminated(pod *corev1.Pod) *corev1.ContainerStateTerminated {
	for _, status := range pod.Status.ContainerStatuses {
		if status.Name != api.ContainerName {
			continue
		}
		if status.State.Terminated != nil {
			return status.State.Terminated
		}
		return status.LastTerminationState.Terminated
	}
	return nil
}

// deletePod deletes a Pod gracefully and waits until it is gone.
func deletePod(t *testing.T, ns *harness.Namespace, name string) {
	t.Helper()
	pods := ns.Client.CoreV1().Pods(ns.Name)
	if err := pods.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, harness.Medium, "end of pod "+name, func(ctx context.Context) error {
		list, err := pods.List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
		if err == nil && len(list.Items) > 0 {
			err = errors.New("still there")
		}
		return err
	})
}

// vmProcesses returns the processes of a VM's container by program name, seen from its node; the oldest where launcher ctl
// runs beside the launcher.
func vmProcesses(t *testing.T, ns *harness.Namespace, pod *corev1.Pod) map[string]int {
	t.Helper()
	out := ns.OnNode(t, pod.Spec.NodeName, "sh", "-c",
		`for p in /proc/[0-9]*; do grep -qs "`+string(pod.UID)+`" $p/cgroup && echo "${p#/proc/} $(cat $p/comm)"; done; true`)
	found := map[string]int{}
	for line := range strings.Lines(out) {
		var pid int
		var name string
		if _, err := fmt.Sscan(line, &pid, &name); err == nil && (found[name] == 0 || pid < found[name]) {
			found[name] = pid
		}
	}
	return found
}
