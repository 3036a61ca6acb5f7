package virtualmachine

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
)

// reasonRefused is what Filter says of a Node whose kubelet has refused an equal VM a short while ago.
const reasonRefused = "kubelet refused this shape recently"

// refusals remembers which Node has refused which shape of VM, so that the owner of a refused Pod does not fill the
// cluster with Pods that end the same way (scheduling.md SC-054).
type refusals struct {
	first time.Duration // how long the first refusal counts; each further one twice as long, up to maxAvoid; 0: not at all
	now   func() time.Time
	// expired is called when a refusal may have ceased to count.
	expired func()
	// counters hear of refusals; nil: nobody does.
	counters *counters

	mu    sync.RWMutex
	known map[refusalKey]refusal
	pods  map[types.UID]bool // that were counted
}

type refusalKey struct{ node, shape string }

type refusal struct {
	until time.Time
	wait  time.Duration
}

func newRefusals(first time.Duration) *refusals {
	return &refusals{
		first: first, now: time.Now, expired: func() {}, known: map[refusalKey]refusal{}, pods: map[types.UID]bool{},
	}
}

// refusedByKubelet says whether a kubelet ended the Pod before it began (kubernetes pkg/kubelet: lifecycle/predicate.go,
// cm/admission/errors.go, cm/topologymanager, cm/cpumanager).
func refusedByKubelet(pod *corev1.Pod) bool {
	if pod.Status.Phase != corev1.PodFailed || pod.Spec.NodeName == "" {
		return false
	}
	reason := pod.Status.Reason
	return strings.HasPrefix(reason, "OutOf") || slices.Contains([]string{"UnexpectedAdmissionError", "TopologyAffinityError", "SMTAlignmentError"}, reason)
}

// shape is what a kubelet may refuse a VM for: what it asks of CPU, cells and resources.
func shape(want *request, pod *corev1.Pod) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %v", want.signature(), want.cells)
	for i := range pod.Spec.Containers {
		if c := &pod.Spec.Containers[i]; c.Name == api.ContainerName {
			for _, name := range slices.Sorted(maps.Keys(c.Resources.Limits)) {
				amount := c.Resources.Limits[name]
				fmt.Fprintf(&b, " %s=%s", name, amount.String())
			}
		}
	}
	return b.String()
}

// note counts the refusal of a Pod once; reason is that of the kubelet.
func (r *refusals) note(pod types.UID, node, shape, reason string) {
	if !r.add(pod, refusalKey{node, shape}) || r.counters == nil {
		return
	}
	r.counters.avoidedShapes.Set(float64(r.active()))
	r.counters.kubeletRefusals.WithLabelValues(reason).Inc()
}

// add returns false if the Pod was counted before, or nothing is to be counted.
func (r *refusals) add(pod types.UID, key refusalKey) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.first == 0 || r.pods[pod] {
		return false
	}
	r.pods[pod] = true
	now := r.now()
	wait := r.first
	if earlier, ok := r.known[key]; ok && now.Before(earlier.until.Add(earlier.wait)) {
		wait = min(2*earlier.wait, maxAvoid)
	}
	r.known[key] = refusal{until: now.Add(wait), wait: wait}
	maps.DeleteFunc(r.known, func(_ refusalKey, old refusal) bool { return now.After(old.until.Add(old.wait)) })
	time.AfterFunc(wait, r.expired)
	return true
}

// active counts the refusals for which a Node is avoided now.
func (r *refusals) active() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	n, now := 0, r.now()
	for _, known := range r.known {
		if now.Before(known.until) {
			n++
		}
	}
	return n
}

func (r *refusals) forget(pod types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pods, pod)
}

// any says whether anything has been refused lately; without it no shape is worked out.
func (r *refusals) any() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.known) > 0
}

func (r *refusals) counts(node, shape string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	known, ok := r.known[refusalKey{node, shape}]
	return ok && r.now().Before(known.until)
}

// watchRefusals follows failed VM Pods until ctx ends: the scheduler's own informer leaves out Pods that have ended.
func (pl *Plugin) watchRefusals(ctx context.Context, client kubernetes.Interface) error {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTweakListOptions(func(options *metav1.ListOptions) {
		options.LabelSelector = api.LabelVM
		options.FieldSelector = fields.OneTermEqualSelector("status.phase", string(corev1.PodFailed)).String()
	}))
	if _, err := factory.Core().V1().Pods().Informer().AddEventHandler(pl.refusalHandler(ctx)); err != nil {
		return fmt.Errorf("watching failed Pods: %w", err)
	}
	factory.Start(ctx.Done())
	return nil
}

// refusalHandler hears of failed Pods. A scheduler that has just started counts those that are still there from now.
func (pl *Plugin) refusalHandler(ctx context.Context) cache.ResourceEventHandlerFuncs {
	look := func(obj any) {
		pod, ok := obj.(*corev1.Pod)
		if !ok || !isVM(pod) || !refusedByKubelet(pod) {
			return
		}
		want, err := newRequest(pod, pl.policy.get())
		if err != nil {
			return
		}
		klog.FromContext(ctx).V(2).Info("The kubelet refused a VM; its node is avoided for a while", "pod", klog.KObj(pod),
			"node", pod.Spec.NodeName, "reason", pod.Status.Reason)
		pl.refusals.note(pod.UID, pod.Spec.NodeName, shape(want, pod), pod.Status.Reason)
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    look,
		UpdateFunc: func(_, obj any) { look(obj) },
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			if pod, ok := obj.(*corev1.Pod); ok {
				pl.refusals.forget(pod.UID)
			}
		},
	}
}
