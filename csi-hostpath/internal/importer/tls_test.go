package importer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// certificate is a self-signed one with its key, as PEM.
func certificate(t *testing.T, address string, until time.Time) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: until.Add(-48 * time.Hour), NotAfter: until, IPAddresses: []net.IP{net.ParseIP(address)},
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	made, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: made}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})
}

// TestCertificates: a client shows its certificate where a Secret has one; a server's that expired, or that is of another
// name, is refused for good (ST-048).
func TestCertificates(t *testing.T) {
	tomorrow, yesterday := time.Now().Add(24*time.Hour), time.Now().Add(-24*time.Hour)
	clientCert, clientKey := certificate(t, "127.0.0.1", tomorrow)
	known := x509.NewCertPool()
	known.AppendCertsFromPEM(clientCert)
	for name, row := range map[string]struct {
		address string
		until   time.Time
		secret  map[string][]byte
		text    string // empty: it works
	}{
		"client with a certificate": {"127.0.0.1", tomorrow, map[string][]byte{"tls.crt": clientCert, "tls.key": clientKey}, ""},
		"expired":                   {"127.0.0.1", yesterday, nil, "certificate has expired"},
		"another name":              {"127.0.0.2", tomorrow, nil, "certificate is valid for 127.0.0.2, not 127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cert, key := certificate(t, row.address, row.until)
			pair, err := tls.X509KeyPair(cert, key)
			if err != nil {
				t.Fatal(err)
			}
			server := httptest.NewUnstartedServer(&site{files: map[string][]byte{"raw": content()}})
			server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: known, ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS12}
			if row.secret != nil {
				server.TLS.ClientAuth = tls.RequireAndVerifyClientCert
			}
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			server.StartTLS()
			t.Cleanup(server.Close)
			a := &attempt{url: server.URL + "/raw", objects: Objects{CA: map[string]string{"one": string(clientCert), "two": string(cert)}, Secret: row.secret}}
			_, err = a.run(t)
			if row.text == "" {
				if err != nil {
					t.Fatal(err)
				}
				a.holds(t)
			} else if err == nil || !strings.Contains(err.Error(), row.text) {
				t.Errorf("error = %v; want %q", err, row.text)
			}
		})
	}
}
