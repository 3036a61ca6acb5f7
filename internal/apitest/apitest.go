// Package apitest runs a real etcd and kube-apiserver for one test: seconds instead of a cluster, and no fake in between.
// Nothing else runs there: no controller, no scheduler, no kubelet.
package apitest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"podvirt.dev/internal/require"
)

const (
	startTimeout = 90 * time.Second
	stopTimeout  = 10 * time.Second
	adminToken   = "admin-token"
)

// Server is a running API server.
type Server struct {
	// Admin may do everything.
	Admin *rest.Config
	// Client is one that uses Admin.
	Client kubernetes.Interface
}

// Start runs a server until the test ends. Programs are those that the local cluster has built (PODVIRT_CACHE).
func Start(t testing.TB) *Server {
	t.Helper()
	etcd, apiserver := Program(t, "etcd"), Program(t, "kube-apiserver")
	dir := t.TempDir()
	etcdURL := "http://127.0.0.1:" + FreePort(t)
	run(t, filepath.Join(dir, "etcd.log"), etcd, // its end shows in the API server's log
		"--data-dir="+filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--log-level=error",
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls=http://127.0.0.1:"+FreePort(t))

	port := FreePort(t)
	address := "127.0.0.1:" + port
	key := writeKey(t, dir)
	tokens := filepath.Join(dir, "tokens.csv")
	write(t, tokens, adminToken+`,admin,admin,"system:masters"`+"\n")
	ended := run(t, filepath.Join(dir, "apiserver.log"), apiserver,
		"--etcd-servers="+etcdURL, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port="+port,
		"--cert-dir="+filepath.Join(dir, "certificates"), "--token-auth-file="+tokens,
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+key,
		"--service-account-signing-key-file="+key, "--service-cluster-ip-range=10.96.0.0/24",
		"--endpoint-reconciler-type=none",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true")

	s := &Server{Admin: &rest.Config{
		Host: "https://" + address, BearerToken: adminToken, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{ServerName: "kubernetes.default.svc"},
	}}
	s.awaitReady(t, dir, ended)
	return s
}

// AccountOn returns the credentials of a ServiceAccount as a Pod on a node has them: the token is bound to a Pod that is
// bound to the node. Account and Pod are made if they are missing.
func (s *Server) AccountOn(t testing.TB, namespace, account, node string) *rest.Config {
	t.Helper()
	s.Make(t, namespace, account)
	ctx := t.Context()
	pod, err := s.Client.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: account + "-"},
		Spec: corev1.PodSpec{
			NodeName: node, ServiceAccountName: account,
			Containers: []corev1.Container{{Name: "c", Image: "none"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	bound := &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}
	return s.as(t, namespace, account, bound)
}

// Account returns the credentials of a ServiceAccount that are bound to no Pod.
func (s *Server) Account(t testing.TB, namespace, account string) *rest.Config {
	t.Helper()
	s.Make(t, namespace, account)
	return s.as(t, namespace, account, nil)
}

// Make makes a namespace and a ServiceAccount in it, if they are missing.
func (s *Server) Make(t testing.TB, namespace, account string) {
	t.Helper()
	core := s.Client.CoreV1()
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }
	if _, err := core.Namespaces().Get(t.Context(), namespace, metav1.GetOptions{}); err != nil {
		if _, err := core.Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: meta(namespace)}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := core.ServiceAccounts(namespace).Get(t.Context(), account, metav1.GetOptions{}); err != nil {
		if _, err := core.ServiceAccounts(namespace).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: meta(account)}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// Kubeconfig writes the credentials to a file and returns its name.
func (s *Server) Kubeconfig(t testing.TB, config *rest.Config) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "kubeconfig")
	write(t, name, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "test",
"clusters": [{"name": "test", "cluster": {"server": %q, "certificate-authority-data": %q, "tls-server-name": %q}}],
"users": [{"name": "test", "user": {"token": %q}}],
"contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}]}`,
		config.Host, base64.StdEncoding.EncodeToString(config.CAData), config.ServerName, config.BearerToken))
	return name
}

func (s *Server) as(t testing.TB, namespace, account string, bound *authenticationv1.BoundObjectReference) *rest.Config {
	t.Helper()
	token, err := s.Client.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), account,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: bound}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.CopyConfig(s.Admin)
	config.BearerToken = token.Status.Token
	return config
}

// awaitReady waits until the server answers and its own objects are there.
func (s *Server) awaitReady(t testing.TB, dir string, ended <-chan struct{}) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	for {
		err := s.ready(ctx, filepath.Join(dir, "certificates", "apiserver.crt"))
		if err == nil {
			return
		}
		select {
		case <-tick.C:
			continue
		case <-ended:
		case <-ctx.Done():
		}
		text, _ := os.ReadFile(filepath.Join(dir, "apiserver.log"))
		t.Fatalf("kube-apiserver ended or is not ready after %v: %v\n%s", startTimeout, err, text)
	}
}

// ready says why the server does not serve yet. Its certificate is read again each time: the file may be half written.
func (s *Server) ready(ctx context.Context, certificate string) error {
	ca, err := os.ReadFile(certificate)
	if err != nil {
		return err
	}
	s.Admin.CAData = ca
	client, err := kubernetes.NewForConfig(s.Admin)
	if err != nil {
		return err
	}
	s.Client = client
	return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

// Program returns the path of a program of Kubernetes that the local cluster has built (PODVIRT_CACHE).
func Program(t testing.TB, name string) string {
	t.Helper()
	cache := os.Getenv("PODVIRT_CACHE")
	if cache == "" {
		cache = "/var/cache/podvirt"
	}
	builds, err := filepath.Glob(filepath.Join(cache, "bin", name+"-v*"))
	require.Feature(t, err == nil && len(builds) > 0, name+" in "+cache+"/bin")
	slices.SortFunc(builds, func(a, b string) int { return modified(t, b).Compare(modified(t, a)) })
	return builds[0]
}

func modified(t testing.TB, name string) time.Time {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.ModTime()
}

// run starts a program that is stopped at the end of the test, and that dies with the test process. The channel is
// closed when it has ended.
func run(t testing.TB, log, program string, args ...string) <-chan struct{} {
	t.Helper()
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.WithoutCancel(t.Context()) // which ends before the clean-up, where the program is stopped
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // how it ended is in its log
		_ = out.Close()
	}()
	t.Cleanup(func() {
		kill := time.AfterFunc(stopTimeout, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	})
	return ended
}

// FreePort returns a TCP port of 127.0.0.1 that was free a moment ago.
func FreePort(t testing.TB) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// writeKey writes the key that signs tokens of ServiceAccounts.
func writeKey(t testing.TB, dir string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "accounts.key")
	write(t, name, string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})))
	return name
}

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
