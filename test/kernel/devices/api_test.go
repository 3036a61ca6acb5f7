package devices

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const nodeName = "node-a"

// api answers what the device plugin asks of an API server: it lists and watches one Node and one ConfigMap, and takes
// Events. A real one, with its store, would take minutes on this machine; the plugin is tested against that elsewhere
// (device-plugin/internal/program.TestServe).
type api struct {
	mu      sync.Mutex
	version int
	labels  map[string]string
	data    map[string]string
	events  []string
	changed chan struct{}
}

// startAPI serves until the test ends and returns a kubeconfig.
func startAPI(t *testing.T) (a *api, kubeconfig string) {
	t.Helper()
	a = &api{version: 1, labels: map[string]string{"kubernetes.io/hostname": nodeName}, changed: make(chan struct{})}
	server := httptest.NewServer(a)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c"}}],
"clusters":[{"name":"c","cluster":{"server":%q}}]}`, server.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return a, kubeconfig
}

// set changes the ConfigMap.
func (a *api) set(data map[string]string) { a.change(func() { a.data = data }) }

func (a *api) change(apply func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	apply()
	a.version++
	close(a.changed)
	a.changed = make(chan struct{})
}

// said returns all Events.
func (a *api) said() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.events, "\n")
}

// ServeHTTP implements http.Handler.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	query := r.URL.Query()
	kind := "ConfigMap"
	if strings.HasSuffix(r.URL.Path, "/nodes") || strings.Contains(r.URL.Path, "/nodes/") {
		kind = "Node"
	}
	switch {
	case r.Method == http.MethodPost:
		a.event(r.Body)
		_, _ = io.WriteString(w, `{"kind":"Event","apiVersion":"v1"}`)
	case r.Method == http.MethodPatch:
		_ = json.NewEncoder(w).Encode(a.object(kind))
	case query.Get("sendInitialEvents") == "true": // the plugin falls back to a list
		w.WriteHeader(http.StatusUnprocessableEntity)
		_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`)
	case query.Get("watch") == "true":
		a.watch(w, r, kind)
	default:
		list := map[string]any{"kind": kind + "List", "apiVersion": "v1", "metadata": map[string]any{"resourceVersion": a.now()}, "items": []any{a.object(kind)}}
		if kind == "Node" {
			list["kind"], list["apiVersion"] = "PartialObjectMetadataList", "meta.k8s.io/v1"
		}
		_ = json.NewEncoder(w).Encode(list)
	}
}

func (a *api) now() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return fmt.Sprint(a.version)
}

func (a *api) object(kind string) map[string]any {
	a.mu.Lock()
	defer a.mu.Unlock()
	metadata := map[string]any{"name": nodeName, "uid": "u1", "resourceVersion": fmt.Sprint(a.version), "labels": a.labels}
	if kind == "Node" {
		return map[string]any{"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
	}
	metadata = map[string]any{"name": "podvirt-config", "namespace": "podvirt-system", "uid": "u2", "resourceVersion": fmt.Sprint(a.version)}
	object := map[string]any{"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata}
	if a.data != nil {
		object["data"] = a.data
	}
	return object
}

func (a *api) watch(w http.ResponseWriter, r *http.Request, kind string) {
	flusher, ok := w.(http.Flusher)
	if !ok {
		return
	}
	flusher.Flush()
	seen := r.URL.Query().Get("resourceVersion")
	for {
		a.mu.Lock()
		changed := a.changed
		a.mu.Unlock()
		if now := a.now(); now != seen {
			seen = now
			_ = json.NewEncoder(w).Encode(map[string]any{"type": "MODIFIED", "object": a.object(kind)})
			flusher.Flush()
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		}
	}
}

func (a *api) event(body io.Reader) {
	var e struct{ Type, Reason, Message string }
	if json.NewDecoder(body).Decode(&e) != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, e.Type+" "+e.Reason+": "+e.Message)
}
