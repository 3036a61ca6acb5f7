// Package claims frees claims of our storage driver that wait for a node that is gone (spec storage.md ST-008).
//
// The provisioner of a node makes what was selected for this node; with the node went the only one who could say that it
// will not. The scheduler keeps to the selection for as long as it stands.
package claims

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/controller/internal/events"
)

// Annotations of Kubernetes on claims (k8s.io/component-helpers/storage/volume).
const (
	selectedNode  = "volume.kubernetes.io/selected-node"
	provisioner   = "volume.kubernetes.io/storage-provisioner"
	bindCompleted = "pv.kubernetes.io/bind-completed"
)

// patience is for how long a node has to be gone: its object may be made anew.
const patience = time.Minute

// retry is the pause after an error.
const retry = 10 * time.Second

// Options of a Keeper.
type Options struct {
	Client   corev1client.CoreV1Interface
	Metadata metadata.Interface // no more of claims and Nodes is kept
	Recorder Recorder
	Observer Observer
	// Patience is for how long a node has to be gone; 0 means a minute.
	Patience time.Duration
}

// Recorder tells people.
type Recorder interface {
	Write(ctx context.Context, e events.Event) error
}

// Observer counts.
type Observer interface{ Cleared() }

// Keeper follows claims and Nodes.
type Keeper struct {
	opt    Options
	queue  workqueue.TypedDelayingInterface[types.NamespacedName]
	claims cache.Store
	nodes  cache.Store
	run    []cache.Controller
	gone   map[types.NamespacedName]missing // only touched by the one worker
}

// missing is a node that a claim waits for.
type missing struct {
	claim types.UID
	node  string
	since time.Time
}

// New returns a Keeper that follows nothing yet.
func New(opt Options) *Keeper {
	if opt.Patience == 0 {
		opt.Patience = patience
	}
	k := &Keeper{opt: opt, queue: workqueue.NewTypedDelayingQueue[types.NamespacedName](), gone: map[types.NamespacedName]missing{}}
	var claims, nodes cache.Controller
	k.claims, claims = k.informer("persistentvolumeclaims", cache.ResourceEventHandlerFuncs{
		AddFunc: k.enqueue, UpdateFunc: func(_, after any) { k.enqueue(after) }, DeleteFunc: k.enqueue,
	})
	k.nodes, nodes = k.informer("nodes", cache.ResourceEventHandlerFuncs{DeleteFunc: func(any) { k.enqueueAll() }})
	k.run = []cache.Controller{nodes, claims}
	return k
}

func (k *Keeper) informer(resource string, handler cache.ResourceEventHandler) (cache.Store, cache.Controller) {
	client := k.opt.Metadata.Resource(schema.GroupVersionResource{Version: "v1", Resource: resource})
	return cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: &cache.ListWatch{
			ListWithContextFunc:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return client.List(ctx, o) },
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return client.Watch(ctx, o) },
		},
		ObjectType: &metav1.PartialObjectMetadata{}, Transform: strip, Handler: handler,
	})
}

// strip leaves of an object's metadata what the Keeper reads.
func strip(object any) (any, error) {
	m, ok := object.(*metav1.PartialObjectMetadata)
	if !ok {
		return object, nil
	}
	small := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion,
	}}
	if waits(m.Annotations) {
		small.Annotations = map[string]string{selectedNode: m.Annotations[selectedNode], provisioner: api.CSIDriver}
	}
	return small, nil
}

// waits says whether a claim waits for our driver on a node.
func waits(annotations map[string]string) bool {
	return annotations[selectedNode] != "" && annotations[provisioner] == api.CSIDriver && annotations[bindCompleted] == ""
}

// Synced says whether all claims and Nodes have been listed.
func (k *Keeper) Synced() bool { return k.run[0].HasSynced() && k.run[1].HasSynced() }

// Run follows until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	defer k.queue.ShutDown()
	for _, c := range k.run {
		running.Go(func() { c.RunWithContext(ctx) })
	}
	if !cache.WaitForCacheSync(ctx.Done(), k.Synced) {
		return
	}
	running.Go(func() { k.work(ctx) })
	<-ctx.Done()
}

func (k *Keeper) enqueue(object any) {
	name, err := cache.DeletionHandlingObjectToName(object)
	if err == nil {
		k.queue.Add(types.NamespacedName{Namespace: name.Namespace, Name: name.Name})
	}
}

// enqueueAll looks at all claims again: a node has gone.
func (k *Keeper) enqueueAll() {
	for _, object := range k.claims.List() {
		k.enqueue(object)
	}
}

func (k *Keeper) work(ctx context.Context) {
	for {
		key, end := k.queue.Get()
		if end {
			return
		}
		again, err := k.sync(ctx, key)
		if err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "claim not freed", "claim", key.String())
			again = retry
		}
		if again > 0 {
			k.queue.AddAfter(key, again)
		}
		k.queue.Done(key)
	}
}

// sync looks at one claim and says after what time to look again; 0 means when it changes.
func (k *Keeper) sync(ctx context.Context, key types.NamespacedName) (time.Duration, error) {
	object, exists, err := k.claims.GetByKey(key.String())
	claim, ok := object.(*metav1.PartialObjectMetadata)
	if err != nil || !exists || !ok || !waits(claim.Annotations) {
		delete(k.gone, key)
		return 0, err
	}
	node := claim.Annotations[selectedNode]
	if _, there, err := k.nodes.GetByKey(node); err != nil || there {
		delete(k.gone, key)
		return 0, err
	}
	m, known := k.gone[key]
	if !known || m.claim != claim.UID || m.node != node {
		m = missing{claim: claim.UID, node: node, since: time.Now()}
		k.gone[key] = m
	}
	if left := k.opt.Patience - time.Since(m.since); left > 0 {
		return left, nil
	}
	if err := k.clear(ctx, key, node); err != nil {
		return 0, err
	}
	delete(k.gone, key)
	return 0, nil
}

// clear takes the selection from a claim, as both are now.
func (k *Keeper) clear(ctx context.Context, key types.NamespacedName, node string) error {
	claim, err := k.opt.Client.PersistentVolumeClaims(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("claim: %w", err)
	}
	if !waits(claim.Annotations) || claim.Annotations[selectedNode] != node || claim.Spec.VolumeName != "" {
		return nil
	}
	switch _, err := k.opt.Client.Nodes().Get(ctx, node, metav1.GetOptions{}); {
	case err == nil:
		return nil
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("node of the claim: %w", err)
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"resourceVersion": claim.ResourceVersion, "annotations": map[string]any{selectedNode: nil},
	}})
	if err != nil {
		return err
	}
	_, err = k.opt.Client.PersistentVolumeClaims(key.Namespace).Patch(ctx, key.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("claim: %w", err)
	}
	k.opt.Observer.Cleared()
	klog.FromContext(ctx).Info("claim freed of a node that is gone", "claim", key.String(), "node", node)
	return k.opt.Recorder.Write(ctx, events.Event{
		Name:  fmt.Sprintf("%.8s.%s", claim.UID, claim.ResourceVersion),
		About: corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: key.Namespace, Name: key.Name, UID: claim.UID},
		First: time.Now(), Warning: true, Action: "ClearSelection", Reason: "SelectedNodeGone",
		Note: "node " + node + " is gone, and nothing was made there: the scheduler may choose another one",
	})
}
