package importer

import (
	"archive/tar"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// hub is a registry on loopback.
type hub struct {
	host string
	ca   string // PEM
}

// newHub starts a registry; handler wraps it.
func newHub(t *testing.T, secure bool, wrap func(http.Handler) http.Handler) *hub {
	t.Helper()
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		handler = wrap(handler)
	}
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	if secure {
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	h := &hub{host: server.Listener.Addr().String()}
	if secure {
		h.ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	}
	return h
}

// push stores an image of layers, the lowest first, and returns its digest.
func (h *hub) push(t *testing.T, repository string, layers ...[]byte) string {
	t.Helper()
	made, err := mutate.AppendLayers(empty.Image, layersOf(t, layers)...)
	if err != nil {
		t.Fatal(err)
	}
	h.write(t, repository, made)
	digest, err := made.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

func (h *hub) write(t *testing.T, repository string, made v1.Image) {
	t.Helper()
	reference, err := name.ParseReference(h.host+"/"+repository, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(reference, made, h.options()...); err != nil {
		t.Fatal(err)
	}
}

func (h *hub) options() []remote.Option {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // our own
	return []remote.Option{remote.WithTransport(pusher{transport})}
}

func layersOf(t *testing.T, contents [][]byte) []v1.Layer {
	t.Helper()
	var layers []v1.Layer
	for _, content := range contents {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, layer)
	}
	return layers
}

// entry is one of a layer.
type entry struct {
	name string
	data []byte
	link string // kind "symlink to"
}

func layer(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		header := &tar.Header{Name: e.name, Size: int64(len(e.data)), Mode: 0o644, Typeflag: tar.TypeReg}
		if e.link != "" {
			header.Typeflag, header.Linkname = tar.TypeSymlink, e.link
		}
		if err := w.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestRegistry: the disk of an image of a registry is imported in every format and compression, over TLS with an own CA,
// with a login, from a registry whose connections break, and plain where that is allowed (ST-044).
func TestRegistry(t *testing.T) {
	files := images(t)
	delete(files, "appliance.ova") // an archive in an archive is not of the matrix
	for kind, row := range map[string]struct {
		secure  bool
		wrap    func(http.Handler) http.Handler
		options map[string]string
		objects func(h *hub) Objects
	}{
		"TLS":   {secure: true, objects: func(h *hub) Objects { return Objects{CA: map[string]string{"ca": h.ca}} }},
		"plain": {options: map[string]string{"insecure": "true"}},
		"login": {
			secure: true, wrap: guarded,
			objects: func(h *hub) Objects {
				auth := base64.StdEncoding.EncodeToString([]byte("me:secret"))
				return Objects{
					CA:     map[string]string{"ca": h.ca},
					Secret: map[string][]byte{dockerConfig: []byte(`{"auths": {"` + h.host + `": {"auth": "` + auth + `"}}}`)},
				}
			},
		},
		"dying": {options: map[string]string{"insecure": "true"}, wrap: dying},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			h := newHub(t, row.secure, row.wrap)
			var objects Objects
			if row.objects != nil {
				objects = row.objects(h)
			}
			for name, data := range files {
				image, compression, _ := strings.Cut(name, ".")
				digest := h.push(t, "vm/"+image+compression+":1", layer(t, entry{name: "etc/hostname", data: []byte("x")}, entry{name: "disk/" + name, data: data}))
				a := &attempt{url: "docker://" + h.host + "/vm/" + image + compression + ":1", options: row.options, objects: objects}
				got, err := a.run(t)
				if err != nil || got != digest {
					t.Errorf("%s: digest %s, %v; want %s", name, got, err, digest)
					continue
				}
				a.holds(t)
			}
		})
	}
}

// pushing is a header of requests that the test makes itself.
const pushing = "X-Test-Push"

type pusher struct{ next http.RoundTripper }

func (p pusher) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(pushing, "true")
	return p.next.RoundTrip(r)
}

// guarded wants a login.
func guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if (user != "me" || password != "secret") && r.Header.Get(pushing) == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// dying breaks off each answer with a blob after 300 KiB.
func dying(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			s := &site{cut: 300 << 10}
			w = &cutting{ResponseWriter: w, s: s, left: s.cut}
		}
		next.ServeHTTP(w, r)
	})
}

// TestRegistryRefused: images without a disk, or with one too many, are refused by name; links are not followed.
func TestRegistryRefused(t *testing.T) {
	h := newHub(t, false, nil)
	raw := content()
	insecure := map[string]string{"insecure": "true"}
	h.push(t, "none:1", layer(t, entry{name: "etc/passwd", data: []byte("x")}))
	h.push(t, "two:1", layer(t, entry{name: "disk/a.raw", data: raw}, entry{name: "disk/b.raw", data: raw}))
	h.push(t, "link:1", layer(t, entry{name: "disk/a.raw", link: "/etc/passwd"}, entry{name: "disk/../../etc/x", data: raw}))
	h.push(t, "removed:1", layer(t, entry{name: "disk/a.raw", data: raw}), layer(t, entry{name: "disk/.wh.a.raw"}))
	h.push(t, "opaque:1", layer(t, entry{name: "disk/a.raw", data: raw}), layer(t, entry{name: "disk/.wh..wh..opq"}))
	h.push(t, "notar:1", []byte(strings.Repeat("no tar at all ", 100)))
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add: empty.Image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}},
	})
	reference, err := name.ParseReference(h.host+"/index:1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(reference, index); err != nil {
		t.Fatal(err)
	}
	for image, row := range map[string]struct {
		options map[string]string
		text    string
	}{
		"none:1":    {insecure, "image has no file below disk/"},
		"two:1":     {insecure, "podvirt.dev/import-member is needed; the source holds: a.raw, b.raw"},
		"link:1":    {insecure, "image has no file below disk/"},
		"removed:1": {insecure, "image has no file below disk/"},
		"opaque:1":  {insecure, "image has no file below disk/"},
		"notar:1":   {insecure, "damaged layer"},
		"missing:1": {insecure, "the registry: 404 Not Found"},
		"index:1":   {insecure, "index has s390x, not "},
		"two:1@":    {insecure, "could not parse reference"},
		"two":       {map[string]string{"insecure": "true", "member": "c.raw"}, `"c.raw" not found`},
	} {
		if image == "two" {
			image = "two:1"
		}
		_, err := (&attempt{url: "docker://" + h.host + "/" + image, options: row.options}).run(t)
		var refused Refused
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), row.text) {
			t.Errorf("%s: error = %v; want %q", image, err, row.text)
		}
	}
	a := &attempt{url: "docker://" + h.host + "/two:1", options: map[string]string{"insecure": "true", "member": "disk/b.raw"}}
	if _, err := a.run(t); err != nil {
		t.Fatal(err)
	}
	a.holds(t)
}
