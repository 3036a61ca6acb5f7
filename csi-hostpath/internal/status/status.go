// Package status is what the outside sees of the driver: metrics (storage.md 2.11), health and readiness.
package status

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"podvirt.dev/csi-hostpath/internal/pool"
	"podvirt.dev/csi-hostpath/internal/volume"
)

// Pools is what metrics are read from, at each scrape.
type Pools interface {
	Reports() []pool.Report
	Volumes() map[string]volume.Volume
}

// Status holds the metrics of the process.
type Status struct {
	registry   *prometheus.Registry
	operations *prometheus.HistogramVec
	ready      atomic.Bool
}

// New returns metrics over the pools.
func New(version string, pools Pools) *Status {
	s := &Status{
		registry: prometheus.NewRegistry(),
		operations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "podvirt_csi_operations_seconds", Help: "Duration of CSI calls.",
			Buckets: []float64{.002, .01, .05, .2, 1, 5, 30, 120},
		}, []string{"method", "code"}),
	}
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "podvirt_component_info", Help: "The program and its version."},
		[]string{"component", "version"})
	info.WithLabelValues("csi-hostpath", version).Set(1)
	s.registry.MustRegister(s.operations, info, newPoolCollector(pools),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return s
}

// Ready says that calls are answered from now on.
func (s *Status) Ready() { s.ready.Store(true) }

// Observe measures each call; it is a gRPC interceptor.
func (s *Status) Observe(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	start := time.Now()
	resp, err := handle(ctx, req)
	s.operations.WithLabelValues(info.FullMethod, status.Code(err).String()).Observe(time.Since(start).Seconds())
	return resp, err
}

// Handler serves /metrics, /healthz and /readyz.
func (s *Status) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready.Load() {
			http.Error(w, "not ready: CSI calls are not answered yet", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	return mux
}

// poolCollector reads the pools when it is asked.
type poolCollector struct {
	pools                          Pools
	bytes, ready, shares, volBytes *prometheus.Desc
}

var _ prometheus.Collector = (*poolCollector)(nil)

func newPoolCollector(pools Pools) *poolCollector {
	return &poolCollector{
		pools:  pools,
		bytes:  prometheus.NewDesc("podvirt_pool_bytes", "Bytes of a pool.", []string{"pool", "kind"}, nil),
		ready:  prometheus.NewDesc("podvirt_pool_ready", "1 if the pool can serve.", []string{"pool"}, nil),
		shares: prometheus.NewDesc("podvirt_pool_shares_os", "1 if the pool lies on the file system of the OS.", []string{"pool"}, nil),
		volBytes: prometheus.NewDesc("podvirt_volume_bytes", "Bytes of a volume.",
			[]string{"namespace", "persistentvolumeclaim", "kind"}, nil),
	}
}

// Describe sends the descriptions.
func (c *poolCollector) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, to) }

// Collect sends the values of this moment.
func (c *poolCollector) Collect(to chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	for _, r := range c.pools.Reports() {
		gauge(c.ready, number(r.Ready), r.Name)
		gauge(c.shares, number(r.SharesOS), r.Name)
		if !r.Ready {
			continue
		}
		for kind, bytes := range map[string]float64{
			"size": float64(r.Size), "limit": r.Overcommit * float64(r.Size), "free": float64(r.Free),
			"promised": float64(r.Promised), "reserved": float64(r.Reserved),
		} {
			gauge(c.bytes, bytes, r.Name, kind)
		}
	}
	seen := map[volume.Claim]bool{}
	for _, v := range c.pools.Volumes() {
		claim := volume.Claim{Namespace: v.Claim.Namespace, Name: v.Claim.Name}
		if claim.Name == "" || seen[claim] || v.Problem != nil {
			continue // one series per claim, also when a Retain-ed volume of the same name is still there
		}
		seen[claim] = true
		gauge(c.volBytes, float64(v.Size), claim.Namespace, claim.Name, "virtual")
		gauge(c.volBytes, float64(v.Allocated()), claim.Namespace, claim.Name, "allocated")
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
