package importer

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"podvirt.dev/api"
)

const (
	testAccess = "AKIAIOSFODNN7EXAMPLE"
	testSecret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
)

// TestSignature is the example "GET Object" of Amazon's "Signature Calculations for the Authorization Header".
func TestSignature(t *testing.T) {
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "https://examplebucket.s3.amazonaws.com/test.txt", nil)
	r.Header.Set("Range", "bytes=0-9")
	s := &s3Signer{access: testAccess, secret: testSecret, region: "us-east-1", now: func() time.Time {
		return time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)
	}}
	if err := s.sign(r); err != nil {
		t.Fatal(err)
	}
	want := "AWS4-HMAC-SHA256 Credential=" + testAccess + "/20130524/us-east-1/s3/aws4_request," +
		"SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
	if got := r.Header.Get("Authorization"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestObjectURLs: where an object is, by path and by host.
func TestObjectURLs(t *testing.T) {
	for source, want := range map[string]string{
		"s3://b/a/k.img":                                  "https://b.s3.us-east-1.amazonaws.com/a/k.img us-east-1",
		"s3://b/k?region=eu-west-1":                       "https://b.s3.eu-west-1.amazonaws.com/k eu-west-1",
		"s3://b.c/k":                                      "https://s3.us-east-1.amazonaws.com/b.c/k us-east-1",
		"s3://b/k?style=path":                             "https://s3.us-east-1.amazonaws.com/b/k us-east-1",
		"s3://b/k?endpoint=http://h:9000/":                "http://h:9000/b/k us-east-1",
		"s3://b/k?endpoint=https://h&style=host&region=x": "https://b.h/k x",
		"s3://b/a%20b+c/%C3%A4?versionId=a/b":             "https://b.s3.us-east-1.amazonaws.com/a%20b%2Bc/%C3%A4?versionId=a%2Fb us-east-1",
	} {
		parsed, err := url.Parse(source)
		if err != nil {
			t.Fatal(err)
		}
		target, region, err := s3Object(parsed)
		if got := target + " " + region; err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", source, got, err, want)
		}
	}
}

// s3Server runs the S3-compatible server of the module test/conformance over files.
func s3Server(t *testing.T, files map[string][]byte) (address string) {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(t.TempDir(), "s3server")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./s3server")
	build.Dir = "../../../test/conformance"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), program, testAccess, testSecret, dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close() // ends it
		_ = cmd.Wait()    // the context may have ended it
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func s3Keys(access, secret string) Objects {
	return Objects{Secret: map[string][]byte{s3Access: []byte(access), s3Secret: []byte(secret)}}
}

// TestS3: every format comes from a server that verifies signatures; what it refuses is told by its code (ST-043).
func TestS3(t *testing.T) {
	files := images(t)
	address := s3Server(t, files)
	for name, data := range files {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := &attempt{
				url: "s3://images/" + name + "?endpoint=http://" + address, objects: s3Keys(testAccess, testSecret),
				options: map[string]string{"checksum": digestOf(data)},
			}
			if _, err := a.run(t); err != nil {
				t.Fatal(err)
			}
			a.holds(t)
		})
	}
	for name, row := range map[string]struct {
		object  string
		objects Objects
		text    string
	}{
		"wrong secret": {"images/raw.none", s3Keys(testAccess, "wrong"), "403 Forbidden (SignatureDoesNotMatch)"},
		"unknown key":  {"images/raw.none", s3Keys("nobody", testSecret), "403 Forbidden (InvalidAccessKeyId)"},
		"no object":    {"images/nothing", s3Keys(testAccess, testSecret), "404 Not Found (NoSuchKey)"},
		"no bucket":    {"nothing/raw.none", s3Keys(testAccess, testSecret), "404 Not Found (NoSuchBucket)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := (&attempt{url: "s3://" + row.object + "?endpoint=http://" + address, objects: row.objects}).run(t)
			var refused Refused
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), row.text) {
				t.Errorf("error = %v; want %q", err, row.text)
			}
		})
	}
}

// TestS3Variants: what that server does not have: other regions, anonymous reading, session tokens, redirects to others.
func TestS3Variants(t *testing.T) {
	data := content()
	var last atomic.Pointer[http.Header]
	elsewhere := listen(t, &site{files: map[string][]byte{"raw": data}, before: func(_ http.ResponseWriter, r *http.Request) bool {
		last.Store(&r.Header)
		return false
	}})
	address := strings.TrimPrefix(listen(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		last.Store(&r.Header)
		switch r.URL.Path {
		case "/b/far":
			w.Header().Set("X-Amz-Bucket-Region", "eu-west-1")
			w.WriteHeader(http.StatusMovedPermanently)
			fmt.Fprint(w, "<Error><Code>PermanentRedirect</Code></Error>")
		case "/b/region":
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>")
		case "/b/away":
			http.Redirect(w, r, elsewhere+"/raw", http.StatusTemporaryRedirect)
		default:
			(&site{files: map[string][]byte{"b/raw": data}}).ServeHTTP(w, r)
		}
	})), "http://")
	source := func(object string) string { return "s3://b/" + object + "?endpoint=http://" + address }
	for object, text := range map[string]string{
		"far":    "301 Moved Permanently (PermanentRedirect: the bucket is in region eu-west-1)",
		"region": "400 Bad Request (AuthorizationHeaderMalformed: the bucket is in region eu-west-1)",
	} {
		_, err := (&attempt{url: source(object), objects: s3Keys("a", "b")}).run(t)
		var refused Refused
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), text) {
			t.Errorf("error = %v; want %q", err, text)
		}
	}
	anonymous := &attempt{url: source("raw")}
	if _, err := anonymous.run(t); err != nil || last.Load().Get("Authorization") != "" {
		t.Errorf("without keys: %v, %v", err, *last.Load())
	}
	anonymous.holds(t)
	session := s3Keys("a", "b")
	session.Secret["sessionToken"] = []byte("temporary")
	if _, err := (&attempt{url: source("raw"), objects: session}).run(t); err != nil || last.Load().Get("X-Amz-Security-Token") != "temporary" {
		t.Errorf("with a session token: %v, %v", err, *last.Load())
	}
	if _, err := (&attempt{url: source("away"), objects: session}).run(t); err != nil {
		t.Error(err)
	}
	if got := *last.Load(); got.Get("Authorization") != "" || got.Get("X-Amz-Security-Token") != "" {
		t.Errorf("elsewhere came %v", got)
	}
}

// TestS3ByHost: a bucket is a host of Amazon's, in its region, over TLS that is verified.
func TestS3ByHost(t *testing.T) {
	data := content()
	const host = "b.s3.eu-west-1.amazonaws.com"
	server, ca := secureFor(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != host || !strings.Contains(r.Header.Get("Authorization"), "/eu-west-1/s3/aws4_request") || r.URL.Query().Get("versionId") != "7" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		(&site{files: map[string][]byte{"a b/raw": data}}).ServeHTTP(w, r)
	}), host)
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		if address != host+":443" {
			return nil, fmt.Errorf("nobody asked for %s", address)
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", server.Listener.Addr().String())
	}
	objects := s3Keys("a", "b")
	a := &attempt{url: "s3://b/a%20b/raw?region=eu-west-1&versionId=7", dial: dial, objects: objects}
	var refused Refused
	if _, err := a.run(t); !errors.As(err, &refused) || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("without the CA: %v", err)
	}
	a.objects.CA = map[string]string{"ca": ca}
	if _, err := a.run(t); err != nil {
		t.Fatal(err)
	}
	a.holds(t)
}

// secureFor is a server with a certificate for names.
func secureFor(t *testing.T, handler http.Handler, names ...string) (server *httptest.Server, ca string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		DNSNames: names, IsCA: true, BasicConstraintsValid: true,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	server = httptest.NewUnstartedServer(handler)
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{raw}, PrivateKey: private}}}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}))
}

// googleEmulator answers for Google's token and storage hosts, with a certificate for both.
type googleEmulator struct {
	server *httptest.Server
	ca     string
	key    *rsa.PrivateKey
	files  map[string][]byte
	tokens atomic.Int64
}

func newGoogleEmulator(t *testing.T, files map[string][]byte) *googleEmulator {
	t.Helper()
	g := &googleEmulator{files: files}
	var err error
	if g.key, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	g.server, g.ca = secureFor(t, g, "storage.googleapis.com", "oauth2.googleapis.com")
	return g
}

func (g *googleEmulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Host == "oauth2.googleapis.com" {
		if !g.verify(r.PostFormValue("assertion")) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": fmt.Sprint("token", g.tokens.Add(1)), "expires_in": 3600})
		return
	}
	if r.Header.Get("Authorization") != "Bearer token1" && !strings.HasPrefix(r.URL.Path, "/public/") {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, "<Error><Code>AccessDenied</Code></Error>")
		return
	}
	(&site{files: g.files, cut: 1 << 20}).ServeHTTP(w, r)
}

// verify checks the assertion of a service account.
func (g *googleEmulator) verify(assertion string) bool {
	parts := strings.Split(assertion, ".")
	if len(parts) != 3 {
		return false
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err != nil || rsa.VerifyPKCS1v15(&g.key.PublicKey, crypto.SHA256, sum[:], signature) != nil {
		return false
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct{ Iss, Scope, Aud string }
	return err == nil && json.Unmarshal(raw, &claims) == nil && claims.Iss == "me@project" && claims.Aud == googleToken && claims.Scope == googleScope
}

func (g *googleEmulator) account(t *testing.T, key *rsa.PrivateKey) Objects {
	t.Helper()
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	account, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "me@project", "private_key_id": "1",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})),
	})
	if err != nil {
		t.Fatal(err)
	}
	return Objects{CA: map[string]string{"ca": g.ca}, Secret: map[string][]byte{googleKey: account}}
}

// TestGoogleStorage: an object is read with the JSON key of a service account, one token for all its requests; one that is
// public without (ST-043). The emulator takes the place of Google's addresses.
func TestGoogleStorage(t *testing.T) {
	data := content()
	google := newGoogleEmulator(t, map[string][]byte{"b/raw": data, "public/raw": data})
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		if address != "storage.googleapis.com:443" && address != "oauth2.googleapis.com:443" {
			return nil, fmt.Errorf("nobody asked for %s", address)
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", google.server.Listener.Addr().String())
	}
	a := &attempt{url: "gs://b/raw", dial: dial, objects: google.account(t, google.key)}
	if _, err := a.run(t); err != nil {
		t.Fatal(err)
	}
	a.holds(t)
	if google.tokens.Load() != 1 || a.last.Restarts < 3 {
		t.Errorf("%d tokens for %d connections; want 1 for all", google.tokens.Load(), a.last.Restarts+1)
	}
	open := &attempt{url: "gs://public/raw", dial: dial, objects: Objects{CA: map[string]string{"ca": google.ca}}}
	if _, err := open.run(t); err != nil {
		t.Fatal(err)
	}
	open.holds(t)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		url     string
		objects Objects
		text    string
	}{
		"no key":      {"gs://b/raw", open.objects, "403 Forbidden (AccessDenied)"},
		"another key": {"gs://b/raw", google.account(t, other), "the token of the service account: 401 Unauthorized"},
		"not a key":   {"gs://b/raw", Objects{Secret: map[string][]byte{googleKey: []byte("{}")}}, "gcs.json of the Secret is no key of a service account"},
	} {
		_, err := (&attempt{url: row.url, dial: dial, objects: row.objects}).run(t)
		var refused Refused
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), row.text) {
			t.Errorf("%s: error = %v; want %q", name, err, row.text)
		}
	}
}

// TestKeysForWeb: a pair of keys is user and password for a web server (storage.md 2.1).
func TestKeysForWeb(t *testing.T) {
	url := listen(t, &site{files: map[string][]byte{"raw": content()}, before: func(w http.ResponseWriter, r *http.Request) bool {
		user, password, _ := r.BasicAuth()
		if user != "me" || password != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	}})
	objects := s3Keys("me", "secret")
	if text := objects.Check(); text != "" {
		t.Fatal(text)
	}
	a := &attempt{url: url + "/raw", objects: objects, options: map[string]string{}}
	if _, err := a.run(t); err != nil {
		t.Fatal(err)
	}
	if got := (Policy{Insecure: []string{"h:9000"}}).Unverified("s3://b/k?endpoint=https://h:9000"); got != "" {
		t.Error(api.KeyImportInsecure, got)
	}
}
