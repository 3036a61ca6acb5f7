package status

import (
	"github.com/prometheus/client_golang/prometheus"

	"podvirt.dev/csi-hostpath/internal/driver"
)

// FollowImports adds metrics of imports (storage.md 2.11); list is called at each scrape.
func (s *Status) FollowImports(list func() []driver.ImportReport) {
	labels := []string{"namespace", "persistentvolumeclaim", "scheme"}
	s.registry.MustRegister(&importCollector{
		list:     list,
		bytes:    prometheus.NewDesc("podvirt_import_bytes_total", "Bytes that came over the network for an import.", labels, nil),
		ratio:    prometheus.NewDesc("podvirt_import_progress_ratio", "How much of its source an import has read.", labels, nil),
		restarts: prometheus.NewDesc("podvirt_import_restarts_total", "How often an import connected again or began anew.", labels, nil),
		duration: prometheus.NewDesc("podvirt_import_duration_seconds", "How long an import took that succeeded.", labels, nil),
	})
}

// importCollector reads the imports when it is asked.
type importCollector struct {
	list                             func() []driver.ImportReport
	bytes, ratio, restarts, duration *prometheus.Desc
}

var _ prometheus.Collector = (*importCollector)(nil)

// Describe sends the descriptions.
func (c *importCollector) Describe(to chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{c.bytes, c.ratio, c.restarts, c.duration} {
		to <- desc
	}
}

// Collect sends the values of this moment.
func (c *importCollector) Collect(to chan<- prometheus.Metric) {
	for _, i := range c.list() {
		labels := []string{i.Claim.Namespace, i.Claim.Name, i.Scheme}
		send := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64) {
			to <- prometheus.MustNewConstMetric(desc, kind, value, labels...)
		}
		if i.Took > 0 {
			send(c.duration, prometheus.GaugeValue, i.Took.Seconds())
			continue
		}
		send(c.bytes, prometheus.CounterValue, float64(i.Bytes))
		send(c.restarts, prometheus.CounterValue, float64(i.Restarts))
		if i.Ratio >= 0 {
			send(c.ratio, prometheus.GaugeValue, i.Ratio)
		}
	}
}
