package status

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"podvirt.dev/csi-hostpath/internal/driver"
	"podvirt.dev/csi-hostpath/internal/pool"
	"podvirt.dev/csi-hostpath/internal/volume"
)

type fakePools struct{}

func (fakePools) Reports() []pool.Report {
	return []pool.Report{
		{Name: "a", Ready: true, Overcommit: 2, Size: 100, Free: 60, Promised: 30, Reserved: 5},
		{Name: "b", SharesOS: true, Message: "no"},
	}
}

func (fakePools) Volumes() map[string]volume.Volume {
	claim := volume.Claim{Namespace: "shop", Name: "root"}
	return map[string]volume.Volume{
		"x/1": {Meta: volume.Meta{Claim: claim, Size: 4096}, Dir: "/absent"},
		"x/2": {Meta: volume.Meta{Claim: claim, Size: 4096}, Dir: "/absent"},
		"x/3": {Problem: volume.ErrDamaged},
	}
}

func get(t *testing.T, s *Status, path string) (int, string) {
	t.Helper()
	recorder := httptest.NewRecorder()
	s.Handler().ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return recorder.Code, recorder.Body.String()
}

func TestMetricsAndReadiness(t *testing.T) {
	s := New("v1", fakePools{})
	if code, _ := get(t, s, "/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("readyz before calls are answered = %d", code)
	}
	s.Ready()
	if code, _ := get(t, s, "/readyz"); code != http.StatusOK {
		t.Errorf("readyz = %d", code)
	}
	failed := errors.New("no")
	_, err := s.Observe(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/csi.v1.Node/NodeStageVolume"},
		func(context.Context, any) (any, error) { return nil, failed })
	if !errors.Is(err, failed) {
		t.Errorf("Observe = %v; want the error of the call", err)
	}
	claim := volume.Claim{Namespace: "shop", Name: "root"}
	s.FollowImports(func() []driver.ImportReport {
		return []driver.ImportReport{
			{Claim: claim, Scheme: "https", Bytes: 4096, Ratio: 0.25, Restarts: 2},
			{Claim: volume.Claim{Namespace: "shop", Name: "data"}, Scheme: "http", Ratio: -1},
			{Claim: volume.Claim{Namespace: "shop", Name: "old"}, Scheme: "docker", Took: 90 * time.Second},
		}
	})
	code, text := get(t, s, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("metrics = %d: %s", code, text)
	}
	for _, want := range []string{
		`podvirt_pool_bytes{kind="limit",pool="a"} 200`, `podvirt_pool_bytes{kind="free",pool="a"} 60`,
		`podvirt_pool_ready{pool="b"} 0`, `podvirt_pool_shares_os{pool="b"} 1`,
		`podvirt_volume_bytes{kind="virtual",namespace="shop",persistentvolumeclaim="root"} 4096`,
		`podvirt_csi_operations_seconds_count{code="Unknown",method="/csi.v1.Node/NodeStageVolume"} 1`,
		`podvirt_import_bytes_total{namespace="shop",persistentvolumeclaim="root",scheme="https"} 4096`,
		`podvirt_import_progress_ratio{namespace="shop",persistentvolumeclaim="root",scheme="https"} 0.25`,
		`podvirt_import_restarts_total{namespace="shop",persistentvolumeclaim="root",scheme="https"} 2`,
		`podvirt_import_restarts_total{namespace="shop",persistentvolumeclaim="data",scheme="http"} 0`,
		`podvirt_import_duration_seconds{namespace="shop",persistentvolumeclaim="old",scheme="docker"} 90`,
		`podvirt_component_info{component="csi-hostpath",version="v1"} 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}
