package podspec_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/api"
	"podvirt.dev/api/podspec"
)

// TestCheck holds the messages about Pod fields that are no annotations (VM-001, VM-015).
func TestCheck(t *testing.T) {
	yes := true
	for _, test := range []struct {
		name string
		spec corev1.PodSpec
		want []string
	}{
		{"a VM", corev1.PodSpec{Containers: []corev1.Container{{Name: "vm"}}}, nil},
		{"no container", corev1.PodSpec{Containers: []corev1.Container{{Name: "web"}}}, []string{`podvirt.dev/vm: "db1": no container is named "vm"`}},
		{"two that claim to be it", corev1.PodSpec{Containers: []corev1.Container{{Name: "vm"}, {Name: "b", Image: api.AliasImage}, {
			Name: "c", VolumeMounts: []corev1.VolumeMount{{MountPath: "/vm/disks/x"}},
		}}}, []string{
			`spec.containers[b]: claims to be the VM; only container "vm" can`, `spec.containers[c]: claims to be the VM; only container "vm" can`,
		}},
		{"port of the launcher", corev1.PodSpec{Containers: []corev1.Container{{Name: "vm"}, {
			Name: "s", Ports: []corev1.ContainerPort{{ContainerPort: 49155}, {ContainerPort: 49156}},
		}}}, []string{`spec.containers[s].ports: 49155: kept for the launcher (49152 to 49155)`}},
		{"host", corev1.PodSpec{HostNetwork: true, HostPID: true, ShareProcessNamespace: &yes, Containers: []corev1.Container{{Name: "vm"}}}, []string{
			"spec.hostNetwork: true: not allowed on a VM Pod", "spec.hostPID: true: not allowed on a VM Pod",
			"spec.shareProcessNamespace: true: not allowed on a VM Pod",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			for _, err := range podspec.Check(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{api.LabelVM: "db1"}}, Spec: test.spec}) {
				got = append(got, err.Text)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("errors (-want,+got):\n%s", diff)
			}
		})
	}
}
