package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/driver"
	"podvirt.dev/csi-hostpath/internal/volume"
)

// Expander lets a volume grow to a size in bytes and returns the size it has then. Its error wraps
// [volume.ErrTooLarge] where asking again does not help.
type Expander func(ctx context.Context, handle string, size int64) (int64, error)

// Pauses between attempts to let one volume grow.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// resizer lets the volumes of this node grow. Kubernetes' own resizer asks one driver for all nodes, whereas only the
// driver of a volume's node has the volume (storage.md ST-024).
type resizer struct {
	client  *Client
	expand  Expander
	claims  listers.PersistentVolumeClaimLister
	volumes listers.PersistentVolumeLister
	queue   workqueue.TypedRateLimitingInterface[cache.ObjectName]
}

// Follow follows all claims until ctx ends: it lets volumes of this node grow whose claims ask for more, and ends imports
// whose claims are gone.
func (c *Client) Follow(ctx context.Context, expand Expander, forget Forgetter) error {
	factory := informers.NewSharedInformerFactoryWithOptions(c.kube, 0, informers.WithTransform(stripped))
	claims, volumes := factory.Core().V1().PersistentVolumeClaims(), factory.Core().V1().PersistentVolumes()
	r := &resizer{
		client: c, expand: expand, claims: claims.Lister(), volumes: volumes.Lister(),
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[cache.ObjectName](firstRetry, lastRetry)),
	}
	notify := func(object any) {
		if claim, ok := object.(*corev1.PersistentVolumeClaim); ok && wantsMore(claim) {
			r.queue.Add(cache.MetaObjectToName(claim))
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: notify, UpdateFunc: func(_, now any) { notify(now) }}
	if _, err := claims.Informer().AddEventHandler(handler); err != nil {
		return fmt.Errorf("following claims: %w", err)
	}
	volumes.Informer()
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	factory.WaitForCacheSync(ctx.Done())
	if ctx.Err() != nil {
		return nil
	}
	var forgetting sync.WaitGroup
	forgetting.Go(func() { c.forgetting(ctx, r.claims, forget) })
	defer forgetting.Wait()
	stop := context.AfterFunc(ctx, r.queue.ShutDown)
	defer stop()
	for {
		name, ended := r.queue.Get()
		if ended {
			return nil
		}
		r.handle(ctx, name)
	}
}

// handle does one claim and decides whether it comes back.
func (r *resizer) handle(ctx context.Context, name cache.ObjectName) {
	defer r.queue.Done(name)
	err := r.one(ctx, name)
	switch {
	case err == nil, errors.Is(err, volume.ErrTooLarge):
		r.queue.Forget(name)
	case ctx.Err() == nil:
		klog.FromContext(ctx).Info("A volume does not grow; it will be tried again", "claim", name.String(), "err", err)
		r.queue.AddRateLimited(name)
	}
}

// stripped takes out of cached objects what nobody reads.
func stripped(object any) (any, error) {
	if o, err := meta.Accessor(object); err == nil {
		o.SetManagedFields(nil)
	}
	return object, nil
}

// wantsMore says whether a bound claim asks for more than it has.
func wantsMore(claim *corev1.PersistentVolumeClaim) bool {
	wanted, has := claim.Spec.Resources.Requests[corev1.ResourceStorage], claim.Status.Capacity[corev1.ResourceStorage]
	return claim.Status.Phase == corev1.ClaimBound && wanted.Cmp(has) > 0
}

func (r *resizer) one(ctx context.Context, name cache.ObjectName) error {
	claim, err := r.claims.PersistentVolumeClaims(name.Namespace).Get(name.Name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil || !wantsMore(claim) {
		return err
	}
	pv, err := r.volumes.Get(claim.Spec.VolumeName)
	if err != nil || !r.ours(pv) {
		return err
	}
	wanted := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if given := claim.Status.AllocatedResourceStatuses[corev1.ResourceStorage]; given == corev1.PersistentVolumeClaimControllerResizeInfeasible {
		if asked := claim.Status.AllocatedResources[corev1.ResourceStorage]; asked.Cmp(wanted) == 0 {
			return nil // it was told so already
		}
	}
	if err := r.begin(ctx, claim, wanted); err != nil {
		return err
	}
	size, err := r.expand(ctx, pv.Spec.CSI.VolumeHandle, wanted.Value())
	if err != nil {
		return errors.Join(err, r.failed(ctx, claim, err))
	}
	return r.finish(ctx, claim, pv, size)
}

// ours says whether the volume is the driver's and on this node.
func (r *resizer) ours(pv *corev1.PersistentVolume) bool {
	if pv.Spec.CSI == nil || pv.Spec.CSI.Driver != api.CSIDriver || pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
		return false
	}
	return slices.ContainsFunc(pv.Spec.NodeAffinity.Required.NodeSelectorTerms, func(term corev1.NodeSelectorTerm) bool {
		return slices.ContainsFunc(term.MatchExpressions, func(e corev1.NodeSelectorRequirement) bool {
			return e.Key == driver.TopologyKey && slices.Contains(e.Values, r.client.opts.Node)
		})
	})
}

// begin tells that the volume is about to grow (KEP 1790, recovery from failed expansion).
func (r *resizer) begin(ctx context.Context, claim *corev1.PersistentVolumeClaim, wanted resource.Quantity) error {
	now := corev1.PersistentVolumeClaimCondition{Type: corev1.PersistentVolumeClaimResizing, Status: corev1.ConditionTrue}
	return r.patch(ctx, claim, map[string]any{
		"allocatedResources":        map[string]any{"storage": wanted.String()},
		"allocatedResourceStatuses": map[string]any{"storage": corev1.PersistentVolumeClaimControllerResizeInProgress},
		"conditions":                conditions(claim, &now),
	})
}

// failed tells why it did not.
func (r *resizer) failed(ctx context.Context, claim *corev1.PersistentVolumeClaim, cause error) error {
	reason := "VolumeResizeFailed"
	if errors.Is(cause, volume.ErrNoSpace) {
		reason = "NoSpace"
	}
	r.client.events.Event(claim, corev1.EventTypeWarning, reason, cause.Error())
	status := map[string]any{"conditions": conditions(claim, &corev1.PersistentVolumeClaimCondition{
		Type: corev1.PersistentVolumeClaimControllerResizeError, Status: corev1.ConditionTrue, Message: cause.Error(),
	})}
	if errors.Is(cause, volume.ErrTooLarge) {
		status["allocatedResourceStatuses"] = map[string]any{"storage": corev1.PersistentVolumeClaimControllerResizeInfeasible}
	}
	return r.patch(ctx, claim, status)
}

// finish writes down the new size: on the volume first, since that is what is true when this is interrupted.
func (r *resizer) finish(ctx context.Context, claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, size int64) error {
	has := resource.NewQuantity(size, resource.BinarySI).String()
	capacity := map[string]string{"storage": has}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"capacity": capacity}})
	if err != nil {
		return err
	}
	options := metav1.PatchOptions{FieldManager: component}
	if _, err := r.client.kube.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, patch, options); err != nil {
		return err
	}
	err = r.patch(ctx, claim, map[string]any{
		"capacity": capacity, "allocatedResourceStatuses": nil, "conditions": conditions(claim, nil),
	})
	if err == nil {
		r.client.events.Event(claim, corev1.EventTypeNormal, "DiskResized", "the volume has "+has+" now")
	}
	return err
}

// conditions are those of a claim with the ones about growth replaced.
func conditions(claim *corev1.PersistentVolumeClaim, now *corev1.PersistentVolumeClaimCondition) []corev1.PersistentVolumeClaimCondition {
	kept := []corev1.PersistentVolumeClaimCondition{}
	for _, c := range claim.Status.Conditions {
		switch c.Type {
		case corev1.PersistentVolumeClaimResizing, corev1.PersistentVolumeClaimControllerResizeError,
			corev1.PersistentVolumeClaimFileSystemResizePending:
		default:
			kept = append(kept, c)
		}
	}
	if now != nil {
		now.LastTransitionTime = metav1.Now()
		kept = append(kept, *now)
	}
	return kept
}

func (r *resizer) patch(ctx context.Context, claim *corev1.PersistentVolumeClaim, status map[string]any) error {
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return err
	}
	_, err = r.client.kube.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(
		ctx, claim.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: component}, "status")
	return err
}

// Quiesced notes on a VolumeSnapshotContent, where one is named, how the snapshot was made consistent, and tells the
// claim's readers (storage.md 2.2, 2.11).
func (c *Client) Quiesced(ctx context.Context, q driver.QuiescedSnapshot) {
	if q.Claim.Name != "" && (q.How == driver.QuiescedAgent || q.Why != "") {
		claim := &corev1.ObjectReference{
			APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: q.Claim.Namespace, Name: q.Claim.Name, UID: types.UID(q.Claim.UID),
		}
		if q.How == driver.QuiescedAgent {
			c.events.Event(claim, corev1.EventTypeNormal, "SnapshotFrozen", "the guest's file systems were frozen for the snapshot "+q.Snapshot)
		} else {
			c.events.Event(claim, corev1.EventTypeWarning, "SnapshotNotFrozen", "snapshot "+q.Snapshot+" is as after a power cut: "+q.Why)
		}
	}
	if q.Content == "" {
		return
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{api.Prefix + "quiesced": q.How}}})
	if err == nil {
		err = c.kube.CoreV1().RESTClient().Patch(types.MergePatchType).
			AbsPath("/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents", q.Content).Body(patch).Do(ctx).Error()
	}
	if err != nil {
		klog.FromContext(ctx).Info("Noting how a snapshot was made consistent", "content", q.Content, "err", err)
	}
}
