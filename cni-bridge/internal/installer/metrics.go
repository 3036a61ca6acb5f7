package installer

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"podvirt.dev/cni-bridge/internal/counters"
	"podvirt.dev/cni-bridge/internal/journal"
	"podvirt.dev/internal/cli"
	"podvirt.dev/internal/selfsigned"
)

// Metrics is what the outside sees of the plugin on a node (network.md 2.10): the plugin's own counters and the journal,
// and what the installer repaired. The text format is written by hand, since the library that writes it would cost every
// call of the plugin, which is the same program, a third of its time.
type Metrics struct {
	StateDir string
	repairs  atomic.Uint64
}

// Repaired counts a repair of the runtime's configuration or of the binary.
func (m *Metrics) Repaired() { m.repairs.Add(1) }

// Serve answers on the TCP address by HTTPS until ctx ends: /metrics, /healthz, and /readyz, which fails unless the pod stage is installed.
func (m *Metrics) Serve(ctx context.Context, address string) error {
	return selfsigned.Serve(ctx, "podvirt-cni-bridge", address, m.Handler())
}

// Handler is what [Metrics.Serve] serves.
func (m *Metrics) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		var text strings.Builder
		if err := m.write(&text); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = io.WriteString(w, text.String())
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := Check(m.StateDir); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	return mux
}

// family writes the head of a metric, and returns what writes its samples: labels as name, value pairs.
func family(w io.Writer, name, kind, help string) func(value any, labels ...string) {
	fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	return func(value any, labels ...string) { sample(w, name, value, labels...) }
}

func sample(w io.Writer, name string, value any, labels ...string) {
	var pairs []string
	for pair := range slices.Chunk(labels, 2) {
		pairs = append(pairs, pair[0]+"="+strconv.Quote(pair[1]))
	}
	text := strings.Join(pairs, ",")
	if text != "" {
		text = "{" + text + "}"
	}
	fmt.Fprintf(w, "%s%s %v\n", name, text, value)
}

func (m *Metrics) write(w io.Writer) error {
	counts, err := counters.Read(m.StateDir)
	if err != nil {
		return err
	}
	entries, _ := journal.New(m.StateDir).All() // those of other versions are reported by GC
	networks, _ := journal.Networks(m.StateDir).All()
	family(w, "podvirt_component_info", "gauge", "The program and its version.")(1, "component", "cni-bridge", "version", cli.Version)
	operation := family(w, "podvirt_cni_operations_total", "counter", "Calls of the plugin by verb, mode and error code; 0 is success.")
	for _, c := range counts.Operations {
		operation(c.N, "verb", c.Verb, "mode", c.Mode, "code", strconv.Itoa(int(c.Code)))
	}
	durations(w, counts.Seconds)
	attached := map[string]int{"pod": 0}
	for _, e := range append(entries, networks...) {
		attached[e.Mode()]++
	}
	attachments := family(w, "podvirt_cni_attachments", "gauge", "Attachments that the plugin keeps, by mode.")
	for _, mode := range slices.Sorted(maps.Keys(attached)) {
		attachments(attached[mode], "mode", mode)
	}
	family(w, "podvirt_cni_leaks_removed_total", "counter", "Attachments removed whose container was gone without DEL.")(counts.Leaks)
	family(w, "podvirt_cni_config_repairs_total", "counter", "Repairs of the runtime's configuration.")(m.repairs.Load())
	method, called := m.installed()
	family(w, "podvirt_cni_installed", "gauge", "1 where the pod stage is installed and the runtime has called it since the node's boot.")(
		called, "method", method)
	return nil
}

func durations(w io.Writer, seconds map[string]counters.Duration) {
	const name = "podvirt_cni_operation_seconds"
	family(w, name, "histogram", "Duration of calls by verb.")
	for _, verb := range slices.Sorted(maps.Keys(seconds)) {
		d := seconds[verb]
		for i, bound := range counters.Bounds() {
			sample(w, name+"_bucket", d.Below[i], "verb", verb, "le", strconv.FormatFloat(bound, 'g', -1, 64))
		}
		sample(w, name+"_bucket", d.Count, "verb", verb, "le", "+Inf")
		sample(w, name+"_sum", d.Sum, "verb", verb)
		sample(w, name+"_count", d.Count, "verb", verb)
	}
}

// installed says by which method the pod stage is installed, and 1 where the runtime has called it. The state directory
// is a tmpfs, so that a stamp is never of an earlier boot.
func (m *Metrics) installed() (method string, called int) {
	var status Status
	data, err := os.ReadFile(filepath.Join(m.StateDir, "status"))
	if err != nil || json.Unmarshal(data, &status) != nil || status.Reason != "" {
		return "", 0
	}
	if _, err := os.Stat(filepath.Join(m.StateDir, journal.Called)); err == nil {
		called = 1
	}
	return string(status.Method), called
}
