package pki

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

func TestLeafIsTrustedAndKept(t *testing.T) {
	d := Dir(t.TempDir())
	leaf := Leaf{Name: "apiserver", CommonName: "kube-apiserver", Groups: []string{"system:masters"}, Hosts: []string{"10.0.0.1", "kubernetes"}}
	if err := d.Authority("ca"); err != nil {
		t.Fatal(err)
	}
	if err := d.Leaf("ca", leaf); err != nil {
		t.Fatal(err)
	}
	ca, _, err := d.load("ca")
	if err != nil {
		t.Fatal(err)
	}
	cert, _, err := d.load("apiserver")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for _, host := range leaf.Hosts {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("as server %s: %v", host, err)
		}
	}
	before, _ := os.ReadFile(d.Cert("apiserver"))
	if err := d.Leaf("ca", leaf); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.ReadFile(d.Cert("apiserver")); string(after) != string(before) {
		t.Error("a second call made another certificate")
	}
}

func TestKubeconfigLoads(t *testing.T) {
	d := Dir(t.TempDir())
	if err := d.Authority("ca"); err != nil {
		t.Fatal(err)
	}
	if err := d.Leaf("ca", Leaf{Name: "admin", CommonName: "admin"}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := d.Kubeconfig(path, "https://10.0.0.1:6443", "ca", "admin"); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != "https://10.0.0.1:6443" || len(config.CertData) == 0 || len(config.KeyData) == 0 || len(config.CAData) == 0 {
		t.Errorf("incomplete: %+v", config)
	}
}
