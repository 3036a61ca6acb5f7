package importer

import (
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestSumsFile: the digest is looked up in a file on a server; credentials stay with the host of the source (ST-047).
func TestSumsFile(t *testing.T) {
	data := content()
	long := sha512.Sum512(data)
	right, wrong := strings.TrimPrefix(digestOf(data), "sha256:"), strings.Repeat("0", 64)
	files := map[string][]byte{
		"raw":    data,
		"GNU":    []byte(wrong + "  other\n" + right + "  raw\n"),
		"binary": []byte("# comment\n" + strings.ToUpper(right) + " *./raw\n"),
		"BSD":    []byte("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nSHA256 (other) = " + wrong + "\nSHA256 (raw) = " + right + "\n"),
		"both":   []byte(wrong + "  raw\n" + hex.EncodeToString(long[:]) + "  raw\n"),
		"lie":    []byte(wrong + "  raw\n"),
		"others": []byte(right + "  other\n" + right + "  raw.xz\n"),
		"weak":   []byte(strings.Repeat("0", 32) + "  raw\n"),
		"noise":  []byte(strings.Repeat("x", 200<<10)),
	}
	url := listen(t, &site{files: files})
	var credentials atomic.Int64
	elsewhere := listen(t, &site{files: files, before: func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" || r.Header.Get("X-Tenant") != "" {
			credentials.Add(1)
		}
		return false
	}})
	secret := Objects{Secret: map[string][]byte{"token": []byte("secret")}, Headers: []string{"X-Tenant: shop"}}
	for name, row := range map[string]struct{ sums, text string }{
		"GNU":         {url + "/GNU", ""},
		"binary":      {url + "/binary", ""},
		"BSD":         {url + "/BSD", ""},
		"two digests": {url + "/both", ""},
		"elsewhere":   {elsewhere + "/GNU", ""},
		"other bytes": {url + "/lie", "checksum differs: expected sha256:" + wrong},
		"no line":     {url + "/others", url + "/others: none of its 2 lines is for raw"},
		"md5 only":    {url + "/weak", "it has no sha256 or sha512 of raw"},
		"no sums":     {url + "/noise", "not a sums file"},
		"missing":     {url + "/nothing", "/nothing: 404 Not Found"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := &attempt{url: url + "/raw?x=y", options: map[string]string{"checksum": row.sums}, objects: secret}
			_, err := a.run(t)
			var refused Refused
			switch {
			case row.text == "" && err == nil:
				a.holds(t)
			case row.text == "" || !errors.As(err, &refused) || !strings.Contains(err.Error(), row.text):
				t.Errorf("error = %v; want %q", err, row.text)
			}
		})
	}
	t.Cleanup(func() {
		if credentials.Load() > 0 {
			t.Error("credentials went to another host")
		}
	})
}

// TestHeadersOfSecrets: the values of Secrets go to the server as headers do (ST-049).
func TestHeadersOfSecrets(t *testing.T) {
	data := content()
	url := listen(t, &site{files: map[string][]byte{"raw": data}, before: func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("X-A") != "b" || r.Header.Get("X-C") != "d" {
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	}})
	lines, wrong := Headers(map[string][]byte{"one": []byte("X-C: d\n")})
	if wrong != "" {
		t.Fatal(wrong)
	}
	a := &attempt{url: url + "/raw", options: map[string]string{"headers": "X-A: b"}, objects: Objects{Headers: lines}}
	if _, err := a.run(t); err != nil {
		t.Fatal(err)
	}
	a.holds(t)
	for _, bad := range []string{"nonsense", "", "X-A: b\nX-C: d"} {
		if _, wrong := Headers(map[string][]byte{"k": []byte(bad)}); wrong != `key k of the Secret is not "Name: value"` {
			t.Errorf("%q: %q", bad, wrong)
		}
	}
}

// TestBandwidth: an import takes no more of the network than it may, compressed or in pieces (ST-060).
func TestBandwidth(t *testing.T) {
	url := listen(t, &site{files: map[string][]byte{"raw": content()}})
	began := time.Now()
	a := &attempt{url: url + "/raw", bandwidth: 4 << 20}
	if _, err := a.run(t); err != nil {
		t.Fatal(err)
	}
	a.holds(t)
	if took := time.Since(began); took < 900*time.Millisecond {
		t.Errorf("4 MiB came in %s at 4 MiB a second", took)
	}
}

// TestRetryAfter: a server that wants to be left alone for a while is (ST-042).
func TestRetryAfter(t *testing.T) {
	var first atomic.Pointer[time.Time]
	for name, value := range map[string]func() string{
		"seconds": func() string { return "2" },
		"date":    func() string { return time.Now().Add(3 * time.Second).UTC().Format(http.TimeFormat) },
	} {
		first.Store(nil)
		url := listen(t, &site{files: map[string][]byte{"raw": content()}, before: func(w http.ResponseWriter, _ *http.Request) bool {
			now := time.Now()
			if !first.CompareAndSwap(nil, &now) {
				if early := time.Since(*first.Load()); early < 1900*time.Millisecond {
					t.Errorf("%s: asked again after %s", name, early)
				}
				return false
			}
			w.Header().Set("Retry-After", value())
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}})
		if _, err := (&attempt{url: url + "/raw"}).run(t); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestIPv6: a server that has IPv6 only is reached, by its address.
func TestIPv6(t *testing.T) {
	url, err := listenOn(t, "[::1]:0", &site{files: map[string][]byte{"raw": content()}})
	if err != nil {
		t.Skip("this machine has no IPv6: " + err.Error())
	}
	a := &attempt{url: url + "/raw", policy: &Policy{Allow: []string{"::1", "*"}}}
	if _, err := a.run(t); err != nil {
		t.Fatal(err)
	}
	a.holds(t)
	refusal := (&attempt{url: url + "/raw", policy: &Policy{}})
	if _, err := refusal.run(t); err == nil || !strings.Contains(err.Error(), "::1 is a loopback address") {
		t.Errorf("error = %v; want a refusal", fmt.Sprint(err))
	}
}
