// Package status is what the outside sees of the device plugin: metrics (devices.md 2.8, scheduling.md 2.8), health and
// readiness, over HTTPS.
package status

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/device"
	"podvirt.dev/device-plugin/internal/facts"
	"podvirt.dev/device-plugin/internal/kubelet"
)

var (
	_ kubelet.Observer = (*Metrics)(nil)
	_ facts.Observer   = (*Metrics)(nil)
)

// Metrics holds all metrics of the process.
type Metrics struct {
	registry *prometheus.Registry

	units         *prometheus.GaugeVec
	allocations   *prometheus.CounterVec
	allocateTime  prometheus.Histogram
	registrations *prometheus.CounterVec
	configApplied prometheus.Gauge
	configErrors  *prometheus.GaugeVec
	factsWrites   *prometheus.CounterVec
	factsBytes    *prometheus.GaugeVec
	kvm           prometheus.Gauge
	schedulable   prometheus.Gauge
	fileProblems  prometheus.Gauge
}

// NewMetrics returns metrics of their own registry.
func NewMetrics(version string) *Metrics {
	r := prometheus.NewRegistry()
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &Metrics{
		registry:      r,
		units:         gauges("podvirt_device_units", "Units of a resource by state.", "resource", "state"),
		allocations:   counters("podvirt_device_allocations_total", "Allocate calls of the kubelet.", "resource", "result"),
		registrations: counters("podvirt_device_registrations_total", "Answers of the kubelet to a registration.", "resource", "reason"),
		configApplied: gauge("podvirt_device_config_generation", "How many configurations have been put in force since start."),
		configErrors:  gauges("podvirt_device_config_errors", "Mistakes in a key of podvirt-config; above 0 the last valid one is in force.", "key"),
		factsWrites:   counters("podvirt_node_facts_writes_total", "Writes that changed an annotation of the Node.", "annotation"),
		factsBytes:    gauges("podvirt_node_facts_bytes", "Size of an annotation of the Node.", "annotation"),
		kvm:           gauge("podvirt_node_kvm", "1 if guests run under KVM on this node."),
		schedulable:   gauge("podvirt_node_schedulable", "1 if VMs can be placed on this node."),
		fileProblems:  gauge("podvirt_device_host_files_missing", "1 if a CDI specification, the hook or the seccomp profile could not be installed."),
		allocateTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "podvirt_device_allocate_seconds", Help: "Duration of Allocate calls.",
			Buckets: []float64{.0002, .0005, .001, .002, .005, .01, .02, .05, .1, .3, 1},
		}),
	}
	info := gauges("podvirt_component_info", "The program and its version.", "component", "version")
	info.WithLabelValues("device-plugin", version).Set(1)
	r.MustRegister(m.units, m.allocations, m.registrations, m.configApplied, m.configErrors, m.factsWrites, m.factsBytes,
		m.kvm, m.schedulable, m.fileProblems, m.allocateTime, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Registered counts an answer of the kubelet.
func (m *Metrics) Registered(resource, reason string) {
	m.registrations.WithLabelValues(resource, reason).Inc()
}

// Allocated counts a call.
func (m *Metrics) Allocated(resource string, took time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.allocations.WithLabelValues(resource, result).Inc()
	m.allocateTime.Observe(took.Seconds())
}

// FactsWritten counts a write of the Node.
func (m *Metrics) FactsWritten(desired facts.Desired, changed []string) {
	for _, key := range changed {
		m.factsWrites.WithLabelValues(key).Inc()
	}
	for key, text := range desired.Annotations {
		m.factsBytes.WithLabelValues(key).Set(float64(len(text)))
	}
}

// Offered says what is on the board.
func (m *Metrics) Offered(resources []device.Resource) {
	m.units.Reset()
	for _, r := range resources {
		healthy, unhealthy := r.Counts()
		m.units.WithLabelValues(r.Name, "healthy").Set(float64(healthy))
		m.units.WithLabelValues(r.Name, "unhealthy").Set(float64(unhealthy))
	}
}

// Facts says what is known of the node.
func (m *Metrics) Facts(cpu *api.CPUFacts, emulation bool) {
	kvm := cpu != nil && cpu.Accelerator == api.AcceleratorKVM
	tcg := cpu != nil && cpu.Accelerator == api.AcceleratorTCG && emulation
	m.kvm.Set(number(kvm))
	m.schedulable.Set(number(kvm || tcg))
}

// Config says whether podvirt-config was put in force, or which of its keys have mistakes. Without any there is one series
// of no key, so that the metric is there.
func (m *Metrics) Config(mistakes api.Errors) {
	m.configErrors.Reset()
	for _, mistake := range mistakes {
		m.configErrors.WithLabelValues(mistake.Key).Inc()
	}
	if len(mistakes) == 0 {
		m.configErrors.WithLabelValues("").Set(0)
		m.configApplied.Inc()
	}
}

// HostFiles says whether all files of the host are in place.
func (m *Metrics) HostFiles(ok bool) { m.fileProblems.Set(number(!ok)) }

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
