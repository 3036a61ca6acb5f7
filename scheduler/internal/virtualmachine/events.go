package virtualmachine

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	"podvirt.dev/api"
)

// EventsToRegister returns the events that can help a VM Pod which this plugin refused.
func (pl *Plugin) EventsToRegister(context.Context) ([]fwk.ClusterEventWithHint, error) {
	return []fwk.ClusterEventWithHint{
		// Facts are annotations of the Node, and a reboot makes them stale or fresh by the boot ID of its status,
		// which arrives as a condition change. A new Node seldom has facts yet; its first annotation is the event.
		{
			Event:          fwk.ClusterEvent{Resource: fwk.Node, ActionType: fwk.Add | fwk.UpdateNodeAnnotation | fwk.UpdateNodeCondition},
			QueueingHintFn: pl.isSchedulableAfterNodeChange,
		},
		// A VM that goes gives its pages back. Where the facts had seen them taken, they are free when the facts say so.
		{
			Event:          fwk.ClusterEvent{Resource: fwk.AssignedPod, ActionType: fwk.Delete},
			QueueingHintFn: pl.isSchedulableAfterPodDeleted,
		},
		// A disk that is filled may let its VM go on.
		{
			Event:          fwk.ClusterEvent{Resource: fwk.PersistentVolumeClaim, ActionType: fwk.Add | fwk.Update},
			QueueingHintFn: pl.isSchedulableAfterClaimChange,
		},
		// The same Pod with other labels may be a VM no more.
		{Event: fwk.ClusterEvent{Resource: fwk.TargetPod, ActionType: fwk.UpdatePodLabel}},
	}, nil
}

// isSchedulableAfterNodeChange wakes a Pod if the changed Node may fit it now and did not before.
func (pl *Plugin) isSchedulableAfterNodeChange(logger klog.Logger, pod *corev1.Pod, oldObj, newObj any) (fwk.QueueingHint, error) {
	now, ok := newObj.(*corev1.Node)
	if !ok {
		return fwk.QueueSkip, nil
	}
	want, err := newRequest(pod, pl.policy.get())
	if err != nil {
		return fwk.QueueSkip, nil //nolint:nilerr // a Node cannot mend the Pod's own annotations
	}
	before, _ := oldObj.(*corev1.Node) // nil: the Node is new
	if !pl.helps(want, before, now) {
		return fwk.QueueSkip, nil
	}
	logger.V(5).Info("Node may fit the VM now", "pod", klog.KObj(pod), "node", klog.KObj(now))
	return fwk.Queue, nil
}

// helps says whether a Node fits now by its facts and did not before, or has more free pages than before.
func (pl *Plugin) helps(want *request, before, now *corev1.Node) bool {
	if !pl.fitsNode(want, now) {
		return false
	}
	fresh := before == nil || !pl.fitsNode(want, before)
	if !want.cells.asks() {
		return fresh
	}
	cells := pl.cells.get(now)
	if cells == nil || cells.err != nil || cells.boot != now.Status.NodeInfo.BootID {
		return false
	}
	var old *topology
	if before != nil {
		old = pl.cells.get(before)
	}
	return fresh || old == nil || old.err != nil || old.boot != before.Status.NodeInfo.BootID || gained(old, cells, want.cells)
}

// gained says whether a cell has more free pages or CPUs than before, or the kubelet now gives out CPUs as it did not.
func gained(before, now *topology, want demand) bool {
	if againstKubelet(want, before) != "" && againstKubelet(want, now) == "" {
		return true
	}
	for _, c := range now.cells {
		i := before.index(c.id)
		if i < 0 || want.pages > 0 && c.pages[want.size].Free > before.cells[i].pages[want.size].Free {
			return true
		}
		if old := before.cells[i]; want.cpus > 0 && c.whole-c.exclusive > old.whole-old.exclusive {
			return true
		}
	}
	return false
}

// isSchedulableAfterPodDeleted wakes a Pod that needs pages or CPUs of a cell when another one with such goes.
func (pl *Plugin) isSchedulableAfterPodDeleted(_ klog.Logger, pod *corev1.Pod, oldObj, _ any) (fwk.QueueingHint, error) {
	gone, ok := oldObj.(*corev1.Pod)
	if !ok || !isVM(gone) || gone.Annotations[api.KeyNUMACell] == "" {
		return fwk.QueueSkip, nil
	}
	want, err := newRequest(pod, pl.policy.get())
	if err != nil || !want.cells.placed() {
		return fwk.QueueSkip, nil //nolint:nilerr // another Pod cannot mend this one's annotations
	}
	if want.cells.cpus > 0 && gone.Annotations[api.KeyCPUDedicated] == "true" {
		return fwk.Queue, nil
	}
	for i := range gone.Spec.Containers {
		if size, _ := hugepagesOf(&gone.Spec.Containers[i]); size != "" && size == want.cells.size {
			return fwk.Queue, nil
		}
	}
	return fwk.QueueSkip, nil
}

func (pl *Plugin) fitsNode(want *request, node *corev1.Node) bool {
	return len(fits(want, pl.nodes.get(node), node.Status.NodeInfo.BootID, pl.args.RequireFacts)) == 0
}

// waitingPods are VM Pods that have no node. The scheduler has no event for a ConfigMap, so a change of policy wakes
// them itself.
type waitingPods struct {
	handle fwk.Handle
	pods   corelisters.PodLister
}

func (w waitingPods) activate(logger klog.Logger) {
	vm, err := labels.Parse(api.LabelVM)
	if err != nil {
		return
	}
	all, err := w.pods.List(vm)
	if err != nil {
		return
	}
	waiting := map[string]*corev1.Pod{}
	for _, pod := range all {
		if pod.Spec.NodeName == "" {
			waiting[pod.Namespace+"/"+pod.Name] = pod
		}
	}
	if len(waiting) > 0 {
		w.handle.Activate(logger, waiting)
	}
}
