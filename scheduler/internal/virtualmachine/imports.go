package virtualmachine

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	"podvirt.dev/api"
)

// reasonVolumes is the reason of condition PodScheduled while a disk of the VM is being filled.
const reasonVolumes = "WaitingForVolumes"

// Phases of an import that the scheduler tells apart from all others (storage.md 2.2).
const (
	importSucceeded = "Succeeded"
	importFailed    = "Failed"
)

// selectedNode is the annotation by which VolumeBinding tells a provisioner the node (kubernetes
// component-helpers/storage/volume).
const selectedNode = "volume.kubernetes.io/selected-node"

// imports knows which VMs wait for a disk that is being filled.
type imports struct {
	claims   corelisters.PersistentVolumeClaimLister
	pods     corelisters.PodLister
	interval time.Duration // shortest time between two messages about one Pod
}

// PreEnqueue keeps a VM out of the queue while one of its claims is being filled on a node: nothing that the scheduler
// could do would help (scheduling.md SC-080). Before there is a node the VM is what chooses it (SC-081).
func (pl *Plugin) PreEnqueue(_ context.Context, pod *corev1.Pod) *fwk.Status {
	if !isVM(pod) || pl.imports == nil {
		return nil
	}
	if claim := pl.imports.unfinished(pod); claim != nil && hasNode(claim) {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, progress(pod, claim))
	}
	return nil
}

// unfinished returns the first claim of a Pod that is being filled, nil for none.
func (i *imports) unfinished(pod *corev1.Pod) *corev1.PersistentVolumeClaim {
	for n := range pod.Spec.Volumes {
		source := pod.Spec.Volumes[n].PersistentVolumeClaim
		if source == nil {
			continue
		}
		if claim, err := i.claims.PersistentVolumeClaims(pod.Namespace).Get(source.ClaimName); err == nil && filling(claim) {
			return claim
		}
	}
	return nil
}

// filling says whether a claim has an import that has begun and is not done.
func filling(claim *corev1.PersistentVolumeClaim) bool {
	phase := claim.Annotations[api.KeyImportPhase]
	return claim.Status.Phase != corev1.ClaimBound && phase != "" && phase != importSucceeded
}

// hasNode says whether a scheduler has chosen where the claim's volume is made. The provisioner takes it back when the node
// cannot make it: then the VM has to be placed anew. Claims that wait for no consumer never have one, and are left to
// VolumeBinding.
func hasNode(claim *corev1.PersistentVolumeClaim) bool { return claim.Annotations[selectedNode] != "" }

// progress is the message about a Pod that waits: `importing root: 37.0% of 10Gi`, or why the import has failed.
func progress(pod *corev1.Pod, claim *corev1.PersistentVolumeClaim) string {
	disk := claim.Name
	for n := range pod.Spec.Volumes {
		if v := &pod.Spec.Volumes[n]; v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claim.Name {
			disk = v.Name
		}
	}
	if claim.Annotations[api.KeyImportPhase] == importFailed {
		return fmt.Sprintf("import of %s failed: %s", disk, claim.Annotations[api.KeyImportMessage])
	}
	size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	percent := claim.Annotations[api.KeyImportProgress]
	if !strings.HasSuffix(percent, "%") {
		return fmt.Sprintf("importing %s: %s", disk, claim.Annotations[api.KeyImportMessage])
	}
	return fmt.Sprintf("importing %s: %s of %s", disk, percent, size.String())
}

// isSchedulableAfterClaimChange wakes a VM when a claim of its own is no longer being filled.
func (pl *Plugin) isSchedulableAfterClaimChange(_ klog.Logger, pod *corev1.Pod, oldObj, newObj any) (fwk.QueueingHint, error) {
	now, ok := newObj.(*corev1.PersistentVolumeClaim)
	if !ok || now.Namespace != pod.Namespace || filling(now) && hasNode(now) {
		return fwk.QueueSkip, nil
	}
	if before, ok := oldObj.(*corev1.PersistentVolumeClaim); !ok || !filling(before) {
		return fwk.QueueSkip, nil
	}
	for n := range pod.Spec.Volumes {
		if source := pod.Spec.Volumes[n].PersistentVolumeClaim; source != nil && source.ClaimName == now.Name {
			return fwk.Queue, nil
		}
	}
	return fwk.QueueSkip, nil
}

// report writes the progress into the condition of the Pods that wait, until ctx ends: what PreEnqueue says reaches
// nobody. Each replica of the scheduler does; the time of the last probe keeps them from writing twice.
func (i *imports) report(ctx context.Context, client kubernetes.Interface) {
	ticker := time.NewTicker(i.interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for pod, message := range i.news(time.Now()) {
			if err := tell(ctx, client, pod, message); err != nil {
				klog.FromContext(ctx).Info("The progress of an import was not told", "pod", klog.KObj(pod), "err", err)
			}
		}
	}
}

// news are the Pods that wait for a disk, with what they are to be told.
func (i *imports) news(now time.Time) map[*corev1.Pod]string {
	vms, err := labels.Parse(api.LabelVM)
	if err != nil {
		return nil
	}
	pods, err := i.pods.List(vms)
	if err != nil {
		return nil
	}
	news := map[*corev1.Pod]string{}
	for _, pod := range pods {
		if pod.Spec.NodeName != "" || pod.DeletionTimestamp != nil {
			continue
		}
		claim := i.unfinished(pod)
		if claim == nil {
			continue
		}
		message := progress(pod, claim)
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodScheduled && (c.Message == message || c.Reason == reasonVolumes && now.Sub(c.LastProbeTime.Time) < i.interval/2) {
				message = ""
			}
		}
		if message != "" {
			news[pod] = message
		}
	}
	return news
}

// tell sets condition PodScheduled. The reason is not Unschedulable: no autoscaler shall add a node for it.
func tell(ctx context.Context, client kubernetes.Interface, pod *corev1.Pod, message string) error {
	now := metav1.Now()
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": pod.UID},
		"status": map[string]any{"conditions": []corev1.PodCondition{{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: reasonVolumes, Message: message, LastProbeTime: now, LastTransitionTime: now,
		}}},
	})
	if err != nil {
		return err
	}
	_, err = client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}
