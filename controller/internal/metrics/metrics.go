// Package metrics is what the outside sees of the controller: metrics (operations.md 2.6), health and readiness.
package metrics

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics holds all metrics of the process.
type Metrics struct {
	registry *prometheus.Registry

	ready    prometheus.Gauge
	leader   prometheus.Gauge
	vms      prometheus.Gauge
	asked    *prometheus.CounterVec
	written  *prometheus.CounterVec
	events   *prometheus.CounterVec
	held     prometheus.Counter
	replaced prometheus.Counter
	cleared  prometheus.Counter
}

// New returns metrics of their own registry.
func New(version string) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	info := gauges("podvirt_component_info", "The program and its version.", "component", "version")
	info.WithLabelValues("controller", version).Set(1)
	ready := gauges("podvirt_component_ready", "1 if the program is ready.", "component")
	leader := gauges("podvirt_leader", "1 if this instance leads.", "component")
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		ready:    ready.WithLabelValues("controller"),
		leader:   leader.WithLabelValues("controller"),
		vms:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "podvirt_controller_vms", Help: "VM Pods that have a node."}),
		asked:    counters("podvirt_controller_asked_total", "Requests for the status of a launcher.", "result"),
		written:  counters("podvirt_controller_status_writes_total", "Writes of conditions and status to a Pod.", "result"),
		events:   counters("podvirt_controller_events_total", "Events written.", "reason"),
		held:     counter("podvirt_controller_events_held_total", "Events that had to wait because a VM had too many within a minute."),
		replaced: counter("podvirt_controller_pods_deleted_total", "Pods deleted because their network was made before the network plugin was there."),
		cleared:  counter("podvirt_controller_claims_cleared_total", "Claims whose selected node was gone."),
	}
	m.registry.MustRegister(info, ready, leader, m.vms, m.asked, m.written, m.events, m.held, m.replaced, m.cleared,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Leads says whether this instance is the leader.
func (m *Metrics) Leads(yes bool) { m.leader.Set(number(yes)) }

// VMs says how many Pods are known.
func (m *Metrics) VMs(n int) { m.vms.Set(float64(n)) }

// Asked counts a request to a launcher.
func (m *Metrics) Asked(err error) { m.asked.WithLabelValues(result(err)).Inc() }

// Written counts a write to a Pod.
func (m *Metrics) Written(err error) { m.written.WithLabelValues(result(err)).Inc() }

// Event counts an Event.
func (m *Metrics) Event(reason string) { m.events.WithLabelValues(reason).Inc() }

// Held counts an Event that waits.
func (m *Metrics) Held() { m.held.Inc() }

// Replaced counts a Pod that was deleted.
func (m *Metrics) Replaced() { m.replaced.Inc() }

// Cleared counts a claim whose selection was cleared.
func (m *Metrics) Cleared() { m.cleared.Inc() }

// Handler serves /metrics, /healthz and /readyz. missing says what is not ready yet; nothing where all is.
func (m *Metrics) Handler(missing func() string) http.Handler {
	mux := http.NewServeMux()
	all := promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		m.ready.Set(number(missing() == ""))
		all.ServeHTTP(w, r)
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if what := missing(); what != "" {
			http.Error(w, "not ready: "+what, http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	return mux
}

func result(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
