package installer

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"podvirt.dev/cni-bridge/internal/counters"
	"podvirt.dev/cni-bridge/internal/journal"
)

func get(m *Metrics, path string) (int, string) {
	answer := httptest.NewRecorder()
	m.Handler().ServeHTTP(answer, httptest.NewRequest("GET", path, nil))
	return answer.Code, answer.Body.String()
}

// TestMetrics shows what a node tells after some calls, and readiness by what the installer last found.
func TestMetrics(t *testing.T) {
	dir := t.TempDir()
	m := &Metrics{StateDir: dir}
	if status, _ := get(m, "/readyz"); status != 503 {
		t.Errorf("readyz before the installation: %d", status)
	}
	must(t, counters.Add(dir, counters.Operation{Verb: "ADD", Mode: "pod"}, 3*time.Millisecond))
	must(t, counters.Add(dir, counters.Operation{Verb: "ADD", Mode: "pod", Code: 100}, 30*time.Millisecond))
	must(t, counters.AddLeaks(dir, 2))
	must(t, journal.New(dir).Save(journal.Entry{ContainerID: "c", IfName: "eth0"}))
	must(t, os.WriteFile(filepath.Join(dir, "status"), []byte(`{"method":"drop-in"}`), 0o600))
	if _, text := get(m, "/metrics"); !strings.Contains(text, `podvirt_cni_installed{method="drop-in"} 0`) {
		t.Errorf("installed before a call:\n%s", text)
	}
	must(t, journal.New(dir).Stamp(time.Now()))
	m.Repaired()
	status, text := get(m, "/metrics")
	for _, want := range []string{
		`podvirt_cni_operations_total{verb="ADD",mode="pod",code="0"} 1`, `podvirt_cni_operations_total{verb="ADD",mode="pod",code="100"} 1`,
		`podvirt_cni_operation_seconds_bucket{verb="ADD",le="0.005"} 1`, `podvirt_cni_operation_seconds_bucket{verb="ADD",le="+Inf"} 2`,
		`podvirt_cni_operation_seconds_count{verb="ADD"} 2`, `podvirt_cni_attachments{mode="pod"} 1`, "podvirt_cni_leaks_removed_total 2",
		"podvirt_cni_config_repairs_total 1", `podvirt_cni_installed{method="drop-in"} 1`, "# TYPE podvirt_cni_operation_seconds histogram",
	} {
		if status != 200 || !strings.Contains(text, want+"\n") {
			t.Errorf("status %d, lacks %s:\n%s", status, want, text)
		}
	}
	if status, _ := get(m, "/readyz"); status != 200 {
		t.Errorf("readyz: %d", status)
	}
	if status, _ := get(m, "/healthz"); status != 200 {
		t.Errorf("healthz: %d", status)
	}
}
