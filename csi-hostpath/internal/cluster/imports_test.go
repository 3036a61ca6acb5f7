package cluster

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/driver"
	"podvirt.dev/csi-hostpath/internal/volume"
)

const pemText = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

func importConfig(data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: api.ConfigName, Namespace: api.SystemNamespace}, Data: data}
}

// TestImportObjects: what a claim names is read, and what is wrong with it is said in the words of storage.md 2.1.
func TestImportObjects(t *testing.T) {
	meta := func(namespace, name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: namespace, Name: name}
	}
	client := newClient(Options{Node: "n1"}, fake.NewClientset(
		importConfig(map[string]string{"storage.import.ca": "lab"}),
		&corev1.ConfigMap{ObjectMeta: meta(api.SystemNamespace, "lab"), Data: map[string]string{"lab.pem": pemText}},
		&corev1.ConfigMap{ObjectMeta: meta("shop", "good"), Data: map[string]string{"ca.pem": pemText}},
		&corev1.ConfigMap{ObjectMeta: meta("shop", "bad"), Data: map[string]string{"ca.pem": "nothing"}},
		&corev1.ConfigMap{ObjectMeta: meta("shop", "empty")},
		&corev1.Secret{ObjectMeta: meta("shop", "login"), Data: map[string][]byte{"username": []byte("me"), "password": []byte("x")}},
		&corev1.Secret{ObjectMeta: meta("shop", "headers"), Data: map[string][]byte{"a": []byte("X-A: b\n"), "b": []byte("X-C: d")}},
		&corev1.Secret{ObjectMeta: meta("shop", "other"), Data: map[string][]byte{"key": []byte("x")}},
	))
	if _, err := client.ImportSettings(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		asked api.Import
		text  string
	}{
		"nothing":   {api.Import{}, ""},
		"both":      {api.Import{CA: "good", Secret: "login"}, ""},
		"no CA":     {api.Import{CA: "none"}, `podvirt.dev/import-ca: "none": ConfigMap shop/none not found`},
		"bad CA":    {api.Import{CA: "bad"}, `podvirt.dev/import-ca: "bad": key ca.pem holds no certificate`},
		"empty CA":  {api.Import{CA: "empty"}, "the ConfigMap holds no certificate"},
		"no Secret": {api.Import{Secret: "none"}, `podvirt.dev/import-secret: "none": Secret shop/none not found`},
		"headers":   {api.Import{HeaderSecrets: []string{"headers"}}, ""},
		"no header": {
			api.Import{HeaderSecrets: []string{"headers", "other"}},
			`podvirt.dev/import-headers-secret: "other": key key of the Secret is not "Name: value"`,
		},
		"no Secret of headers": {
			api.Import{HeaderSecrets: []string{"none"}}, `podvirt.dev/import-headers-secret: "none": Secret shop/none not found`,
		},
		"keys": {api.Import{Secret: "other"}, "the Secret needs token, or username and password, or tls.crt and tls.key"},
	} {
		objects, err := client.ImportObjects(t.Context(), volume.Claim{Namespace: "shop", Name: "root"}, &row.asked)
		switch {
		case (err == nil) != (row.text == "") || err != nil && !strings.Contains(err.Error(), row.text):
			t.Errorf("%s: error = %v; want %q", name, err, row.text)
		case err == nil && (objects.Shared["lab.pem"] == "" || (row.asked.CA != "") != (objects.CA != nil) || (row.asked.Secret != "") != (objects.Secret != nil) ||
			len(objects.Headers) != 2*len(row.asked.HeaderSecrets)):
			t.Errorf("%s: objects = %+v", name, objects)
		}
	}
}

// TestImportSettings: a configuration with a mistake leaves the last good one; the ranges are those of the cluster.
func TestImportSettings(t *testing.T) {
	kube := fake.NewClientset(
		importConfig(map[string]string{"storage.import.max-per-node": "2"}),
		&networkingv1.ServiceCIDR{
			ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/12", "fd00::/108"}},
		},
		&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.0.0/24"}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeInternalIP, Address: "192.168.0.7"}, {Type: corev1.NodeHostName, Address: "n1"},
			}},
		})
	client := newClient(Options{Node: "n1"}, kube)
	check := func(most int) {
		t.Helper()
		settings, err := client.ImportSettings(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var ranges []string
		for _, r := range settings.Cluster {
			ranges = append(ranges, r.Prefix.String()+" "+r.What)
		}
		want := []string{
			"10.96.0.0/12 the cluster's Service range", "fd00::/108 the cluster's Service range", "10.244.0.0/24 the cluster's Pod range", "192.168.0.7/32 node n1",
		}
		if diff := cmp.Diff(want, ranges); diff != "" || settings.MaxPerNode != most {
			t.Errorf("max-per-node %d, want %d; ranges (-want,+got):\n%s", settings.MaxPerNode, most, diff)
		}
	}
	check(2)
	for _, row := range []struct {
		data map[string]string
		most int
	}{{map[string]string{"storage.import.max-per-node": "none"}, 2}, {map[string]string{"storage.import.max-per-node": "3"}, 3}} {
		if _, err := kube.CoreV1().ConfigMaps(api.SystemNamespace).Update(t.Context(), importConfig(row.data), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		check(row.most)
	}
}

// TestImportState: annotations are written each time, the condition only when it changes.
func TestImportState(t *testing.T) {
	kube := fake.NewClientset(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "root", UID: "u1"}})
	client := newClient(Options{Node: "n1"}, kube)
	events := record.NewFakeRecorder(10)
	client.events = events
	claim := volume.Claim{Namespace: "shop", Name: "root", UID: "u1"}
	state := func(progress string) driver.ImportState {
		return driver.ImportState{
			Annotations: map[string]string{api.KeyImportProgress: progress}, Populated: "False", Reason: "InProgress",
			Message: progress + " of it", Event: "ImportProgress",
		}
	}
	client.ImportState(t.Context(), claim, state("1.0%"))
	client.ImportState(t.Context(), claim, state("2.0%"))
	got, err := kube.CoreV1().PersistentVolumeClaims("shop").Get(t.Context(), "root", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got.Annotations[api.KeyImportProgress] != "2.0%" || len(got.Status.Conditions) != 1 || got.Status.Conditions[0].Message != "1.0% of it" {
		t.Errorf("annotations %v, conditions %+v", got.Annotations, got.Status.Conditions)
	}
	if event := receive(t, events.Events); !strings.Contains(event, "ImportProgress 1.0% of it") {
		t.Errorf("event = %q", event)
	}
}
