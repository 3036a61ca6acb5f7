package importer

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// artifact is an OCI artifact of files, as ORAS pushes it.
func artifact(t *testing.T, files map[string][]byte) v1.Image {
	t.Helper()
	made := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	for title, data := range files {
		added := mutate.Addendum{Layer: static.NewLayer(data, "application/vnd.example.disk")}
		if !strings.HasPrefix(title, "-") {
			added.Annotations = map[string]string{titleKey: title}
		}
		var err error
		if made, err = mutate.Append(made, added); err != nil {
			t.Fatal(err)
		}
	}
	return made
}

// TestArtifact: a layer that is a disk, in any format and compression, is taken by its title (ST-044).
func TestArtifact(t *testing.T) {
	files := images(t)
	h := newHub(t, false, nil)
	for name, held := range map[string]map[string][]byte{
		"raw":      {"disk.raw": files["raw.none"]},
		"untitled": {"-": files["qcow2.none"]},
		"packed":   {"disk.qcow2.xz": files["qcow2.xz"]},
		"two":      {"a.vmdk": files["stream.none"], "readme": []byte("not this one")},
	} {
		h.write(t, "art/"+name+":1", artifact(t, held))
	}
	for name, row := range map[string]struct{ image, member, text string }{
		"raw":         {"raw", "", ""},
		"untitled":    {"untitled", "", ""},
		"packed":      {"packed", "", ""},
		"one of two":  {"two", "a.vmdk", ""},
		"which":       {"two", "", "podvirt.dev/import-member is needed; the source holds: a.vmdk, readme"},
		"another one": {"two", "b.vmdk", `"b.vmdk" not found; the source holds: a.vmdk, readme`},
	} {
		options := map[string]string{"insecure": "true"}
		if row.member != "" {
			options["member"] = row.member
		}
		a := &attempt{url: "docker://" + h.host + "/art/" + row.image + ":1", options: options}
		_, err := a.run(t)
		var refused Refused
		switch {
		case row.text == "" && err == nil:
			a.holds(t)
		case row.text == "" || !errors.As(err, &refused) || !strings.Contains(err.Error(), row.text):
			t.Errorf("%s: error = %v; want %q", name, err, row.text)
		}
	}
}

// tokens wants a bearer token, which its own realm gives for a login.
func tokens(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		switch {
		case r.URL.Path == "/token" && user == "me" && password == "secret":
			_ = json.NewEncoder(w).Encode(map[string]string{"token": "short-lived"})
		case r.URL.Path == "/token":
			w.WriteHeader(http.StatusUnauthorized)
		case r.Header.Get(pushing) != "" || r.Header.Get("Authorization") == "Bearer short-lived":
			next.ServeHTTP(w, r)
		default:
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="test"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
}

// TestRegistryTokens: a registry that gives tokens for a login is asked for one; a wrong login is refused (ST-044).
func TestRegistryTokens(t *testing.T) {
	h := newHub(t, false, tokens)
	digest := h.push(t, "vm/root:1", layer(t, entry{name: "disk/root.raw", data: content()}))
	login := func(password string) Objects {
		return Objects{Secret: map[string][]byte{"username": []byte("me"), "password": []byte(password)}}
	}
	a := &attempt{url: "docker://" + h.host + "/vm/root:1", options: map[string]string{"insecure": "true"}, objects: login("secret")}
	if got, err := a.run(t); err != nil || got != digest {
		t.Fatalf("digest %s, %v; want %s", got, err, digest)
	}
	a.holds(t)
	a.objects = login("wrong")
	var refused Refused
	if _, err := a.run(t); !errors.As(err, &refused) || !strings.Contains(err.Error(), "401 Unauthorized") {
		t.Errorf("error = %v; want a refusal", err)
	}
}

// TestTagMoves: what a tag was when the import began is what is imported, to its end (ST-044).
func TestTagMoves(t *testing.T) {
	var h *hub
	var once sync.Once
	h = newHub(t, false, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				once.Do(func() { h.push(t, "vm/root:1", layer(t, entry{name: "disk/root.raw", data: []byte("another disk")})) })
			}
			next.ServeHTTP(w, r)
		})
	})
	digest := h.push(t, "vm/root:1", layer(t, entry{name: "disk/root.raw", data: content()}))
	a := &attempt{url: "docker://" + h.host + "/vm/root:1", options: map[string]string{"insecure": "true"}}
	if got, err := a.run(t); err != nil || got != digest {
		t.Fatalf("digest %s, %v; want %s", got, err, digest)
	}
	a.holds(t)
	if got, err := a.run(t); err != nil || got == digest {
		t.Errorf("the next import has digest %s, %v; want another one", got, err)
	}
}
