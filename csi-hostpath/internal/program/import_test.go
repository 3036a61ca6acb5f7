package program

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/pooltest"
	"podvirt.dev/csi-hostpath/internal/sandbox"
	"podvirt.dev/internal/apitest"
	"podvirt.dev/internal/require"
)

// importSize is that of the imported image: more than one checkpoint apart.
const importSize = 72 << 20

// importEnv is an API server with claims and the rights that the driver is installed with, and a web server.
type importEnv struct {
	server     *apitest.Server
	pool       string
	kubeconfig string
	url        string
	data       []byte
	arrived    chan struct{} // a request for /slow, which is not answered
}

func newImportEnv(t *testing.T) *importEnv {
	t.Helper()
	require.Root(t)
	require.Feature(t, sandbox.Landlock(), "Landlock")
	e := &importEnv{server: apitest.Start(t), pool: pooltest.FileSystem(t, "xfs", 4<<30), data: make([]byte, importSize), arrived: make(chan struct{}, 100)}
	for at := 0; at < importSize; at += 1 << 20 {
		copy(e.data[at:], fmt.Sprintf("block at %d", at))
	}
	e.data[importSize-1] = 1
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		switch {
		case r.URL.Path == "/private" && (user != "me" || password != "secret"):
			w.WriteHeader(http.StatusUnauthorized)
			return
		case r.URL.Path == "/missing":
			http.NotFound(w, r)
			return
		case r.URL.Path == "/slow":
			e.arrived <- struct{}{}
			<-r.Context().Done()
			return
		}
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(e.data))
	}))
	t.Cleanup(web.Close)
	e.url = web.URL
	e.server.Make(t, "shop", "default")
	e.server.Make(t, api.SystemNamespace, "podvirt-csi-hostpath")
	e.server.Apply(t, api.SystemNamespace, "../../../manifests/csi-hostpath/rbac.yaml")
	e.kubeconfig = e.server.Kubeconfig(t, e.server.AccountOn(t, api.SystemNamespace, "podvirt-csi-hostpath", "n1"))
	core, ctx := e.server.Client.CoreV1(), t.Context()
	_, err := core.Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, metav1.CreateOptions{})
	_, err2 := core.ConfigMaps(api.SystemNamespace).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: api.ConfigName}, Data: map[string]string{
			"storage.pools":        fmt.Sprintf("[{name: test, path: %s, default: true}]", e.pool),
			"storage.import.allow": "*,127.0.0.1/32",
		},
	}, metav1.CreateOptions{})
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return e
}

// claim makes a claim that asks for an import.
func (e *importEnv) claim(t *testing.T, name, path string, more map[string]string) {
	t.Helper()
	annotations := map[string]string{api.KeyImportSource: e.url + path}
	maps.Copy(annotations, more)
	_, err := e.server.Client.CoreV1().PersistentVolumeClaims("shop").Create(t.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("96Mi")}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// told waits until claim and events say what is expected.
func (e *importEnv) told(t *testing.T, name, phase string, populated corev1.ConditionStatus, reason, text string) {
	t.Helper()
	core := e.server.Client.CoreV1()
	pooltest.Eventually(t, func() error {
		claim, err := core.PersistentVolumeClaims("shop").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		events, err := core.Events("shop").List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + name})
		if err != nil {
			return err
		}
		seen, condition := []string{}, corev1.ConditionUnknown
		found := false
		for _, event := range events.Items {
			seen = append(seen, event.Reason+": "+event.Message)
			found = found || event.Reason == reason && strings.Contains(event.Message, text)
		}
		for _, c := range claim.Status.Conditions {
			if string(c.Type) == api.ConditionPopulated {
				condition = c.Status
			}
		}
		if !found || claim.Annotations[api.KeyImportPhase] != phase || condition != populated {
			return fmt.Errorf("annotations %v, condition %s, events %q; want phase %s, %s, event %s: %s",
				claim.Annotations, condition, seen, phase, populated, reason, text)
		}
		return nil
	})
}

// imported is the shape of a volume for a claim.
func imported(claim string) shape {
	return shape{name: "import", block: true, size: 96 << 20, parameters: map[string]string{
		"csi.storage.k8s.io/pvc/name": claim, "csi.storage.k8s.io/pvc/namespace": "shop",
	}}
}

// content compares the volume with the image.
func (e *importEnv) content(l *life) step {
	return func(context.Context, grpc.ClientConnInterface) error {
		_, id, _ := strings.Cut(l.handle, "/")
		f, err := os.Open(filepath.Join(e.pool, "volumes", id, "disk.img"))
		if err != nil {
			return err
		}
		defer f.Close()
		got := make([]byte, importSize)
		if _, err := f.ReadAt(got, 0); err != nil {
			return err
		}
		if !bytes.Equal(got, e.data) {
			return errors.New("the volume differs from the image")
		}
		return nil
	}
}

// TestImportKilledAtEveryStep kills the driver before each durable step of an import in turn. After each death a new
// process shows no unfinished volume, the repeated call makes a whole one, and nothing is left when it is deleted (ST-023,
// ST-055). The driver has the rights it is installed with.
func TestImportKilledAtEveryStep(t *testing.T) {
	e := newImportEnv(t)
	e.claim(t, "root", "/image", nil)
	steps := func(l *life) []step { return []step{l.create, l.create, e.content(l), l.delete} }
	start := func(killAt int) func(p *process) {
		return func(p *process) {
			p.kubeconfig = e.kubeconfig
			p.start(killAt)
		}
	}
	killAt := 1
	for ; lifeWithDeath(t, e.pool, imported("root"), steps, start(killAt)); killAt++ {
		pooltest.ExpectNothingLeft(t, e.pool)
		if t.Failed() {
			t.Fatalf("the driver had been killed before step %d", killAt)
		}
	}
	t.Logf("killed at each of %d steps", killAt-1)
	if killAt < 14 {
		t.Errorf("an import has %d durable steps; it must have more", killAt-1)
	}
	e.told(t, "root", "Succeeded", corev1.ConditionTrue, "ImportSucceeded", "the content is complete")
	e.others(t)
}

// others are claims that end otherwise, on one driver.
func (e *importEnv) others(t *testing.T) {
	t.Helper()
	p := newProcess(t, e.pool)
	p.kubeconfig = e.kubeconfig
	defer p.kill()
	p.start(0)
	create := func(claim string) error {
		l := &life{p: p, shape: imported(claim), name: claim}
		if err := p.call(l.create); err != nil {
			return err
		}
		return p.call(l.delete)
	}
	refused := func(claim, reason, text string) {
		t.Helper()
		if err := create(claim); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: error = %v; want %q", claim, err, text)
		}
		e.told(t, claim, "Failed", corev1.ConditionFalse, reason, text)
		pooltest.ExpectNothingLeft(t, e.pool)
	}
	e.claim(t, "missing", "/missing", nil)
	refused("missing", "ImportFailed", "/missing: 404 Not Found")
	e.claim(t, "wrong", "/image", map[string]string{api.KeyImportFormat: "qcow3", api.KeyImportCompression: "zip"})
	refused("wrong", "InvalidRequest", `podvirt.dev/import-compression: "zip"`)
	e.claim(t, "no-ca", "/image", map[string]string{api.KeyImportCA: "example-ca"})
	refused("no-ca", "InvalidRequest", `podvirt.dev/import-ca: "example-ca": ConfigMap shop/example-ca not found`)

	e.claim(t, "private", "/private", map[string]string{api.KeyImportSecret: "login"})
	refused("private", "InvalidRequest", "no permission to read Secret shop/login; grant it with: kubectl vm import grant login")
	e.grant(t)
	pooltest.Eventually(t, func() error { return create("private") }) // the authorizer learns of it a moment later
	e.told(t, "private", "Succeeded", corev1.ConditionTrue, "ImportSucceeded", "complete")

	e.claim(t, "deleted", "/slow", nil)
	ended := make(chan error, 1)
	go func() { ended <- create("deleted") }()
	<-e.arrived
	// Admission protects claims, and no controller takes the protection away here: a claim that is being deleted counts.
	if err := e.server.Client.CoreV1().PersistentVolumeClaims("shop").Delete(t.Context(), "deleted", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "the claim was deleted") {
		t.Errorf("error = %v; want that the claim was deleted", err)
	}
	pooltest.ExpectNothingLeft(t, e.pool)
}

// grant makes a Secret and lets the driver read that one.
func (e *importEnv) grant(t *testing.T) {
	t.Helper()
	meta := metav1.ObjectMeta{Name: "login"}
	ctx := t.Context()
	_, err := e.server.Client.CoreV1().Secrets("shop").Create(ctx, &corev1.Secret{
		ObjectMeta: meta, Type: corev1.SecretTypeBasicAuth, StringData: map[string]string{"username": "me", "password": "secret"},
	}, metav1.CreateOptions{})
	_, err2 := e.server.Client.RbacV1().Roles("shop").Create(ctx, &rbacv1.Role{
		ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{"login"}, Verbs: []string{"get"}},
		},
	}, metav1.CreateOptions{})
	_, err3 := e.server.Client.RbacV1().RoleBindings("shop").Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "login"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "podvirt-csi-hostpath", Namespace: api.SystemNamespace}},
	}, metav1.CreateOptions{})
	if err := errors.Join(err, err2, err3); err != nil {
		t.Fatal(err)
	}
}
