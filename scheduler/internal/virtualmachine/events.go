package virtualmachine

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
)

// EventsToRegister returns the events that can help a VM Pod which this plugin refused.
func (pl *Plugin) EventsToRegister(context.Context) ([]fwk.ClusterEventWithHint, error) {
	return []fwk.ClusterEventWithHint{
		// Facts are an annotation of the Node, and a reboot makes them stale or fresh by the boot ID of its status,
		// which arrives as a condition change. A new Node seldom has facts yet; its first annotation is the event.
		{
			Event:          fwk.ClusterEvent{Resource: fwk.Node, ActionType: fwk.Add | fwk.UpdateNodeAnnotation | fwk.UpdateNodeCondition},
			QueueingHintFn: pl.isSchedulableAfterNodeChange,
		},
		// The same Pod with other labels may be a VM no more.
		{Event: fwk.ClusterEvent{Resource: fwk.TargetPod, ActionType: fwk.UpdatePodLabel}},
	}, nil
}

// isSchedulableAfterNodeChange wakes a Pod if the changed Node now fits it and did not before.
func (pl *Plugin) isSchedulableAfterNodeChange(logger klog.Logger, pod *corev1.Pod, oldObj, newObj any) (fwk.QueueingHint, error) {
	now, ok := newObj.(*corev1.Node)
	if !ok {
		return fwk.QueueSkip, nil
	}
	want, err := newRequest(pod, pl.policy.get())
	if err != nil {
		return fwk.QueueSkip, nil //nolint:nilerr // a Node cannot mend the Pod's own annotations
	}
	if !pl.fitsNode(want, now) {
		return fwk.QueueSkip, nil
	}
	if before, ok := oldObj.(*corev1.Node); ok && pl.fitsNode(want, before) {
		return fwk.QueueSkip, nil
	}
	logger.V(5).Info("Node fits the VM now", "pod", klog.KObj(pod), "node", klog.KObj(now))
	return fwk.Queue, nil
}

func (pl *Plugin) fitsNode(want *request, node *corev1.Node) bool {
	return len(fits(want, pl.nodes.get(node), node.Status.NodeInfo.BootID, pl.args.RequireFacts)) == 0
}
