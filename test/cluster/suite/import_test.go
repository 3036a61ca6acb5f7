package suite

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

// TestImport: a claim says where its content comes from. Where the driver may not go it says so; when it may, the claim is
// bound with the content, and the VM that waited for it boots (ST-041, ST-056, ST-062).
func TestImport(t *testing.T) {
	ns := setUp(t, "guest-tiny")
	ns.Apply(t, userPod{
		name: "web", imageFrom: "guest-tiny", command: []string{"busybox", "httpd", "-f", "-p", "8080", "-h", "/source/disk"},
	}.manifest(t))
	web := ns.WaitPod(t, "web", harness.Medium, harness.Ready)
	sum, _, _ := strings.Cut(ns.Exec(t, "web", "main", "sha256sum", "/source/disk/disk.qcow2"), " ")

	const name = "imported-root"
	url := "http://" + net.JoinHostPort(web.Status.PodIP, "8080") + "/disk.qcow2"
	ns.Apply(t, claim{name: name, size: "512Mi", annotations: map[string]string{api.KeyImportSource: url}}.manifest(t))
	ns.Apply(t, newVM("imported", "guest-tiny").claim("root", corev1.PersistentVolumeFilesystem).manifest(t))
	waitEvent(t, ns, name, web.Status.PodIP+" is in the cluster's Pod range")

	service, err := ns.Client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for denied, target := range map[string]struct{ url, text string }{
		"service":  {"https://" + service.Spec.ClusterIP + "/version", "is in the cluster's Service range"},
		"kubelet":  {"https://" + net.JoinHostPort(web.Status.HostIP, "10250") + "/metrics", "is in node " + web.Spec.NodeName},
		"metadata": {"http://[::ffff:169.254.169.254]/latest", "is a link-local address"},
	} {
		ns.Apply(t, claim{
			name: denied, size: "64Mi", annotations: map[string]string{api.KeyImportSource: target.url, selectedNode: web.Spec.NodeName},
		}.manifest(t))
		waitEvent(t, ns, denied, target.text)
	}

	allowImports(t, ns, web.Status.PodIP)
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{api.KeyImportChecksum: "sha256:" + sum}}})
	if err != nil {
		t.Fatal(err)
	}
	claims := ns.Client.CoreV1().PersistentVolumeClaims(ns.Name)
	if _, err := claims.Patch(t.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	boundVolume(t, ns, name)
	harness.Eventually(t, harness.Short, "the claim saying that it is imported", func(ctx context.Context) error {
		found, err := claims.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		populated := corev1.ConditionUnknown
		for _, condition := range found.Status.Conditions {
			if string(condition.Type) == api.ConditionPopulated {
				populated = condition.Status
			}
		}
		a := found.Annotations
		if populated != corev1.ConditionTrue || a[api.KeyImportPhase] != "Succeeded" || a[api.KeyImportDigest] != "sha256:"+sum ||
			!strings.HasPrefix(a[api.KeyImportInfo], "format=qcow2,compression=none") {
			return fmt.Errorf("condition %s, annotations %v", populated, a)
		}
		return nil
	})
	waitEvent(t, ns, name, "the content is complete")
	ns.WaitLog(t, "imported", api.ContainerName, "podvirt-tiny: ready after", harness.Medium)
}

// allowImports lets imports reach an address until the test ends.
func allowImports(t *testing.T, ns *harness.Namespace, ip string) {
	t.Helper()
	const key = "storage.import.allow"
	write := func(ctx context.Context, value any) error {
		patch, err := json.Marshal(map[string]any{"data": map[string]any{key: value}})
		if err != nil {
			return err
		}
		_, err = ns.Client.CoreV1().ConfigMaps(api.SystemNamespace).Patch(ctx, api.ConfigName, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	}
	t.Cleanup(func() {
		if err := write(context.WithoutCancel(t.Context()), nil); err != nil {
			t.Error(err)
		}
	})
	if err := write(t.Context(), "*,"+ip); err != nil {
		t.Fatal(err)
	}
}
