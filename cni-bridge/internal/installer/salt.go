package installer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// serviceAccount is where the kubelet mounts the credentials of a Pod.
const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

// API is how the installer reaches the API server: for one GET, without a client library.
type API struct {
	Host, Port string // KUBERNETES_SERVICE_HOST and _PORT
	Dir        string // token and ca.crt; "": as the kubelet mounts them
}

// apiTimeout bounds the one request.
const apiTimeout = 10 * time.Second

// ClusterID returns the UID of Namespace kube-system, the salt of derived MACs (network.md 2.6): two clusters on one
// network have different MACs for VMs of the same name.
func (a API) ClusterID(ctx context.Context) (string, error) {
	if a.Host == "" {
		return "", errors.New("not in a cluster: KUBERNETES_SERVICE_HOST is not set; give --mac-salt")
	}
	dir := a.Dir
	if dir == "" {
		dir = serviceAccount
	}
	token, err1 := os.ReadFile(filepath.Join(dir, "token"))
	ca, err2 := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err := errors.Join(err1, err2); err != nil {
		return "", fmt.Errorf("reading the service account: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return "", errors.New("reading the service account: ca.crt holds no certificate")
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	url := "https://" + net.JoinHostPort(a.Host, a.Port) + "/api/v1/namespaces/kube-system"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", fmt.Errorf("asking the API server: %w", err)
	}
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return "", fmt.Errorf("asking the API server: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	return readUID(response)
}

func readUID(response *http.Response) (uid string, _ error) {
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return "", fmt.Errorf("asking the API server: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("asking the API server for Namespace kube-system: %s", response.Status)
	}
	var namespace struct {
		Metadata struct {
			UID string `json:"uid"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(body, &namespace); err != nil {
		return "", fmt.Errorf("asking the API server for Namespace kube-system: %w", err)
	}
	if namespace.Metadata.UID == "" {
		return "", errors.New("asking the API server for Namespace kube-system: it has no UID")
	}
	return namespace.Metadata.UID, nil
}
