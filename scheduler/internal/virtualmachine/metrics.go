package virtualmachine

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
)

// counters are the plugin's metrics, on the port of kube-scheduler (scheduling.md 2.8).
type counters struct {
	kubeletRefusals *metrics.CounterVec
	avoidedShapes   *metrics.Gauge
	staleNodes      *metrics.Gauge
	newerFacts      *metrics.Gauge
}

// registered makes and registers the metrics. Several profiles of one scheduler share them.
//
//nolint:gochecknoglobals // built once, as the registry it is for
var registered = sync.OnceValue(func() *counters {
	c := &counters{
		kubeletRefusals: metrics.NewCounterVec(&metrics.CounterOpts{
			Name: "podvirt_scheduler_kubelet_refusals_total", StabilityLevel: metrics.ALPHA,
			Help: "VM Pods that a kubelet refused to run, by the reason of their status.",
		}, []string{"reason"}),
		avoidedShapes: metrics.NewGauge(&metrics.GaugeOpts{
			Name: "podvirt_scheduler_avoided_shapes", StabilityLevel: metrics.ALPHA,
			Help: "Pairs of node and shape of VM that are avoided because the kubelet refused one.",
		}),
		staleNodes: metrics.NewGauge(&metrics.GaugeOpts{
			Name: "podvirt_scheduler_facts_stale_nodes", StabilityLevel: metrics.ALPHA,
			Help: "Nodes whose facts are of another boot than the node's last.",
		}),
		newerFacts: metrics.NewGauge(&metrics.GaugeOpts{
			Name: "podvirt_scheduler_facts_newer_version", StabilityLevel: metrics.ALPHA,
			Help: "Nodes whose facts have a newer version than this scheduler knows.",
		}),
	}
	legacyregistry.MustRegister(c.kubeletRefusals, c.avoidedShapes, c.staleNodes, c.newerFacts)
	return c
})

// tally counts Nodes whose facts need attention.
type tally struct {
	nodes    *catalog[facts]
	counters *counters

	mu           sync.Mutex
	stale, newer map[string]bool // by the name of the Node
}

func (a *tally) handler() cache.ResourceEventHandlerFuncs {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    a.see,
		UpdateFunc: func(_, obj any) { a.see(obj) },
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			if node, ok := obj.(*corev1.Node); ok {
				a.set(node.Name, false, false)
			}
		},
	}
}

func (a *tally) see(obj any) {
	node, ok := obj.(*corev1.Node)
	if !ok {
		return
	}
	have := a.nodes.get(node)
	known := have != nil && have.err == nil
	a.set(node.Name, known && have.boot != node.Status.NodeInfo.BootID, known && have.newer)
}

func (a *tally) set(node string, stale, newer bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	mark(a.stale, node, stale)
	mark(a.newer, node, newer)
	a.counters.staleNodes.Set(float64(len(a.stale)))
	a.counters.newerFacts.Set(float64(len(a.newer)))
}

func mark(set map[string]bool, node string, in bool) {
	if in {
		set[node] = true
	} else {
		delete(set, node)
	}
}
