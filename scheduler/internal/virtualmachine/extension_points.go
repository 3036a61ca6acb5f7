package virtualmachine

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	fwk "k8s.io/kube-scheduler/framework"

	"podvirt.dev/api"
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

// PreFilter invoked at the prefilter extension point. A Pod without the VM label is skipped, and no other point but
// Reserve and Bind is called for it. What is wrong with a VM Pod itself is said once and whole; preemption could not
// help (SC-082).
func (pl *Plugin) PreFilter(_ context.Context, state fwk.CycleState, pod *corev1.Pod, _ []fwk.NodeInfo) (*fwk.PreFilterResult, *fwk.Status) {
	if !isVM(pod) {
		return nil, fwk.NewStatus(fwk.Skip)
	}
	want, err := newRequest(pod, pl.policy.get())
	if err != nil {
		return nil, fwk.NewStatus(fwk.UnschedulableAndUnresolvable, err.Error())
	}
	want.hints = pl.hintsFor(want)
	if pl.refusals.any() {
		want.shape = shape(want, pod)
	}
	state.Write(requestKey, requestState{want})
	return nil, nil
}

// hintsFor looks at the whole cluster for what would help a VM that fits nowhere.
func (pl *Plugin) hintsFor(want *request) hints {
	var h hints
	fleet := pl.fleet.get()
	if want.named() && !fleet.offers(want.model) {
		if near := fleet.nearest(want.model); near != "" {
			h.model = "; nearest: " + near
		}
	}
	if fleet.maxVCPUs > 0 && want.vcpus > fleet.maxVCPUs {
		h.vcpus = fmt.Sprintf("; at most %d on any node", fleet.maxVCPUs)
	}
	if want.cells.pages > 0 && want.cells.placed() {
		h.pages = sync.OnceValue(func() string { // asked by many Nodes at once, and only where one does not fit
			pools := false
			pl.cells.each(func(t *topology) { pools = pools || t.pool(want.cells.size) })
			if pools {
				return ""
			}
			return "; no node has such pages: set them aside at boot or by sysctl"
		})
	}
	return h
}

// PreFilterExtensions returns nil: Filter counts the Pods of the Node it is given, whoever has been added or removed.
func (pl *Plugin) PreFilterExtensions() fwk.PreFilterExtensions { return nil }

// Filter invoked at the filter extension point. Of what it refuses, only a lack of pages or CPUs can change when Pods leave the
// Node (SC-060).
func (pl *Plugin) Filter(_ context.Context, state fwk.CycleState, _ *corev1.Pod, info fwk.NodeInfo) *fwk.Status {
	want, err := getRequest(state)
	if err != nil {
		return fwk.AsStatus(err)
	}
	node := info.Node()
	reasons := fits(want, pl.nodes.get(node), node.Status.NodeInfo.BootID, pl.args.RequireFacts)
	if want.shape != "" && pl.refusals.counts(node.Name, want.shape) {
		reasons = append(reasons, reasonRefused)
	}
	code := fwk.UnschedulableAndUnresolvable
	if len(reasons) == 0 && want.cells.asks() {
		t := pl.cells.get(node)
		reason, hopeless := fitsCells(want, t, node.Status.NodeInfo.BootID, pl.room(t, want.cells.size, info))
		if reason != "" {
			reasons = append(reasons, reason)
		}
		if !hopeless {
			code = fwk.Unschedulable
		}
	}
	if len(reasons) > 0 {
		return fwk.NewStatus(code, reasons...)
	}
	return nil
}

// room is what VMs may take of each cell of a Node, nothing where its cells are not known.
func (pl *Plugin) room(t *topology, size string, info fwk.NodeInfo) room {
	if t == nil || t.err != nil {
		return room{}
	}
	now := info
	if snapshot, err := pl.handle.SnapshotSharedLister().NodeInfos().Get(info.Node().Name); err == nil {
		now = snapshot
	}
	return pl.ledger.room(t, size, now.GetPods(), info.GetPods())
}

// Reserve invoked at the reserve extension point: it chooses the cells and keeps them until the Pod says itself where it
// is. Nothing is written.
func (pl *Plugin) Reserve(_ context.Context, state fwk.CycleState, pod *corev1.Pod, nodeName string) *fwk.Status {
	if !isVM(pod) {
		return nil
	}
	want, err := getRequest(state)
	if err != nil {
		return fwk.AsStatus(err)
	}
	if !want.cells.placed() {
		return nil
	}
	info, err := pl.handle.SnapshotSharedLister().NodeInfos().Get(nodeName)
	if err != nil {
		return fwk.AsStatus(err)
	}
	t := pl.cells.get(info.Node())
	free := pl.room(t, want.cells.size, info)
	if reason, _ := fitsCells(want, t, info.Node().Status.NodeInfo.BootID, free); reason != "" {
		return fwk.NewStatus(fwk.Unschedulable, reason)
	}
	chosen := choose(want.cells, t, free)
	ids := make([]int, len(chosen))
	for at, i := range chosen {
		ids[at] = t.cells[i].id
	}
	pl.ledger.take(pod.UID, ids)
	return nil
}

// Unreserve invoked when the Pod was not bound after all.
func (pl *Plugin) Unreserve(_ context.Context, _ fwk.CycleState, pod *corev1.Pod, _ string) {
	if isVM(pod) {
		pl.ledger.release(pod.UID)
	}
}

// Bind invoked at the bind extension point. A Pod with cells learns them in the very call that binds it: the API server
// copies the annotations of a Binding to its Pod (SC-048). All others are left to the next binder.
func (pl *Plugin) Bind(ctx context.Context, _ fwk.CycleState, pod *corev1.Pod, nodeName string) *fwk.Status {
	if !isVM(pod) {
		return fwk.NewStatus(fwk.Skip)
	}
	cells := pl.ledger.of(pod.UID)
	if cells == nil {
		return fwk.NewStatus(fwk.Skip)
	}
	binding := &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
			Annotations: map[string]string{api.KeyNUMACell: formatCells(cells)},
		},
		Target: corev1.ObjectReference{Kind: "Node", Name: nodeName},
	}
	if err := pl.handle.ClientSet().CoreV1().Pods(pod.Namespace).Bind(ctx, binding, metav1.CreateOptions{}); err != nil {
		return fwk.AsStatus(err)
	}
	return nil
}

// SignPod lets Pods that Filter and Score cannot tell apart share one scheduling result. Without it the framework would
// batch no Pod at all, ordinary ones included (SC-085). A VM with claims or cells is placed for itself.
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
	if want.cells.placed() {
		return nil, fwk.NewStatus(fwk.Unschedulable, "VMs with NUMA cells are placed one by one")
	}
	return []fwk.SignFragment{{Key: "podvirt.dev/" + Name + ".request()", Value: want.signature()}}, nil
}
