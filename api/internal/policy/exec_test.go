package policy

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"podvirt.dev/api"
)

// TestExec: container vm takes only the launcher's verbs, each with its right; other containers are free.
func TestExec(t *testing.T) {
	v := newValidator(t, exec())
	holds := func(rights ...string) func(authorizer.Attributes) bool {
		return func(a authorizer.Attributes) bool {
			for _, right := range rights {
				if a.GetVerb() == "create" && a.GetAPIGroup() == "podvirt.dev" && a.GetResource() == "virtualmachines" && a.GetSubresource() == right &&
					a.GetNamespace() == "shop" && a.GetName() == "db1" {
					return true
				}
			}
			return false
		}
	}
	for _, test := range []struct {
		name    string
		object  runtime.Object
		allowed func(authorizer.Attributes) bool
		want    string
	}{
		{"console", &corev1.PodExecOptions{Container: "vm", Command: []string{"launcher", "ctl", "console"}}, holds("console"), ""},
		{"console without the right", &corev1.PodExecOptions{Container: "vm", Command: []string{"launcher", "ctl", "console"}}, holds("view"),
			"needs the right to create virtualmachines/console in API group podvirt.dev"},
		{"empty container counts", &corev1.PodExecOptions{Command: []string{"/usr/bin/launcher", "ctl", "pause"}}, nil,
			"needs the right to create virtualmachines/pause in API group podvirt.dev"},
		{"agent data", &corev1.PodExecOptions{Container: "vm", Command: []string{"launcher", "ctl", "agent", "os"}}, holds("guest"), ""},
		{"agent exec is more", &corev1.PodExecOptions{Container: "vm", Command: []string{"launcher", "ctl", "agent", "exec", "--", "sh"}}, holds("guest"),
			"needs the right to create virtualmachines/guest-exec in API group podvirt.dev"},
		{"probe", &corev1.PodExecOptions{Container: "vm", Command: []string{"launcher", "probe", "agent"}}, holds("view"), ""},
		{"shell", &corev1.PodExecOptions{Container: "vm", Command: []string{"sh"}}, holds("view", "power"),
			`container vm takes only "launcher ctl" and "launcher probe", not "sh"`},
		{"launcher run", &corev1.PodExecOptions{Container: "vm", Command: []string{"launcher", "run"}}, holds("view"),
			`container vm takes only "launcher ctl" and "launcher probe", not "launcher"`},
		{"no such verb", &corev1.PodExecOptions{Container: "vm", Command: []string{"launcher", "ctl", "fly"}}, holds("view"),
			`launcher ctl: "fly": no such verb`},
		{"sidecar", &corev1.PodExecOptions{Container: "proxy", Command: []string{"sh"}}, nil, ""},
		{"attach", &corev1.PodAttachOptions{Container: "vm", Stdin: true}, holds("console"), ""},
		{"attach without the right", &corev1.PodAttachOptions{Container: "vm", Stdin: true}, holds("view"),
			"needs the right to create virtualmachines/console in API group podvirt.dev"},
	} {
		t.Run(test.name, func(t *testing.T) {
			subresource := "exec"
			if _, attach := test.object.(*corev1.PodAttachOptions); attach {
				subresource = "attach"
			}
			got := v.denied(t, request{
				object: test.object, operation: admission.Connect, resource: "pods", subresource: subresource, name: "db1", allowed: test.allowed,
			}, celconfig.RuntimeCELCostBudget)
			if got != test.want {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

// TestValidateConfig holds the policy on podvirt-config against api.ParseConfig.
func TestValidateConfig(t *testing.T) {
	policy := newErrorsOf(t, validateConfig())
	for _, s := range api.Settings() {
		key := strings.Replace(s.Key, "NAME", "x", 1)
		values := samples(s.Value)
		if s.Commas {
			values = append(values, "a,b", "masquerade, wire", ",", "cordon,x")
		}
		for _, value := range values {
			data := map[string]string{key: value}
			// What the policy leaves to the programs: rules between settings.
			_, errs := api.ParseConfig(data)
			var want []string
			for _, err := range errs {
				if !strings.Contains(err.Text, "no room for gateway") && !strings.Contains(err.Text, "not among network.allowed-bindings") &&
					!strings.Contains(err.Text, "built-in list") && !strings.Contains(err.Text, "multicast") {
					want = append(want, withoutNearest(err.Text))
				}
			}
			got, _ := policy.lines(t, request{object: settings(data)})
			for i := range got {
				got[i] = withoutNearest(got[i])
			}
			if !strings.Contains(value, "\x1b") && strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Errorf("%s=%q\npolicy: %q\nparser: %q", key, value, got, want)
			}
		}
	}
	got, cost := policy.lines(t, request{object: settings(map[string]string{"migration.bandwith": "1", "emulation": "yes"})})
	t.Logf("cost %d; %q", cost, got)
	if len(got) != 2 {
		t.Errorf("two errors at once: %q", got)
	}
}

// TestValidateVMConfig: what podvirt-config forbids is refused, on Pods as on the templates of every owner.
func TestValidateVMConfig(t *testing.T) {
	v := newValidator(t, validateVMConfig())
	pod := vmPod(map[string]string{api.KeyAccelerator: "tcg", api.KeyCPUModel: "Conroe-v1"})
	want := `podvirt.dev/accelerator: "tcg": emulation is not allowed (emulation: forbid)` +
		` | podvirt.dev/cpu-model: "Conroe-v1": Conroe-v1 is on the obsolete list (cpu.obsolete-models)`
	template := corev1.PodTemplateSpec{ObjectMeta: pod.ObjectMeta, Spec: pod.Spec}
	for name, object := range owners(template) {
		if got := v.denied(t, request{object: object, params: settings(nil)}, celconfig.RuntimeCELCostBudget); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got, want)
		}
		if got := v.denied(t, request{object: object, params: settings(map[string]string{"emulation": "allow", "cpu.obsolete-models": "-Conroe"})},
			celconfig.RuntimeCELCostBudget); got != "" {
			t.Errorf("%s: allowed by the configuration, but %s", name, got)
		}
	}
	pod.Annotations = map[string]string{api.KeyCPUModel: "EPYC"}
	if got := v.denied(t, request{object: pod, params: settings(map[string]string{"cpu.obsolete-models": "Haswell, EPYC"})},
		celconfig.RuntimeCELCostBudget); got == "" {
		t.Error("a model of the list is admitted")
	}
}

// TestTemplates: a wrong annotation is refused in the template of every owner, and a short template is admitted (VM-005).
func TestTemplates(t *testing.T) {
	v := newValidator(t, validateVM())
	short := readPod(t, "testdata/short.yaml")
	for name, object := range owners(corev1.PodTemplateSpec{ObjectMeta: short.ObjectMeta, Spec: short.Spec}) {
		if got := v.denied(t, request{object: object}, celconfig.RuntimeCELCostBudget); got != "" {
			t.Errorf("%s: a short template is refused: %s", name, got)
		}
	}
	short.Annotations[api.KeyCPUModel] = "Haswel"
	for name, object := range owners(corev1.PodTemplateSpec{ObjectMeta: short.ObjectMeta, Spec: short.Spec}) {
		want := `podvirt.dev/cpu-model: "Haswel": no such model`
		if got := v.denied(t, request{object: object}, celconfig.RuntimeCELCostBudget); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
		if got := v.denied(t, request{object: object, old: object, operation: admission.Update}, celconfig.RuntimeCELCostBudget); got != "" {
			t.Errorf("%s: an update that changes nothing is refused: %s", name, got)
		}
	}
}

// TestReservedKeys: what only the scheduler may write is refused from a user, and taken from a component.
func TestReservedKeys(t *testing.T) {
	policy := newErrorsOf(t, validateVM())
	pod := vmPod(map[string]string{api.KeyMemory: "1Gi", api.KeyStatus: "{}"})
	if got, _ := policy.lines(t, request{object: pod}); len(got) != 1 || got[0] != `podvirt.dev/status: "{}": is set by podvirt` {
		t.Errorf("from a user: %q", got)
	}
	if got, _ := policy.lines(t, request{object: pod, user: component}); len(got) != 0 {
		t.Errorf("from a component: %q", got)
	}
}

func owners(template corev1.PodTemplateSpec) map[string]runtime.Object {
	meta := metav1.ObjectMeta{Name: "db1", Namespace: "shop"}
	return map[string]runtime.Object{
		"Pod":         &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec},
		"Deployment":  &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Template: template}},
		"StatefulSet": &appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Template: template}},
		"ReplicaSet":  &appsv1.ReplicaSet{ObjectMeta: meta, Spec: appsv1.ReplicaSetSpec{Template: template}},
		"Job":         &batchv1.Job{ObjectMeta: meta, Spec: batchv1.JobSpec{Template: template}},
		"CronJob":     &batchv1.CronJob{ObjectMeta: meta, Spec: batchv1.CronJobSpec{JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: template}}}},
	}
}
