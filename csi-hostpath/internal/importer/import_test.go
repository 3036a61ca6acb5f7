package importer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/sandbox"
	"podvirt.dev/internal/cli"
	"podvirt.dev/internal/require"
)

// TestMain makes the test binary the confined process.
func TestMain(m *testing.M) {
	if len(os.Args) < 2 || os.Args[1] != sandbox.Command {
		m.Run()
		return
	}
	cli.Main(func(ctx context.Context, args []string, std cli.Streams) int {
		if err := Child(ctx, args[1:], std.In, std.Out); err != nil {
			fmt.Fprintln(std.Err, err)
		}
		return 0
	})
}

const diskSize = 8 << 20

// content is what all images hold.
func content() []byte {
	data := make([]byte, 4<<20)
	random := rand.New(rand.NewPCG(3, 4))
	for _, from := range []int{0, 2 << 20} {
		for i := range 400 << 10 {
			data[from+i] = byte(random.Uint32())
		}
	}
	data[len(data)-1] = 1
	return data
}

// images are files by name: FORMAT.COMPRESSION. Those of other programs are not packed again.
func images(t *testing.T) map[string][]byte {
	t.Helper()
	for _, program := range []string{"qemu-img", "gzip", "xz", "zstd", "bzip2"} {
		_, err := exec.LookPath(program)
		require.Feature(t, err == nil, program)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "raw"), content(), 0o600); err != nil {
		t.Fatal(err)
	}
	script := "qemu-img convert -O qcow2 raw qcow2; qemu-img convert -c -O qcow2 raw packed\n" +
		"for f in vmdk vdi vhdx; do qemu-img convert -O $f raw $f.none; done; qemu-img convert -O vpc -o force_size=on raw vhd.none\n" +
		"qemu-img convert -O vpc -o force_size=on,subformat=fixed raw fixed.none; qemu-img convert -O vmdk -o subformat=streamOptimized raw disk1.vmdk\n" +
		"echo '<Envelope/>' >vm.ovf; tar cf appliance.ova vm.ovf disk1.vmdk; mv disk1.vmdk stream.none; rm vm.ovf\n" +
		"for f in raw qcow2 packed; do cp $f $f.none; gzip -1 <$f >$f.gz; xz -0 <$f >$f.xz; zstd -q -1 <$f >$f.zst; bzip2 -1 <$f >$f.bz2; done"
	cmd := exec.Command("sh", "-e", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.*"))
	if err != nil {
		t.Fatal(err)
	}
	made := map[string][]byte{}
	for _, file := range files {
		if made[filepath.Base(file)], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	return made
}

// site is a web server with files, and what is particular about it.
type site struct {
	files  map[string][]byte
	noETag bool
	cut    int64 // bytes after which each answer breaks off
	pause  time.Duration
	before func(w http.ResponseWriter, r *http.Request) (handled bool)

	answers atomic.Int64
	bytes   atomic.Int64
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.answers.Add(1)
	if s.before != nil && s.before(w, r) {
		return
	}
	data, ok := s.files[strings.TrimPrefix(r.URL.Path, "/")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if !s.noETag {
		sum := sha256.Sum256(data)
		w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:8])+`"`)
	}
	http.ServeContent(&cutting{ResponseWriter: w, s: s, left: s.cut}, r, "", time.Time{}, bytes.NewReader(data))
}

// cutting breaks the connection after some bytes, or lets bytes trickle.
type cutting struct {
	http.ResponseWriter
	s    *site
	left int64
}

func (c *cutting) Write(p []byte) (int, error) {
	if c.s.pause > 0 {
		timer := time.NewTimer(c.s.pause)
		<-timer.C
	}
	if c.s.cut > 0 {
		if c.left <= 0 {
			_ = http.NewResponseController(c.ResponseWriter).Flush()
			panic(http.ErrAbortHandler)
		}
		p = p[:min(int64(len(p)), c.left)]
		c.left -= int64(len(p))
	}
	c.s.bytes.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

// plain answers 200 with all, whatever is asked for.
func plain(files map[string][]byte, length bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data := files[strings.TrimPrefix(r.URL.Path, "/")]
		if length {
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		} else if err := http.NewResponseController(w).Flush(); err != nil { // makes it chunked
			return
		}
		_, _ = w.Write(data) // who reads sees it
	})
}

// attempt is one import onto a new disk.
type attempt struct {
	url     string
	options map[string]string // annotations beside the source
	objects Objects
	disk    *os.File // nil: a new one
	start   *Checkpoint
	policy  *Policy // nil: loopback is allowed
	tuning  Tuning
	ctx     context.Context
	points  []Checkpoint
	last    Progress
	size    int64

	bandwidth int64
	dial      func(ctx context.Context, address string) (net.Conn, error) // nil: as the policy allows
}

func (a *attempt) run(t *testing.T) (string, error) {
	t.Helper()
	require.Root(t)
	require.Feature(t, sandbox.Landlock(), "Landlock")
	annotations := map[string]string{api.KeyImportSource: a.url}
	for key, value := range a.options {
		annotations[api.Prefix+"import-"+key] = value
	}
	asked, errs := api.ParseImport(annotations, false)
	if errs.Err() != nil {
		t.Fatal(errs)
	}
	if a.size == 0 {
		a.size = diskSize
	}
	if a.disk == nil {
		a.disk = newDisk(t, a.size)
	}
	policy := Policy{Allow: []string{"127.0.0.0/8", "*"}}
	if a.policy != nil {
		policy = *a.policy
	}
	if a.ctx == nil {
		a.ctx = t.Context()
	}
	if a.tuning.FirstPause == 0 {
		a.tuning.FirstPause = time.Millisecond
	}
	a.tuning.LastPause = 10 * time.Millisecond
	dial := policy.Dial
	if a.dial != nil {
		dial = a.dial
	}
	return Run(a.ctx, Request{
		Import: asked, Objects: a.objects, Size: a.size, Output: a.disk, Start: a.start, Dial: dial, Tuning: a.tuning, Bandwidth: a.bandwidth,
		Checkpoint: func(c Checkpoint) error { a.points = append(a.points, c); return nil },
		Progress:   func(p Progress) { a.last = p },
	})
}

func newDisk(t *testing.T, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

// holds compares the disk with the image.
func (a *attempt) holds(t *testing.T) {
	t.Helper()
	got, err := os.ReadFile(a.disk.Name())
	if err != nil {
		t.Fatal(err)
	}
	want := content()
	if int64(len(got)) != a.size || !bytes.Equal(got[:len(want)], want) || len(bytes.Trim(got[len(want):], "\x00")) > 0 {
		t.Error("the disk differs from the image")
	}
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// server is a kind of source and what a claim says to reach it.
type server struct {
	start   func(t *testing.T, files map[string][]byte) string
	options map[string]string
	objects func(t *testing.T) Objects
}

func listen(t *testing.T, handler http.Handler) string {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s.URL
}

// listenOn starts a server at an address.
func listenOn(t *testing.T, address string, handler http.Handler) (string, error) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		return "", err
	}
	s := httptest.NewUnstartedServer(handler)
	_ = s.Listener.Close() // the usual one
	s.Listener = listener
	s.Start()
	t.Cleanup(s.Close)
	return s.URL, nil
}

func servers() map[string]server {
	var ca []byte
	return map[string]server{
		"http": {start: func(t *testing.T, files map[string][]byte) string { return listen(t, &site{files: files}) }},
		"https": {
			start: func(t *testing.T, files map[string][]byte) string {
				s := httptest.NewUnstartedServer(&site{files: files})
				s.EnableHTTP2 = true
				s.StartTLS()
				t.Cleanup(s.Close)
				ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
				return s.URL
			},
			objects: func(*testing.T) Objects { return Objects{CA: map[string]string{"any": string(ca)}} },
		},
		"basic auth": {
			start: func(t *testing.T, files map[string][]byte) string {
				return listen(t, &site{files: files, before: func(w http.ResponseWriter, r *http.Request) bool {
					user, password, _ := r.BasicAuth()
					if user != "me" || password != "secret" || r.Header.Get("X-Tenant") != "shop" {
						w.WriteHeader(http.StatusUnauthorized)
						return true
					}
					return false
				}})
			},
			options: map[string]string{"headers": "X-Tenant: shop"},
			objects: func(*testing.T) Objects {
				return Objects{Secret: map[string][]byte{"username": []byte("me"), "password": []byte("secret")}}
			},
		},
		"no ranges": {start: func(t *testing.T, files map[string][]byte) string { return listen(t, plain(files, true)) }},
		"no length": {start: func(t *testing.T, files map[string][]byte) string { return listen(t, plain(files, false)) }},
		"redirect": {start: func(t *testing.T, files map[string][]byte) string {
			target := listen(t, &site{files: files})
			return listen(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, target+r.URL.Path, http.StatusFound)
			}))
		}},
		"dying": {start: func(t *testing.T, files map[string][]byte) string {
			return listen(t, &site{files: files, cut: 300 << 10})
		}},
		"slow": {start: func(t *testing.T, files map[string][]byte) string {
			return listen(t, &site{files: files, pause: time.Millisecond})
		}},
	}
}

// TestMatrix: every kind of server with every format in every compression ends in the same disk (storage.md 2.12).
func TestMatrix(t *testing.T) {
	files := images(t)
	for kind, server := range servers() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			url := server.start(t, files)
			var objects Objects
			if server.objects != nil {
				objects = server.objects(t)
			}
			for name, data := range files {
				a := &attempt{url: url + "/" + name, options: map[string]string{"checksum": digestOf(data)}, objects: objects}
				maps.Copy(a.options, server.options)
				sum, err := a.run(t)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				if sum != digestOf(data) || a.last.Position != int64(len(data)) {
					t.Errorf("%s: digest %s, %d bytes; want %s, %d", name, sum, a.last.Position, digestOf(data), len(data))
				}
				a.holds(t)
			}
		})
	}
}

// TestRefused: what will never work is refused by name, once.
func TestRefused(t *testing.T) {
	files := images(t)
	files["page"] = []byte("<html>")
	web := &site{files: files, before: func(w http.ResponseWriter, r *http.Request) bool {
		switch r.URL.Path {
		case "/forbidden":
			w.WriteHeader(http.StatusForbidden)
		case "/page":
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = w.Write(files["page"])
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		case "/ftp":
			http.Redirect(w, r, "ftp://localhost/x", http.StatusFound)
		case "/metadata":
			http.Redirect(w, r, "http://169.254.169.254/latest", http.StatusFound)
		default:
			return false
		}
		return true
	}}
	url := listen(t, web)
	secure := httptest.NewTLSServer(web)
	t.Cleanup(secure.Close)
	big := make([]byte, diskSize+512)
	big[0] = 1
	files["big"], files["half"] = big, files["qcow2.none"][:1<<20]
	for name, row := range map[string]struct {
		attempt attempt
		text    string
	}{
		"checksum": {
			attempt{url: url + "/raw.none", options: map[string]string{"checksum": "md5:" + strings.Repeat("0", 32)}},
			"checksum differs: expected md5:000",
		},
		"not found":        {attempt{url: url + "/nothing?key=secret"}, url + "/nothing: 404 Not Found"},
		"forbidden":        {attempt{url: url + "/forbidden"}, "403 Forbidden"},
		"login page":       {attempt{url: url + "/page"}, "the server sent text/html (a login page?), not a disk image"},
		"redirect loop":    {attempt{url: url + "/loop"}, "more than 10 redirects"},
		"other scheme":     {attempt{url: url + "/ftp"}, `redirected to scheme "ftp"`},
		"metadata service": {attempt{url: url + "/metadata"}, "169.254.169.254 is a link-local address"},
		"loopback":         {attempt{url: url + "/raw.none", policy: &Policy{}}, "127.0.0.1 is a loopback address"},
		"unknown CA":       {attempt{url: secure.URL + "/raw.none"}, "certificate signed by unknown authority"},
		"too large":        {attempt{url: url + "/big"}, "image needs 8389120 (virtual size), the claim asks for 8Mi"},
		"truncated":        {attempt{url: url + "/half"}, "truncated: the qcow2 ends"},
		"other format":     {attempt{url: url + "/qcow2.gz", options: map[string]string{"format": "raw"}}, "source is qcow2 but raw was asked for"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := row.attempt.run(t)
			var refused Refused
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), row.text) || strings.Contains(err.Error(), "secret") {
				t.Errorf("error = %v; want %q", err, row.text)
			}
		})
	}
}

// TestCredentialsStay: user, token and headers go to the host of the source, not to where it redirects (ST-042, ST-049).
func TestCredentialsStay(t *testing.T) {
	files := map[string][]byte{"raw": content()}
	var seen atomic.Pointer[http.Header]
	elsewhere := listen(t, &site{files: files, before: func(_ http.ResponseWriter, r *http.Request) bool {
		seen.Store(&r.Header)
		return false
	}})
	for name, secret := range map[string]map[string][]byte{
		"login": {"username": []byte("me"), "password": []byte("secret")}, "token": {"token": []byte("secret\n")},
	} {
		var asked atomic.Int64
		url := listen(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "" && r.Header.Get("X-Tenant") == "shop" {
				asked.Add(1)
			}
			http.Redirect(w, r, elsewhere+r.URL.Path, http.StatusTemporaryRedirect)
		}))
		a := &attempt{url: url + "/raw", options: map[string]string{"headers": "X-Tenant: shop"}, objects: Objects{Secret: secret}}
		if _, err := a.run(t); err != nil {
			t.Fatal(err)
		}
		a.holds(t)
		if got := *seen.Load(); asked.Load() != 1 || got.Get("Authorization") != "" || got.Get("X-Tenant") != "" {
			t.Errorf("%s: %d requests with credentials, elsewhere came %v", name, asked.Load(), got)
		}
	}
}

// TestInsecure: the identity of a server is not verified where that is asked for.
func TestInsecure(t *testing.T) {
	secure := httptest.NewTLSServer(&site{files: map[string][]byte{"raw": content()}})
	t.Cleanup(secure.Close)
	a := &attempt{url: secure.URL + "/raw", options: map[string]string{"insecure": "true"}}
	if _, err := a.run(t); err != nil {
		t.Fatal(err)
	}
	a.holds(t)
}
