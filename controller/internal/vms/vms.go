// Package vms follows every VM Pod that has a node: it asks the launcher, writes what people look for to the Pod, tells
// news in Events, and has a Pod made again that no network stage saw (spec vm.md 2.8, VM-118, VM-214; network.md NW-010).
package vms

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/controller/internal/events"
	"podvirt.dev/controller/internal/mirror"
	"podvirt.dev/controller/internal/pace"
	"podvirt.dev/internal/vmstatus"
)

// FieldManager owns what the controller writes to Pods.
const FieldManager = "podvirt-controller"

const (
	workers = 32
	// maxAsked is how many launchers are asked in a second: with more VMs each is asked less often.
	maxAsked = 250
	// silence is for how long a launcher may not answer before the Pod says so.
	silence = time.Minute
	// slowest is the longest pause between two requests to a launcher that does not answer.
	slowest = time.Minute
	// maxAge is the age from which an end or a piece of news is not told any more; Events live as long by default.
	maxAge = time.Hour
)

// Limits per VM (vm.md 2.8, VM-214).
const (
	eventsAMinute = 10
	writesAMinute = 20
	writeGap      = time.Second
)

// Asker asks a launcher.
type Asker interface {
	Ask(ctx context.Context, ip string, port int) (vmstatus.Status, error)
}

// Recorder tells people.
type Recorder interface {
	Write(ctx context.Context, e events.Event) error
	Find(ctx context.Context, namespace, about, name string) (time.Time, bool, error)
}

// Observer counts.
type Observer interface {
	VMs(n int)
	Asked(err error)
	Written(err error)
	Event(reason string)
	Held()
	Replaced()
}

// Options of a Follower.
type Options struct {
	Client   corev1client.CoreV1Interface
	Asker    Asker
	Recorder Recorder
	Observer Observer
	// Period is the pause between two requests to one launcher.
	Period time.Duration
	// Silence is for how long a launcher may not answer; 0 means a minute.
	Silence time.Duration
	// Port is that of the launchers.
	Port func() int
}

// Follower follows all VM Pods.
type Follower struct {
	opt    Options
	queue  workqueue.TypedDelayingInterface[types.NamespacedName]
	store  cache.Store
	source cache.Controller
	synced atomic.Bool

	mu      sync.Mutex
	records map[types.NamespacedName]*record
}

// record is what is remembered of a VM. It belongs to the worker that has its key.
type record struct {
	uid    types.UID
	told   *mirror.Told // nil: the annotation was not read yet
	events pace.Window
	writes pace.Window

	applied     []byte // what was written last, without times
	appliedAt   time.Time
	silentSince time.Time // zero: the launcher answers
	finished    string    // container whose end was dealt with
}

// New returns a Follower that follows nothing yet.
func New(opt Options) *Follower {
	if opt.Silence == 0 {
		opt.Silence = silence
	}
	f := &Follower{
		opt: opt, records: map[types.NamespacedName]*record{},
		queue: workqueue.NewTypedDelayingQueue[types.NamespacedName](),
	}
	f.store, f.source = cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: pods(opt.Client), ObjectType: &corev1.Pod{}, Transform: strip,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc: f.enqueue,
			UpdateFunc: func(before, after any) {
				if matters(before, after) {
					f.enqueue(after)
				}
			},
			DeleteFunc: f.enqueue,
		},
	})
	return f
}

// pods are those of VMs that have a node.
func pods(client corev1client.CoreV1Interface) *cache.ListWatch {
	selected := func(o metav1.ListOptions) metav1.ListOptions {
		o.LabelSelector, o.FieldSelector = api.LabelVM, "spec.nodeName!="
		return o
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return client.Pods("").List(ctx, selected(o))
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return client.Pods("").Watch(ctx, selected(o))
		},
	}
}

// Synced says whether all Pods have been listed.
func (f *Follower) Synced() bool { return f.synced.Load() }

// Run follows until ctx ends.
func (f *Follower) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	defer f.queue.ShutDown()
	running.Go(func() { f.source.RunWithContext(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), f.source.HasSynced) {
		return
	}
	f.synced.Store(true)
	for range workers {
		running.Go(func() { f.work(ctx) })
	}
	<-ctx.Done()
}

func (f *Follower) enqueue(object any) {
	key, err := cache.DeletionHandlingObjectToName(object)
	if err == nil {
		f.queue.Add(types.NamespacedName{Namespace: key.Namespace, Name: key.Name})
	}
}

// work deals with one VM after the other; no two workers have the same.
func (f *Follower) work(ctx context.Context) {
	for {
		key, end := f.queue.Get()
		if end {
			return
		}
		if ctx.Err() == nil {
			if again := f.sync(ctx, key); again > 0 {
				f.queue.AddAfter(key, again)
			}
		}
		f.queue.Done(key)
	}
}

// sync deals with one VM and says after what time to do so again; 0 means when its Pod changes.
func (f *Follower) sync(ctx context.Context, key types.NamespacedName) time.Duration {
	object, exists, err := f.store.GetByKey(key.String())
	pod, ok := object.(*corev1.Pod)
	if err != nil || !exists || !ok {
		f.forget(key)
		return 0
	}
	r := f.record(key, pod)
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithValues("pod", key.String()))
	var again time.Duration
	switch container := vmContainer(pod); {
	case container == nil:
		return 0
	case container.State.Running != nil:
		if pod.Annotations[api.KeyMetrics] == "off" {
			return 0 // nobody answers there
		}
		again, err = f.look(ctx, pod, r)
	default:
		again, err = f.over(ctx, pod, r, container)
	}
	if err != nil && ctx.Err() == nil {
		klog.FromContext(ctx).Error(err, "VM not followed")
		return f.pause()
	}
	return again
}

func (f *Follower) record(key types.NamespacedName, pod *corev1.Pod) *record {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.records[key]
	if r == nil || r.uid != pod.UID {
		r = &record{
			uid:    pod.UID,
			events: pace.Window{Most: eventsAMinute, Span: time.Minute},
			writes: pace.Window{Most: writesAMinute, Span: time.Minute, Gap: writeGap},
		}
		f.records[key] = r
		f.opt.Observer.VMs(len(f.records))
	}
	return r
}

func (f *Follower) forget(key types.NamespacedName) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.records, key)
	f.opt.Observer.VMs(len(f.records))
}

// pause is the time until a launcher is asked again, a different one each time so that the requests spread.
func (f *Follower) pause() time.Duration {
	f.mu.Lock()
	n := len(f.records)
	f.mu.Unlock()
	period := max(f.opt.Period, time.Duration(n)*time.Second/maxAsked)
	return period*3/4 + rand.N(period/2)
}

// vmContainer returns what the kubelet says of the container that is the VM.
func vmContainer(pod *corev1.Pod) *corev1.ContainerStatus {
	at := slices.IndexFunc(pod.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool { return c.Name == api.ContainerName })
	if at < 0 {
		return nil
	}
	return &pod.Status.ContainerStatuses[at]
}

// strip leaves of a Pod what the Follower reads: thousands of them are kept.
func strip(object any) (any, error) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil // a tombstone, or an unknown object of which only the key counts
	}
	small := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: pod.Name, Namespace: pod.Namespace, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
			CreationTimestamp: pod.CreationTimestamp, DeletionTimestamp: pod.DeletionTimestamp,
		},
		Status: corev1.PodStatus{PodIP: pod.Status.PodIP},
	}
	for _, key := range []string{api.KeyStatus, api.KeyMetrics} {
		if value, found := pod.Annotations[key]; found {
			metav1.SetMetaDataAnnotation(&small.ObjectMeta, key, value)
		}
	}
	if owner := metav1.GetControllerOf(pod); owner != nil {
		small.OwnerReferences = []metav1.OwnerReference{*owner}
	}
	for _, c := range pod.Status.Conditions {
		if len(c.Type) > len(api.Prefix) && string(c.Type[:len(api.Prefix)]) == api.Prefix {
			small.Status.Conditions = append(small.Status.Conditions, c)
		}
	}
	if c := vmContainer(pod); c != nil {
		small.Status.ContainerStatuses = []corev1.ContainerStatus{{
			Name: c.Name, ContainerID: c.ContainerID, State: c.State, LastTerminationState: c.LastTerminationState,
		}}
	}
	return small, nil
}

// matters says whether a change of the Pod is one to act on at once; our own writes are not.
func matters(before, after any) bool {
	b, okB := before.(*corev1.Pod)
	a, okA := after.(*corev1.Pod)
	return !okB || !okA || b.UID != a.UID || b.Status.PodIP != a.Status.PodIP || b.Annotations[api.KeyMetrics] != a.Annotations[api.KeyMetrics] ||
		!reflect.DeepEqual(b.Status.ContainerStatuses, a.Status.ContainerStatuses)
}

func about(pod *corev1.Pod) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}
}

// short names a Pod within the name of an Event.
func short(uid types.UID) string { return fmt.Sprintf("%.8s", uid) }
