// Package virtualmachine is the scheduler plugin VirtualMachine: it places Pods with the label podvirt.dev/vm by what
// their annotations ask of the node's hypervisor, and costs other Pods nothing (scheduling.md 2.6, 3.5).
//
// Decisions are pure: a Pod becomes a request (request.go), the annotation of a Node becomes facts (facts.go), and fits
// compares the two (fit.go). The extension points only translate.
package virtualmachine

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
	fwk "k8s.io/kube-scheduler/framework"
)

var (
	_ fwk.PreFilterPlugin   = (*Plugin)(nil)
	_ fwk.FilterPlugin      = (*Plugin)(nil)
	_ fwk.ScorePlugin       = (*Plugin)(nil)
	_ fwk.ScoreExtensions   = (*Plugin)(nil)
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
	nodes  *catalog
	policy *policySource
}

// New builds the plugin. It watches Nodes and the one ConfigMap of the arguments until ctx ends, and waits for neither:
// until they have been seen, no node has facts and the policy is the built-in one.
func New(ctx context.Context, obj runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
	args, err := decodeArgs(obj)
	if err != nil {
		return nil, fmt.Errorf("arguments of plugin %s: %w", Name, err)
	}
	pl := &Plugin{args: args, nodes: newCatalog(), policy: newPolicySource()}
	informer := handle.SharedInformerFactory().Core().V1().Nodes().Informer()
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    pl.nodes.onUpdate,
		UpdateFunc: func(_, obj any) { pl.nodes.onUpdate(obj) },
		DeleteFunc: pl.nodes.onDelete,
	}); err != nil {
		return nil, fmt.Errorf("watching Nodes: %w", err)
	}
	if err := pl.policy.watch(ctx, handle.ClientSet(), args.configMap()); err != nil {
		return nil, err
	}
	return pl, nil
}

// Name returns the name of the plugin.
func (pl *Plugin) Name() string { return Name }
