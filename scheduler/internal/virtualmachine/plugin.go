// Package virtualmachine is the scheduler plugin VirtualMachine: it places Pods with the label podvirt.dev/vm by what
// their annotations ask of the node's hypervisor and of its NUMA cells, and costs other Pods nothing (scheduling.md 2.6,
// 3.5).
//
// Decisions are pure: a Pod becomes a request (request.go), the annotations of a Node become facts (facts.go) and a
// topology (topology.go); fits compares (fit.go) and choose finds cells (choose.go). The extension points only
// translate. The one thing that is remembered between them is the cells of Pods that are being bound (ledger.go).
package virtualmachine

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
)

var (
	_ fwk.PreEnqueuePlugin  = (*Plugin)(nil)
	_ fwk.PreFilterPlugin   = (*Plugin)(nil)
	_ fwk.FilterPlugin      = (*Plugin)(nil)
	_ fwk.PreScorePlugin    = (*Plugin)(nil)
	_ fwk.ScorePlugin       = (*Plugin)(nil)
	_ fwk.ReservePlugin     = (*Plugin)(nil)
	_ fwk.BindPlugin        = (*Plugin)(nil)
	_ fwk.EnqueueExtensions = (*Plugin)(nil)
	_ fwk.SignPlugin        = (*Plugin)(nil)
)

// Name is the name of the plugin in a KubeSchedulerConfiguration.
const Name = "VirtualMachine"

// requestKey finds the request of the Pod that is being scheduled.
const requestKey = fwk.StateKey("PreFilter" + Name)

// Plugin places VM Pods.
type Plugin struct {
	args   Args
	handle fwk.Handle
	nodes  *catalog[facts]
	cells  *catalog[topology]
	fleet  *fleetSource
	ledger *ledger
	policy *policySource

	refusals *refusals
	imports  *imports // nil: claims are not followed
}

// New builds the plugin. It watches Nodes, Pods and the one ConfigMap of the arguments until ctx ends, and waits for
// none: until they have been seen, no node has facts and the policy is the built-in one.
func New(ctx context.Context, obj runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
	args, err := decodeArgs(obj)
	if err != nil {
		return nil, fmt.Errorf("arguments of plugin %s: %w", Name, err)
	}
	pl := newPlugin(args, handle)
	core := handle.SharedInformerFactory().Core().V1()
	waiting := waitingPods{handle: handle, pods: core.Pods().Lister()}
	counted := registered()
	pl.refusals.counters = counted
	pl.refusals.expired = func() {
		counted.avoidedShapes.Set(float64(pl.refusals.active()))
		if ctx.Err() == nil {
			waiting.activate(klog.FromContext(ctx))
		}
	}
	for _, follow := range []struct {
		what    string
		watch   cache.SharedIndexInformer
		handler cache.ResourceEventHandler
	}{
		{"Nodes", core.Nodes().Informer(), pl.nodes.handler()},
		{"Nodes", core.Nodes().Informer(), pl.cells.handler()},
		{"Pods", core.Pods().Informer(), pl.ledger.handler()},
		{"Nodes", core.Nodes().Informer(), (&tally{nodes: pl.nodes, counters: counted, stale: map[string]bool{}, newer: map[string]bool{}}).handler()},
	} {
		if _, err := follow.watch.AddEventHandler(follow.handler); err != nil {
			return nil, fmt.Errorf("watching %s: %w", follow.what, err)
		}
	}
	pl.imports = &imports{claims: core.PersistentVolumeClaims().Lister(), pods: core.Pods().Lister(), interval: args.ProgressInterval}
	go pl.imports.report(ctx, handle.ClientSet())
	if err := pl.watchRefusals(ctx, handle.ClientSet()); err != nil {
		return nil, err
	}
	if err := pl.policy.watch(ctx, handle.ClientSet(), args.configMap(), waiting.activate); err != nil {
		return nil, err
	}
	return pl, nil
}

func newPlugin(args Args, handle fwk.Handle) *Plugin {
	nodes := newFactsCatalog()
	return &Plugin{
		args: args, handle: handle, nodes: nodes, cells: newTopologyCatalog(), fleet: &fleetSource{nodes: nodes},
		ledger: newLedger(), policy: newPolicySource(), refusals: newRefusals(args.AvoidAfterRefusal),
	}
}

// Name returns the name of the plugin.
func (pl *Plugin) Name() string { return Name }
