package virtualmachine

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"
)

// requestState carries the request from PreFilter to the points behind it.
type requestState struct{ *request }

// Clone returns the state itself: it is read-only once written.
func (s requestState) Clone() fwk.StateData { return s }

func getRequest(state fwk.CycleState) (*request, error) {
	data, err := state.Read(requestKey)
	if err != nil {
		return nil, fmt.Errorf("reading %q from the cycle state: %w", requestKey, err)
	}
	got, ok := data.(requestState)
	if !ok {
		return nil, fmt.Errorf("state %q is a %T", requestKey, data)
	}
	return got.request, nil
}

// PreFilter invoked at the prefilter extension point. A Pod without the VM label is skipped, and no other point is
// called for it. What is wrong with a VM Pod itself is said once and whole; preemption could not help (SC-082).
func (pl *Plugin) PreFilter(_ context.Context, state fwk.CycleState, pod *corev1.Pod, _ []fwk.NodeInfo) (*fwk.PreFilterResult, *fwk.Status) {
	if !isVM(pod) {
		return nil, fwk.NewStatus(fwk.Skip)
	}
	want, err := newRequest(pod, pl.policy.get())
	if err != nil {
		return nil, fwk.NewStatus(fwk.UnschedulableAndUnresolvable, err.Error())
	}
	state.Write(requestKey, requestState{want})
	return nil, nil
}

// PreFilterExtensions returns nil: a request does not depend on other Pods.
func (pl *Plugin) PreFilterExtensions() fwk.PreFilterExtensions { return nil }

// Filter invoked at the filter extension point. Nothing that it refuses changes when Pods leave the node.
func (pl *Plugin) Filter(_ context.Context, state fwk.CycleState, _ *corev1.Pod, info fwk.NodeInfo) *fwk.Status {
	want, err := getRequest(state)
	if err != nil {
		return fwk.AsStatus(err)
	}
	node := info.Node()
	if reasons := fits(want, pl.nodes.get(node), node.Status.NodeInfo.BootID, pl.args.RequireFacts); len(reasons) > 0 {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, reasons...)
	}
	return nil
}

// Score invoked at the score extension point: the surplus of the node, which NormalizeScore turns around.
func (pl *Plugin) Score(_ context.Context, state fwk.CycleState, pod *corev1.Pod, info fwk.NodeInfo) (int64, *fwk.Status) {
	if !isVM(pod) {
		return 0, nil
	}
	want, err := getRequest(state)
	if err != nil {
		return 0, fwk.AsStatus(err)
	}
	return surplus(want, pl.nodes.get(info.Node())), nil
}

// ScoreExtensions returns the plugin itself.
func (pl *Plugin) ScoreExtensions() fwk.ScoreExtensions { return pl }

// NormalizeScore gives the least capable node that suffices the highest score (SC-077).
func (pl *Plugin) NormalizeScore(_ context.Context, _ fwk.CycleState, _ *corev1.Pod, scores fwk.NodeScoreList) *fwk.Status {
	if pl.args.Score[scoreCPUFit] == 0 {
		for i := range scores {
			scores[i].Score = fwk.MaxScore
		}
		return nil
	}
	normalize(scores)
	return nil
}

// SignPod lets Pods that Filter and Score cannot tell apart share one scheduling result. Without it the framework would
// batch no Pod at all, ordinary ones included (SC-085). A VM with claims is placed for itself.
func (pl *Plugin) SignPod(_ context.Context, pod *corev1.Pod) ([]fwk.SignFragment, *fwk.Status) {
	if !isVM(pod) {
		return nil, nil
	}
	for _, volume := range pod.Spec.Volumes {
		if volume.PersistentVolumeClaim != nil || volume.Ephemeral != nil {
			return nil, fwk.NewStatus(fwk.Unschedulable, "VMs with claims are placed one by one")
		}
	}
	want, err := newRequest(pod, pl.policy.get())
	if err != nil {
		return nil, fwk.NewStatus(fwk.Unschedulable, "its annotations are refused")
	}
	return []fwk.SignFragment{{Key: "podvirt.dev/" + Name + ".request()", Value: want.signature()}}, nil
}
