package installer

import (
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestClusterID(t *testing.T) {
	for name, row := range map[string]struct {
		status     int
		body, want string
		says       string
	}{
		"there":         {http.StatusOK, `{"metadata":{"uid":"u-1"}}`, "u-1", ""},
		"not allowed":   {http.StatusForbidden, `{}`, "", "403"},
		"not an object": {http.StatusOK, `nonsense`, "", "invalid character"},
		"without UID":   {http.StatusOK, `{}`, "", "it has no UID"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/api/v1/namespaces/kube-system" || r.Header.Get("Authorization") != "Bearer secret" {
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				w.WriteHeader(row.status)
				_, _ = w.Write([]byte(row.body))
			}))
			defer server.Close()
			got, err := apiOf(t, server, true).ClusterID(t.Context())
			if got != row.want || (err == nil) != (row.says == "") || err != nil && !strings.Contains(err.Error(), row.says) {
				t.Errorf("ClusterID = %q, %v; want %q %q", got, err, row.want, row.says)
			}
			if _, err := apiOf(t, server, false).ClusterID(t.Context()); err == nil {
				t.Error("a server with a certificate of somebody else was believed")
			}
		})
	}
	if _, err := (API{}).ClusterID(t.Context()); err == nil {
		t.Error("outside of a cluster there is an ID")
	}
}

// apiOf mounts a service account for the server; one that is not trusted has the certificate of another authority.
func apiOf(t *testing.T, server *httptest.Server, trusted bool) API {
	t.Helper()
	dir := t.TempDir()
	certificate := server.Certificate().Raw
	if !trusted {
		certificate = append([]byte{}, certificate...)
		certificate[len(certificate)-1] ^= 1
	}
	must(t, os.WriteFile(filepath.Join(dir, "ca.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "token"), []byte("secret\n"), 0o600))
	where, err := url.Parse(server.URL)
	must(t, err)
	host, port, err := net.SplitHostPort(where.Host)
	must(t, err)
	return API{Host: host, Port: port, Dir: dir}
}
