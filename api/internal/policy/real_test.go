package policy

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"podvirt.dev/api"
	"podvirt.dev/internal/apitest"
)

// inForce is how long a new policy may take until the API server applies it.
const inForce = 30 * time.Second

// TestRealServer installs all policies on a real API server, and nothing else: short Pods are completed, in a namespace
// that enforces "restricted"; wrong ones are refused at apply and with --dry-run=server, Pods and templates alike;
// Pods that are no VMs are untouched; podvirt-config is judged (VM-003, VM-004, VM-005, VM-010).
func TestRealServer(t *testing.T) {
	server := apitest.Start(t)
	client := server.Client
	server.Make(t, api.SystemNamespace, "default")
	makeNamespace(t, client)
	server.Make(t, "shop", "default")
	install(t, client)
	awaitJudge(t, client)
	config := settings(map[string]string{"launcher.image": "registry.example/podvirt/launcher:v1.0.0", "emulation": "allow"})
	if _, err := client.CoreV1().ConfigMaps(api.SystemNamespace).Create(t.Context(), config, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitPolicies(t, client)

	for name, run := range map[string]func(*testing.T, kubernetes.Interface){
		"short": realShort, "short twice": realShortTwice, "complete": realComplete, "wrong": realWrong,
		"no VM": realOther, "configuration": realConfig, "emulation": realEmulated,
	} {
		t.Run(name, func(t *testing.T) { run(t, client) })
	}
	t.Run("warnings", func(t *testing.T) { realWarnings(t, server) })
}

// heard keeps the warnings of one request.
type heard struct{ text string }

func (h *heard) HandleWarningHeader(_ int, _ string, text string) { h.text += text + "\n" }

// realWarnings: what is legal and unwise is stored, and told to whoever applies it: a VM, the owner of one, a Service in
// front of one (NW-018, NW-053, VM-056, VM-175).
func realWarnings(t *testing.T, server *apitest.Server) {
	t.Helper()
	pod := readPod(t, "testdata/complete.yaml")
	pod.Name, pod.Labels[api.LabelVM], pod.Annotations[api.KeyVM] = "web", "web", "web"
	pod.Annotations[api.KeyNIC+"default"] = "ports=22+80"
	vm := &pod.Spec.Containers[0]
	vm.LivenessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}},
		PeriodSeconds: 2, TimeoutSeconds: 3,
	}
	if _, err := server.Client.CoreV1().Pods("shop").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels, Annotations: pod.Annotations}, Spec: pod.Spec}
	const closedPort = ": not among ports=22+80 of podvirt.dev/nic.default: it does not reach the guest"
	probes := "spec.containers[vm].livenessProbe: periodSeconds 2 is not above timeoutSeconds 3 | spec.containers[vm].livenessProbe: port 8080" + closedPort
	unreached := "Service web, port http: target port 8080 of VM web" + closedPort
	front := corev1.ServiceSpec{
		Selector: map[string]string{api.LabelVM: "web"}, Ports: []corev1.ServicePort{{Name: "http", Port: 8080}, {Name: "ssh", Port: 22}},
	}
	apps := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "apps"}, Spec: *front.DeepCopy()}
	apps.Spec.Selector["app"] = "web"
	if _, err := server.Client.CoreV1().Services("shop").Create(t.Context(), apps, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name   string
		create func(client kubernetes.Interface) error
		want   string
	}{
		{"Pod", func(client kubernetes.Interface) error { _, err := tryPod(t, client, pod); return err }, probes},
		{"Deployment", func(client kubernetes.Interface) error {
			_, err := client.AppsV1().Deployments("shop").Create(t.Context(), &appsv1.Deployment{
				ObjectMeta: metav1.ObjectMeta{Name: "web"},
				Spec:       appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: pod.Labels}, Template: template},
			}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			return err
		}, probes},
		{"Service", func(client kubernetes.Interface) error {
			_, err := client.CoreV1().Services("shop").Create(t.Context(), &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Name: "web"},
				Spec:       front,
			}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			return err
		}, unreached},
		{"VM behind a Service", func(client kubernetes.Interface) error {
			other := pod.DeepCopy()
			other.Labels["app"] = "web"
			_, err := tryPod(t, client, other)
			return err
		}, strings.Replace(unreached, "Service web", "Service apps", 1)},
	} {
		t.Run(row.name, func(t *testing.T) {
			var said heard
			config := rest.CopyConfig(server.Admin)
			config.WarningHandler = &said
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				t.Fatal(err)
			}
			pod.Name = "web-too"
			// A policy, and a Pod that a policy looks at, are in force a while after they are stored.
			err = wait.PollUntilContextTimeout(t.Context(), 200*time.Millisecond, inForce, true, func(context.Context) (bool, error) {
				said.text = ""
				err := row.create(client)
				return strings.Contains(said.text, row.want), err
			})
			if err != nil {
				t.Errorf("%v; heard %q; want %q", err, said.text, row.want)
			}
		})
	}
}

// tryPod creates a Pod without storing it.
func tryPod(t *testing.T, client kubernetes.Interface, pod *corev1.Pod) (*corev1.Pod, error) {
	t.Helper()
	return client.CoreV1().Pods("shop").Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
}

func realShort(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	pod := readPod(t, "testdata/short.yaml")
	got, err := tryPod(t, client, pod)
	if err != nil {
		t.Fatal(err)
	}
	want := readPod(t, "testdata/short-completed.yaml")
	if diff := cmp.Diff(want.Annotations, got.Annotations); diff != "" {
		t.Errorf("annotations (-want,+got):\n%s", diff)
	}
	if diff := cmp.Diff(essence(want), essence(got)); diff != "" {
		t.Errorf("completed Pod (-want,+got):\n%s", diff)
	}
}

// realShortTwice applies a short manifest to a Pod that it made: nothing of the Pod changes, or the VM would restart.
func realShortTwice(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	pods := client.CoreV1().Pods("shop")
	short := readPod(t, "testdata/short.yaml")
	short.Name += "-twice"
	first, err := pods.Create(t.Context(), short, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	again := first.DeepCopy()
	again.Spec.Containers[0].Image = api.AliasImage
	second, err := pods.Update(t.Context(), again, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first.Spec, second.Spec); diff != "" {
		t.Errorf("applied again (-first,+second):\n%s", diff)
	}
}

func realComplete(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	pod := readPod(t, "testdata/complete.yaml")
	got, err := tryPod(t, client, pod)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(pod.Annotations, got.Annotations); diff != "" {
		t.Errorf("annotations (-want,+got):\n%s", diff)
	}
	if diff := cmp.Diff(essence(pod), essence(got)); diff != "" {
		t.Errorf("a complete Pod was changed (-want,+got):\n%s", diff)
	}
}

func realWrong(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	pod := readPod(t, "testdata/short.yaml")
	pod.Annotations[api.KeyFirmware], pod.Annotations[api.Prefix+"cpu-toplogy"] = "efi", "cores=2"
	want := `podvirt.dev/cpu-toplogy: unknown annotation | podvirt.dev/firmware: "efi": not one of bios, uefi, none`
	if _, err := tryPod(t, client, pod); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Pod: %v", err)
	}
	deployment := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "db1"},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: pod.Labels}, Template: corev1.PodTemplateSpec{ObjectMeta: pod.ObjectMeta, Spec: pod.Spec},
		},
	}
	deployment.Spec.Template.ObjectMeta = metav1.ObjectMeta{Labels: pod.Labels, Annotations: pod.Annotations}
	if _, err := client.AppsV1().Deployments("shop").Create(t.Context(), deployment,
		metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Deployment: %v", err)
	}
}

func realOther(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	pod := readPod(t, "testdata/complete.yaml")
	pod.Labels = nil
	pod.Annotations = map[string]string{api.Prefix + "nonsense": "x"}
	got, err := tryPod(t, client, pod)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(essence(pod), essence(got)); diff != "" {
		t.Errorf("changed (-want,+got):\n%s", diff)
	}
}

func realConfig(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	bad, err := client.CoreV1().ConfigMaps(api.SystemNamespace).Get(t.Context(), api.ConfigName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	bad.Data["emulation"], bad.Data["migration.bandwith"] = "yes", "1"
	want := `data.emulation: "yes": not one of forbid, allow | data.migration.bandwith: unknown key`
	_, err = client.CoreV1().ConfigMaps(api.SystemNamespace).Update(t.Context(), bad, metav1.UpdateOptions{})
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v", err)
	}
}

func realEmulated(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	pod := readPod(t, "testdata/short-tcg.yaml")
	pod.OwnerReferences = nil
	pod.Spec.Containers = pod.Spec.Containers[1:]
	pod.Spec.Containers[0].VolumeMounts, pod.Spec.Volumes = pod.Spec.Containers[0].VolumeMounts[:1], pod.Spec.Volumes[:1]
	got, err := tryPod(t, client, pod)
	if err != nil {
		t.Fatal(err)
	}
	if got.Spec.AutomountServiceAccountToken == nil || *got.Spec.AutomountServiceAccountToken || len(got.Spec.Volumes) != 4 {
		t.Errorf("the token of the service account is still there: %+v", got.Spec.Volumes)
	}
	if len(got.Spec.Containers[0].Resources.Limits) != 3 {
		t.Errorf("limits %v", got.Spec.Containers[0].Resources.Limits)
	}
}

// essence is a Pod's spec without what this server adds to every Pod.
func essence(pod *corev1.Pod) corev1.PodSpec {
	spec := *pod.Spec.DeepCopy()
	setDefaults(&corev1.Pod{Spec: spec})
	spec.RestartPolicy, spec.DNSPolicy, spec.ServiceAccountName, spec.DeprecatedServiceAccount = "", "", "", ""
	spec.Tolerations, spec.Priority, spec.PreemptionPolicy = nil, nil, nil
	for i := range spec.Containers {
		c := &spec.Containers[i]
		c.TerminationMessagePath, c.TerminationMessagePolicy = "", ""
		if c.ReadinessProbe != nil {
			c.ReadinessProbe = nil
		}
		for j := range c.VolumeMounts {
			c.VolumeMounts[j].RecursiveReadOnly = nil
		}
	}
	return spec
}

func makeNamespace(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	_, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: "shop", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func install(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	registration := client.AdmissionregistrationV1()
	create := metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}
	for _, file := range Files() {
		for _, object := range file.Objects {
			var err error
			switch o := object.(type) {
			case *admissionv1.ValidatingAdmissionPolicy:
				_, err = registration.ValidatingAdmissionPolicies().Create(t.Context(), o, create)
			case *admissionv1.ValidatingAdmissionPolicyBinding:
				_, err = registration.ValidatingAdmissionPolicyBindings().Create(t.Context(), o, create)
			case *admissionv1.MutatingAdmissionPolicy:
				_, err = registration.MutatingAdmissionPolicies().Create(t.Context(), o, create)
			case *admissionv1.MutatingAdmissionPolicyBinding:
				_, err = registration.MutatingAdmissionPolicyBindings().Create(t.Context(), o, create)
			default:
				err = fmt.Errorf("unexpected %T", object)
			}
			if err != nil {
				t.Fatalf("%s: %v", file.Name, err)
			}
		}
	}
}

// awaitJudge waits until a wrong podvirt-config is refused.
func awaitJudge(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 200*time.Millisecond, inForce, true, func(ctx context.Context) (bool, error) {
		_, err := client.CoreV1().ConfigMaps(api.SystemNamespace).Create(ctx, settings(map[string]string{"nonsense": ""}),
			metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err != nil && strings.Contains(err.Error(), "data.nonsense: unknown key"), nil
	})
	if err != nil {
		t.Fatalf("podvirt-validate-config is not in force: %v", err)
	}
}

// awaitPolicies waits until the policies are in force: a wrong Pod is refused and a short one completed.
func awaitPolicies(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	dryRun := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	var last string
	err := wait.PollUntilContextTimeout(t.Context(), 200*time.Millisecond, inForce, true, func(context.Context) (bool, error) {
		bad := readPod(t, "testdata/complete.yaml")
		bad.Annotations[api.KeyFirmware] = "efi"
		_, refused := client.CoreV1().Pods("shop").Create(t.Context(), bad, dryRun)
		good, err := client.CoreV1().Pods("shop").Create(t.Context(), readPod(t, "testdata/short.yaml"), dryRun)
		last = fmt.Sprint(refused, err)
		return refused != nil && strings.Contains(refused.Error(), "podvirt-validate-vm") && err == nil && good.Spec.SchedulerName == api.SchedulerName &&
			good.Spec.Containers[0].Image != api.AliasImage, nil
	})
	if err != nil {
		t.Fatalf("the policies are not in force: %v; %s", err, last)
	}
}
