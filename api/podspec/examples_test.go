package podspec_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/client-go/kubernetes/scheme"

	"podvirt.dev/api"
	"podvirt.dev/api/podspec"
)

// TestExamples decodes every object of manifests/examples, manifests/config and manifests/rbac strictly and reads every
// VM in them, Pods and templates, without an error or a warning. A complete example says the limit that its memory needs.
func TestExamples(t *testing.T) {
	vms := 0
	for _, dir := range []string{"examples", "config", "rbac"} {
		files, err := filepath.Glob("../../manifests/" + dir + "/*.yaml")
		if err != nil || len(files) == 0 {
			t.Fatalf("no manifests in %s: %v", dir, err)
		}
		for _, file := range files {
			if filepath.Base(file) == "kustomization.yaml" {
				continue
			}
			for _, object := range decode(t, file) {
				template := templateOf(object)
				if template == nil {
					continue
				}
				vms++
				checkVM(t, file, template)
			}
		}
	}
	if vms < 4 {
		t.Errorf("only %d VMs in the examples", vms)
	}
}

func decode(t *testing.T, file string) []runtime.Object {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, json.SerializerOptions{Yaml: true, Strict: true})
	var objects []runtime.Object
	for document := range strings.SplitSeq(string(data), "\n---\n") {
		object, _, err := strict.Decode([]byte(document), nil, nil)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		objects = append(objects, object)
	}
	return objects
}

func templateOf(object runtime.Object) *corev1.Pod {
	switch o := object.(type) {
	case *corev1.Pod:
		return o
	case *appsv1.Deployment:
		return &corev1.Pod{ObjectMeta: o.Spec.Template.ObjectMeta, Spec: o.Spec.Template.Spec}
	case *appsv1.StatefulSet:
		pod := &corev1.Pod{ObjectMeta: o.Spec.Template.ObjectMeta, Spec: o.Spec.Template.Spec}
		for _, claim := range o.Spec.VolumeClaimTemplates {
			pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: claim.Name, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name},
			}})
		}
		return pod
	default:
		return nil
	}
}

func checkVM(t *testing.T, file string, pod *corev1.Pod) {
	t.Helper()
	if !podspec.IsVM(pod.Labels) {
		t.Errorf("%s: no label %s", file, api.LabelVM)
	}
	m, errs := podspec.Resolve(pod, api.Config{Visible: true})
	for _, err := range errs {
		t.Errorf("%s: %s", file, err.Text)
	}
	for _, warning := range m.Warnings {
		if !strings.HasPrefix(warning, api.KeyDisk+"data: has no boot number") {
			t.Errorf("%s: warning: %s", file, warning)
		}
	}
	volumes := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = true
	}
	for _, mount := range pod.Spec.Containers[0].VolumeMounts {
		if !volumes[mount.Name] {
			t.Errorf("%s: no volume %s", file, mount.Name)
		}
	}
	if limit := pod.Spec.Containers[0].Resources.Limits.Memory(); !limit.IsZero() && limit.Value()>>20 != int64(m.Memory.Guest+m.Overhead) {
		t.Errorf("%s: limits.memory %s, but memory %dMi and overhead %dMi", file, limit, m.Memory.Guest, m.Overhead)
	}
}
