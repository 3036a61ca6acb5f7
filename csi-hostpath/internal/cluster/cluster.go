// Package cluster is the driver's side of the API server: it follows storage.pools of podvirt-config and the labels of
// its own Node, reads claims, and publishes what the pools are on the Node.
package cluster

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/driver"
	"podvirt.dev/csi-hostpath/internal/poolconfig"
)

// component names the driver in events and as field manager.
const component = "podvirt-csi-hostpath"

// Options of a client.
type Options struct {
	Kubeconfig string // empty: the service account of the Pod
	Node       string
	Root       string // paths of pools lie below it
}

// Client talks to the API server. Run must run for events and configuration to flow.
type Client struct {
	opts   Options
	kube   kubernetes.Interface
	events record.EventRecorder
	sink   record.EventBroadcaster

	imports importKnowledge
}

// importKnowledge is what is remembered about imports.
type importKnowledge struct {
	mu       sync.Mutex
	settings driver.ImportSettings
	read     time.Time         // of the ranges
	told     map[string]string // condition by UID of the claim
}

func (k *importKnowledge) forget(uid string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.told, uid)
}

// New returns a client; it connects when it is used.
func New(opts Options) (*Client, error) {
	var config *rest.Config
	var err error
	if opts.Kubeconfig == "" {
		config, err = rest.InClusterConfig()
	} else {
		config, err = clientcmd.BuildConfigFromFlags("", opts.Kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("finding the API server: %w", err)
	}
	config.UserAgent = component
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connecting to the API server: %w", err)
	}
	return newClient(opts, kube), nil
}

func newClient(opts Options, kube kubernetes.Interface) *Client {
	sink := record.NewBroadcaster()
	return &Client{
		opts: opts, kube: kube, sink: sink, imports: importKnowledge{told: map[string]string{}},
		events: sink.NewRecorder(scheme(), corev1.EventSource{Component: component, Host: opts.Node}),
	}
}

var _ driver.Claims = (*Client)(nil)

// Claim reads a claim.
func (c *Client) Claim(ctx context.Context, namespace, name string) (driver.ClaimInfo, error) {
	claim, err := c.kube.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return driver.ClaimInfo{}, err
	}
	info := driver.ClaimInfo{UID: string(claim.UID), Annotations: claim.Annotations}
	if claim.Spec.StorageClassName != nil {
		info.Class = *claim.Spec.StorageClassName
	}
	return info, nil
}

// Run follows the configuration until ctx ends. apply gets the pools of this node, at first and whenever they change;
// a configuration with a mistake is reported and the last good one stays in force.
func (c *Client) Run(ctx context.Context, apply func(context.Context, []poolconfig.Pool)) error {
	c.sink.StartRecordingToSink(&typedcore.EventSinkImpl{Interface: c.kube.CoreV1().Events("")})
	defer c.sink.Shutdown()

	configs := c.factory(api.ConfigName, informers.WithNamespace(api.SystemNamespace))
	nodes := c.factory(c.opts.Node)
	config, node := configs.Core().V1().ConfigMaps().Informer(), nodes.Core().V1().Nodes().Informer()
	changed := make(chan struct{}, 1)
	notify := func(any) {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	for _, informer := range []cache.SharedIndexInformer{config, node} {
		handler := cache.ResourceEventHandlerFuncs{AddFunc: notify, UpdateFunc: func(_, o any) { notify(o) }, DeleteFunc: notify}
		if _, err := informer.AddEventHandler(handler); err != nil {
			return fmt.Errorf("following the configuration: %w", err)
		}
	}
	configs.Start(ctx.Done())
	nodes.Start(ctx.Done())
	defer configs.Shutdown()
	defer nodes.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), config.HasSynced, node.HasSynced) {
		return nil // ctx ended
	}
	notify(nil)
	last := outcome{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			c.follow(ctx, config.GetStore(), node.GetStore(), &last, apply)
		}
	}
}

// factory makes informers that see objects of one name only: a driver must not hold the whole cluster.
func (c *Client) factory(name string, more ...informers.SharedInformerOption) informers.SharedInformerFactory {
	only := informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	})
	return informers.NewSharedInformerFactoryWithOptions(c.kube, 0, append(more, only)...)
}

// outcome remembers what came of the configuration, so that one mistake makes one event, and that the heartbeats of
// the Node apply nothing.
type outcome struct {
	applied  bool
	pools    []poolconfig.Pool
	rejected string
}

func (c *Client) follow(ctx context.Context, configs, nodes cache.Store, last *outcome, apply func(context.Context, []poolconfig.Pool)) {
	text, config := "", first[*corev1.ConfigMap](configs)
	if config != nil {
		text = config.Data[poolconfig.Key]
	}
	var labels map[string]string
	if node := first[*corev1.Node](nodes); node != nil {
		labels = node.Labels
	}
	pools, err := poolconfig.Parse(text, c.opts.Root)
	if err == nil {
		pools, err = poolconfig.ForNode(pools, c.opts.Node, labels)
	}
	if err == nil {
		if !last.applied || !reflect.DeepEqual(pools, last.pools) {
			apply(ctx, pools)
		}
		*last = outcome{applied: true, pools: pools}
		return
	}
	if err.Error() == last.rejected {
		return
	}
	last.rejected = err.Error()
	if !last.applied {
		// Nothing good is known yet; volumes that exist must be usable all the same.
		last.applied = true
		apply(ctx, nil)
	}
	klog.FromContext(ctx).Error(err, "The configuration is refused; the last good one stays in force")
	if config != nil {
		c.events.Event(config, corev1.EventTypeWarning, "ConfigRejected", err.Error())
	}
}

// first returns the only object of a store, or nil.
func first[T any](store cache.Store) T {
	var none T
	for _, object := range store.List() {
		if typed, ok := object.(T); ok {
			return typed
		}
	}
	return none
}
