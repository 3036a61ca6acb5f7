package policy

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	celconfig "k8s.io/apiserver/pkg/apis/cel"

	"podvirt.dev/api"
	"podvirt.dev/api/podspec"
)

// guarded is a VM whose NIC lets in SSH, HTTP and a range of UDP ports.
func guarded() *corev1.Pod {
	return vmPod(map[string]string{api.KeyMemory: "1Gi", api.KeyNIC + "default": "model=virtio, ports=22+80+5000-5100/udp"})
}

// linesOf divides a message of a policy.
func linesOf(message string) []string {
	if message == "" {
		return nil
	}
	return strings.Split(message, " | ")
}

// TestWarnPorts: ports of the container and of probes that ports= of the NIC leaves out (NW-018), and probes that begin
// before the last one may have ended (VM-175).
func TestWarnPorts(t *testing.T) {
	v := newValidator(t, warnVM())
	get := func(port intstr.IntOrString) corev1.ProbeHandler {
		return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: port}}
	}
	dial := corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(5432)}}
	const closedPort = "not among ports=22+80+5000-5100/udp of podvirt.dev/nic.default: it does not reach the guest"
	for _, row := range []struct {
		name   string
		change func(pod *corev1.Pod, vm *corev1.Container)
		want   []string
	}{
		{"nothing", func(*corev1.Pod, *corev1.Container) {}, nil},
		{"listed ports", func(_ *corev1.Pod, vm *corev1.Container) {
			vm.Ports = []corev1.ContainerPort{{ContainerPort: 80}, {ContainerPort: 5100, Protocol: corev1.ProtocolUDP}}
			vm.ReadinessProbe = &corev1.Probe{ProbeHandler: get(intstr.FromInt32(80))}
		}, nil},
		{"another protocol", func(_ *corev1.Pod, vm *corev1.Container) {
			vm.Ports = []corev1.ContainerPort{{ContainerPort: 5100}, {ContainerPort: 80, Protocol: corev1.ProtocolUDP}}
		}, []string{"spec.containers[vm].ports: 5100: " + closedPort, "spec.containers[vm].ports: 80: " + closedPort}},
		{"HTTP by number", func(_ *corev1.Pod, vm *corev1.Container) {
			vm.LivenessProbe = &corev1.Probe{ProbeHandler: get(intstr.FromInt32(8080))}
		}, []string{"spec.containers[vm].livenessProbe: port 8080: " + closedPort}},
		{"HTTP by name", func(_ *corev1.Pod, vm *corev1.Container) {
			vm.Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}
			vm.StartupProbe = &corev1.Probe{ProbeHandler: get(intstr.FromString("web"))}
		}, []string{"spec.containers[vm].ports: 8080: " + closedPort, "spec.containers[vm].startupProbe: port 8080: " + closedPort}},
		{"TCP and gRPC", func(_ *corev1.Pod, vm *corev1.Container) {
			vm.ReadinessProbe = &corev1.Probe{ProbeHandler: dial}
			vm.LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 9000}}}
		}, []string{"spec.containers[vm].livenessProbe: port 9000: " + closedPort, "spec.containers[vm].readinessProbe: port 5432: " + closedPort}},
		{"the launcher's own port", func(_ *corev1.Pod, vm *corev1.Container) {
			vm.ReadinessProbe = &corev1.Probe{ProbeHandler: get(intstr.FromInt32(api.PortStatus))}
		}, nil},
		{"another host", func(_ *corev1.Pod, vm *corev1.Container) {
			vm.ReadinessProbe = &corev1.Probe{ProbeHandler: get(intstr.FromInt32(8080))}
			vm.ReadinessProbe.HTTPGet.Host = "192.0.2.1"
		}, nil},
		{"a sidecar's port", func(pod *corev1.Pod, _ *corev1.Container) {
			pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "s", Ports: []corev1.ContainerPort{{ContainerPort: 8080}}})
		}, nil},
		{"all ports are open", func(pod *corev1.Pod, vm *corev1.Container) {
			pod.Annotations[api.KeyNIC+"default"] = "model=virtio"
			vm.ReadinessProbe = &corev1.Probe{ProbeHandler: dial}
		}, nil},
		{"a mistake, which is refused by another policy", func(pod *corev1.Pod, vm *corev1.Container) {
			pod.Annotations[api.KeyNIC+"default"] = "ports=http"
			vm.ReadinessProbe = &corev1.Probe{ProbeHandler: dial}
		}, nil},
		{"a period as long as the timeout", func(_ *corev1.Pod, vm *corev1.Container) {
			vm.ReadinessProbe = &corev1.Probe{ProbeHandler: get(intstr.FromInt32(80)), PeriodSeconds: 5, TimeoutSeconds: 5}
			vm.LivenessProbe = &corev1.Probe{ProbeHandler: get(intstr.FromInt32(80)), TimeoutSeconds: 10}
			vm.StartupProbe = &corev1.Probe{ProbeHandler: get(intstr.FromInt32(80)), PeriodSeconds: 6, TimeoutSeconds: 5}
		}, []string{
			"spec.containers[vm].livenessProbe: periodSeconds 10 is not above timeoutSeconds 10",
			"spec.containers[vm].readinessProbe: periodSeconds 5 is not above timeoutSeconds 5",
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			pod := guarded()
			row.change(pod, &pod.Spec.Containers[0])
			for kind, object := range owners(corev1.PodTemplateSpec{ObjectMeta: pod.ObjectMeta, Spec: pod.Spec}) {
				got := linesOf(v.denied(t, request{object: object}, celconfig.RuntimeCELCostBudget/4))
				if diff := cmp.Diff(row.want, got); diff != "" {
					t.Errorf("%s: warnings (-want,+got):\n%s", kind, diff)
				}
			}
		})
	}
}

// TestWarnBootOrder holds the policy against the warnings of the launcher (VM-056).
func TestWarnBootOrder(t *testing.T) {
	v := newValidator(t, warnVM())
	root, data, cd, tmp, nic := api.KeyDisk+"root", api.KeyDisk+"data", api.KeyDisk+"cd", api.KeyDisk+"tmp", api.KeyNIC+"default"
	told := 0
	for _, annotations := range []map[string]string{
		{}, {root: "boot=1"}, {data: "boot=1"}, {cd: "boot=1"}, {nic: "boot=1"}, {nic: "boot=1", root: "boot=2"},
		{root: "boot=2", data: "bus=scsi,boot=1", cd: "boot=3"}, {root: "boot=2", data: "boot=1", api.KeyFirmware: "uefi,menu=3s"},
		{root: "boot=2", data: "boot=1", api.KeyFirmware: "menu=3s"}, {root: "boot=2", data: "boot=1", api.KeyArch: "arm64", api.KeyAccelerator: "tcg"},
		{root: "boot=1", tmp: "empty=1Mi"}, {root: "boot=1", tmp: "empty=1Mi,boot=2"}, {root: "boot=10", tmp: "type=cdrom,boot=9", data: "boot=08"},
		{root: `serial="a,boot=1"`}, {root: `boot="1"`}, {api.KeyDevice + "gpu": "boot=1,resource=example.org/gpu"},
	} {
		annotations[api.KeyMemory] = "1Gi"
		pod := vmPod(annotations)
		pod.Spec.Containers[0].Resources.Limits["example.org/gpu"] = resource.MustParse("1")
		machine, errs := podspec.Resolve(pod, api.Config{})
		if errs != nil {
			t.Fatalf("%q: %v", annotations, errs)
		}
		got := linesOf(v.denied(t, request{object: pod}, celconfig.RuntimeCELCostBudget/4))
		slices.Sort(machine.Warnings)
		slices.Sort(got)
		if diff := cmp.Diff(machine.Warnings, got); diff != "" {
			t.Errorf("%q: warnings (-launcher,+policy):\n%s", annotations, diff)
		}
		told += len(got)
	}
	if told < 10 {
		t.Errorf("%d warnings", told)
	}
}

// TestWarnService: target ports of VMs behind a Service, whichever comes first (NW-053).
func TestWarnService(t *testing.T) {
	service, served := newValidator(t, warnService()), newValidator(t, warnServed())
	const closedPort = " of VM db1: not among ports=22+80+5000-5100/udp of podvirt.dev/nic.default: it does not reach the guest"
	http := func(target intstr.IntOrString) corev1.ServicePort {
		return corev1.ServicePort{Name: "http", Port: 8000, TargetPort: target}
	}
	pod := guarded()
	pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: 80}, {Name: "db", ContainerPort: 5432}}
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "s", Ports: []corev1.ContainerPort{{Name: "proxy", ContainerPort: 8081}}})
	for _, row := range []struct {
		name     string
		selector map[string]string
		ports    []corev1.ServicePort
		want     []string
	}{
		{"listed", map[string]string{api.LabelVM: "db1"}, []corev1.ServicePort{http(intstr.FromInt32(80)), http(intstr.FromString("web"))}, nil},
		{"not listed", map[string]string{api.LabelVM: "db1"}, []corev1.ServicePort{
			http(intstr.FromInt32(8080)), {Port: 5432}, {Port: 5050}, {Port: 5050, Protocol: corev1.ProtocolUDP},
		}, []string{
			"Service web, port http: target port 8080" + closedPort, "Service web, port 5432: target port 5432" + closedPort,
			"Service web, port 5050: target port 5050" + closedPort,
		}},
		{"by name", map[string]string{api.LabelVM: "db1"}, []corev1.ServicePort{http(intstr.FromString("db")), http(intstr.FromString("nobody"))},
			[]string{"Service web, port http: target port 5432" + closedPort}},
		{"the launcher's own and a sidecar's", map[string]string{api.LabelVM: "db1"},
			[]corev1.ServicePort{http(intstr.FromInt32(api.PortStatus)), http(intstr.FromString("proxy")), http(intstr.FromInt32(8081))}, nil},
		{"of others", map[string]string{api.LabelVM: "db2"}, []corev1.ServicePort{{Port: 5432}}, nil},
		{"of nobody", nil, []corev1.ServicePort{{Port: 5432}}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			object := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{Selector: row.selector, Ports: row.ports}}
			for i := range object.Spec.Ports { // as the API server has them when it asks the policies
				p := &object.Spec.Ports[i]
				if p.TargetPort == (intstr.IntOrString{}) {
					p.TargetPort = intstr.FromInt32(p.Port)
				}
			}
			got := linesOf(service.denied(t, request{object: object, params: pod}, celconfig.RuntimeCELCostBudget/4))
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("Service: warnings (-want,+got):\n%s", diff)
			}
			for kind, owner := range owners(corev1.PodTemplateSpec{ObjectMeta: pod.ObjectMeta, Spec: pod.Spec}) {
				got := linesOf(served.denied(t, request{object: owner, params: object}, celconfig.RuntimeCELCostBudget/4))
				if diff := cmp.Diff(row.want, got); diff != "" {
					t.Errorf("%s: warnings (-want,+got):\n%s", kind, diff)
				}
			}
		})
	}
}
