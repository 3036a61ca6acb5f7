package policy

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"

	"podvirt.dev/api"
	"podvirt.dev/api/podspec"
)

var update = flag.Bool("update", false, "write the golden files")

func readPod(t testing.TB, path string) *corev1.Pod {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict(data, &pod); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	setDefaults(&pod)
	return &pod
}

// settings is a ConfigMap podvirt-config.
func settings(data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: api.ConfigName, Namespace: api.SystemNamespace}, Data: data}
}

// complete runs both mutating policies, in either order: Kubernetes promises none.
func complete(t *testing.T, pod *corev1.Pod, config *corev1.ConfigMap, configFirst bool) *corev1.Pod {
	t.Helper()
	first, second := newMutator(t, configVM()), newMutator(t, defaultVM())
	if !configFirst {
		first, second = second, first
	}
	out := first.mutate(t, request{object: pod.DeepCopy(), params: config})
	out = second.mutate(t, request{object: out, params: config})
	return out.(*corev1.Pod)
}

// TestShortPods: a short Pod becomes the stored golden one, in either order of the policies; the result is left alone by
// a second pass, passes the validating policy, and resolves to what it says.
func TestShortPods(t *testing.T) {
	config := settings(map[string]string{"launcher.image": "registry.example/podvirt/launcher:v1.0.0", "emulation": "allow"})
	validate := newValidator(t, validateVM())
	for _, name := range []string{"short", "short-tcg"} {
		t.Run(name, func(t *testing.T) {
			got := complete(t, readPod(t, filepath.Join("testdata", name+".yaml")), config, true)
			golden := filepath.Join("testdata", name+"-completed.yaml")
			if *update {
				data, err := yaml.Marshal(got)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(golden, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want := readPod(t, golden)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("completed Pod (-want,+got):\n%s", diff)
			}
			if diff := cmp.Diff(got, complete(t, readPod(t, filepath.Join("testdata", name+".yaml")), config, false)); diff != "" {
				t.Errorf("the order of the policies matters:\n%s", diff)
			}
			if diff := cmp.Diff(got, complete(t, got, config, true)); diff != "" {
				t.Errorf("a second pass changes the Pod:\n%s", diff)
			}
			if message := validate.denied(t, request{object: got}, celconfig.RuntimeCELCostBudget); message != "" {
				t.Errorf("the completed Pod is refused: %s", message)
			}
			m, errs := podspec.Resolve(got, api.Config{})
			if len(errs) > 0 {
				t.Error(errs)
			}
			if limit := api.MiB(got.Spec.Containers[len(got.Spec.Containers)-1].Resources.Limits.Memory().Value() >> 20); limit != m.Memory.Guest+m.Overhead {
				t.Errorf("limit %d, but memory %d and overhead %d", limit, m.Memory.Guest, m.Overhead)
			}
		})
	}
}

// TestCompletePodStays: a complete manifest is equal before and after (VM-003).
func TestCompletePodStays(t *testing.T) {
	pod := readPod(t, "testdata/complete.yaml")
	for _, configFirst := range []bool{true, false} {
		if diff := cmp.Diff(pod, complete(t, pod, settings(nil), configFirst)); diff != "" {
			t.Errorf("the policies change a complete Pod:\n%s", diff)
		}
	}
	if message := newValidator(t, validateVM()).denied(t, request{object: pod}, celconfig.RuntimeCELCostBudget); message != "" {
		t.Errorf("refused: %s", message)
	}
}

// TestOtherPodsAreUntouched: a Pod without the label, and one without a container vm, are none of ours.
func TestOtherPodsAreUntouched(t *testing.T) {
	for name, change := range map[string]func(*corev1.Pod){
		"no label":     func(pod *corev1.Pod) { pod.Labels = nil },
		"empty label":  func(pod *corev1.Pod) { pod.Labels[api.LabelVM] = "" },
		"no container": func(pod *corev1.Pod) { pod.Spec.Containers[0].Name = "web" },
	} {
		pod := readPod(t, "testdata/short.yaml")
		change(pod)
		if diff := cmp.Diff(pod, complete(t, pod, settings(map[string]string{"console.default": "log"}), true)); diff != "" {
			t.Errorf("%s: changed:\n%s", name, diff)
		}
	}
}

// TestConfigIsFollowed: what podvirt-config says is in the Pod.
func TestConfigIsFollowed(t *testing.T) {
	got := complete(t, readPod(t, "testdata/short.yaml"), settings(map[string]string{
		"launcher.image": "localhost/podvirt/launcher:dev", "cpu.default-model": "EPYC", "machine.default": "pc-q35-10.0", "console.default": "log",
		"verbosity.launcher": "4", "launcher.runtime-class": "vm", "cpu.allocation-ratio": "4", "memory.overcommit-percent": "200",
		"memory.guest-overhead": "not-counted", "memory.overhead-factor": "2.0",
	}), true)
	vm := got.Spec.Containers[0]
	for key, want := range map[string]string{
		api.KeyCPUModel: "EPYC", api.KeyMachine: "pc-q35-10.0", api.KeyConsole: "log", api.KeyVerbosity: "4", api.KeyVM: "db1",
		api.KeyShutdown: "agent+acpi,timeout=170s",
	} {
		if got.Annotations[key] != want {
			t.Errorf("%s: %q, want %q", key, got.Annotations[key], want)
		}
	}
	if vm.Image != "localhost/podvirt/launcher:dev" || vm.ImagePullPolicy != corev1.PullIfNotPresent || *got.Spec.RuntimeClassName != "vm" {
		t.Errorf("image %s, %s, runtime class %v", vm.Image, vm.ImagePullPolicy, got.Spec.RuntimeClassName)
	}
	m, _ := podspec.Resolve(got, api.Config{Memory: api.MemoryConfig{OverheadTenths: 20}})
	if limit := vm.Resources.Limits.Memory().Value() >> 20; limit != int64(m.Memory.Guest+m.Overhead) {
		t.Errorf("limit %dMi, memory %d, overhead %d", limit, m.Memory.Guest, m.Overhead)
	}
	if request := vm.Resources.Requests.Memory().Value() >> 20; request != 2048 {
		t.Errorf("memory request %dMi", request)
	}
	if cpu := vm.Resources.Requests.Cpu().MilliValue(); cpu != 500 {
		t.Errorf("CPU request %dm", cpu)
	}
}

// TestVhostNetWhereThereIsNone: VMs do not ask for what no node of the cluster has (devices.md DP-003).
func TestVhostNetWhereThereIsNone(t *testing.T) {
	for capacity, want := range map[string]string{"": "1", "5": "1", "0": "0"} {
		data := map[string]string{}
		if capacity != "" {
			data["devices.capacity.vhost-net"] = capacity
		}
		got := complete(t, readPod(t, "testdata/short.yaml"), settings(data), true)
		if amount := got.Spec.Containers[0].Resources.Limits[api.ResourceVhostNet]; amount.String() != want {
			t.Errorf("with capacity %q: %s is %s, want %s", capacity, api.ResourceVhostNet, amount.String(), want)
		}
	}
}
