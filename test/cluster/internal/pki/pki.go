// Package pki makes the keys, certificates and kubeconfigs of the local cluster. What is there already is kept.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"podvirt.dev/internal/atomicfile"
)

const lifetime = 10 * 365 * 24 * time.Hour

// Dir is a directory of NAME.key and NAME.crt files.
type Dir string

// Leaf describes a certificate signed by one of the directory's authorities.
type Leaf struct {
	Name       string // of the files
	CommonName string
	Groups     []string // Kubernetes reads the organisation as groups
	Hosts      []string // DNS names and addresses: makes it a server's certificate too
}

// Key is the path of a private key.
func (d Dir) Key(name string) string { return filepath.Join(string(d), name+".key") }

// Cert is the path of a certificate.
func (d Dir) Cert(name string) string { return filepath.Join(string(d), name+".crt") }

// Authority makes a self-signed authority.
func (d Dir) Authority(name string) error {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "podvirt-local-" + name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	return d.issue(name, template, "")
}

// Leaf makes a certificate signed by an authority of the directory.
func (d Dir) Leaf(authority string, leaf Leaf) error {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: leaf.CommonName, Organization: leaf.Groups},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, host := range leaf.Hosts {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	return d.issue(leaf.Name, template, authority)
}

// SigningKey makes a key pair without a certificate: NAME.key and NAME.pub.
func (d Dir) SigningKey(name string) error {
	if present(d.Key(name), d.public(name)) {
		return nil
	}
	key, err := d.newKey(name)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	return d.write(d.public(name), "PUBLIC KEY", der)
}

func (d Dir) public(name string) string { return filepath.Join(string(d), name+".pub") }

// issue writes the certificate last: a key without one is made anew.
func (d Dir) issue(name string, template *x509.Certificate, authority string) error {
	if present(d.Key(name), d.Cert(name)) {
		return nil
	}
	key, err := d.newKey(name)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(lifetime)
	parent, signer := template, crypto.Signer(key)
	if authority != "" {
		if parent, signer, err = d.load(authority); err != nil {
			return fmt.Errorf("reading authority %s: %w", authority, err)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return err
	}
	return d.write(d.Cert(name), "CERTIFICATE", der)
}

func (d Dir) newKey(name string) (*ecdsa.PrivateKey, error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, d.write(d.Key(name), "EC PRIVATE KEY", der)
}

func (d Dir) load(name string) (*x509.Certificate, crypto.Signer, error) {
	certDER, err := readPEM(d.Cert(name))
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := readPEM(d.Key(name))
	if err != nil {
		return nil, nil, err
	}
	key, err := x509.ParseECPrivateKey(keyDER)
	return cert, key, err
}

func (d Dir) write(path, kind string, der []byte) error {
	return atomicfile.Write(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

func readPEM(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM block", path)
	}
	return block.Bytes, nil
}

func present(paths ...string) bool {
	for _, path := range paths {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return true
}

// Kubeconfig writes a kubeconfig, with everything inside, for the holder of certificate name.
func (d Dir) Kubeconfig(path, server, authority, name string) error {
	var data [3][]byte
	for i, file := range []string{d.Cert(authority), d.Cert(name), d.Key(name)} {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		data[i] = content
	}
	const cluster = "podvirt-local"
	config := clientcmdapi.NewConfig()
	config.Clusters[cluster] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: data[0]}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: data[1], ClientKeyData: data[2]}
	config.Contexts[cluster] = &clientcmdapi.Context{Cluster: cluster, AuthInfo: name}
	config.CurrentContext = cluster
	content, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, content, 0o600)
}
