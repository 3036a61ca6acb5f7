// Package node is all the device plugin does with the Kubernetes API: it watches its own Node and Pod and one ConfigMap, writes
// our annotations and labels on that Node, and tells people what happened in Events. It uses clients without generated
// types: the typed ones would be most of the binary and of its memory.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// FieldManager owns the annotations and labels that the device plugin writes (scheduling.md 2.1).
const FieldManager = "podvirt-device-plugin"

// eventNamespace is where Events about objects without a namespace live.
const eventNamespace = "default"

func nodes() schema.GroupVersionResource {
	return schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
}

func configMaps() schema.GroupVersionResource {
	return schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
}

func pods() schema.GroupVersionResource {
	return schema.GroupVersionResource{Version: "v1", Resource: "pods"}
}

func events() schema.GroupVersionResource {
	return schema.GroupVersionResource{Version: "v1", Resource: "events"}
}

// View is what the plugin sees of its Node.
type View struct {
	UID         types.UID // empty: the Node was not seen yet, or is not there
	Annotations map[string]string
	Labels      map[string]string
}

// Client speaks for one Node.
type Client struct {
	name     string
	metadata metadata.Interface
	dynamic  dynamic.Interface
}

// NewClient returns a client for the Node of that name; it connects at the first call.
func NewClient(config *rest.Config, name string) (*Client, error) {
	meta, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client for metadata: %w", err)
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	return &Client{name: name, metadata: meta, dynamic: dyn}, nil
}

// Watch calls set with every state of the Node until ctx ends.
func (c *Client) Watch(ctx context.Context, set func(View)) error {
	client := c.metadata.Resource(nodes())
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = byName(c.name)
			return client.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = byName(c.name)
			return client.Watch(ctx, o)
		},
	}
	update := func(obj any) {
		if m, ok := obj.(*metav1.PartialObjectMetadata); ok {
			set(View{UID: m.UID, Annotations: m.Annotations, Labels: m.Labels})
		}
	}
	return follow(ctx, source, &metav1.PartialObjectMetadata{}, update, func() { set(View{}) })
}

// KubeletAddress returns HOST:PORT of the Node's kubelet, as the Node's status has it.
func (c *Client) KubeletAddress(ctx context.Context) (string, error) {
	node, err := c.dynamic.Resource(nodes()).Get(ctx, c.name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("address: %w", err)
	}
	addresses, _, _ := unstructured.NestedSlice(node.Object, "status", "addresses") // a Node that is not up has none
	port, _, _ := unstructured.NestedInt64(node.Object, "status", "daemonEndpoints", "kubeletEndpoint", "Port")
	for _, address := range addresses {
		fields, ok := address.(map[string]any)
		if host, isText := fields["address"].(string); ok && isText && fields["type"] == "InternalIP" && port > 0 {
			return net.JoinHostPort(host, strconv.FormatInt(port, 10)), nil
		}
	}
	return "", errors.New("the Node names no address")
}

// WatchConfigMap calls set with the data of a ConfigMap until ctx ends; nil while it does not exist.
func (c *Client) WatchConfigMap(ctx context.Context, name types.NamespacedName, set func(data map[string]string)) error {
	update := func(obj any) {
		u, ok := obj.(*unstructured.Unstructured)
		if !ok {
			return
		}
		data, _, err := unstructured.NestedStringMap(u.Object, "data")
		if err != nil {
			klog.FromContext(ctx).Error(err, "Reading the ConfigMap", "configMap", name.String())
			return
		}
		set(data)
	}
	return follow(ctx, c.one(configMaps(), name), &unstructured.Unstructured{}, update, func() { set(nil) })
}

// WatchImage calls set with the digest of the image that a container of a Pod runs, sha256:HEX, until ctx ends; "" while
// the runtime has not said it.
func (c *Client) WatchImage(ctx context.Context, pod types.NamespacedName, container string, set func(digest string)) error {
	update := func(obj any) {
		if u, ok := obj.(*unstructured.Unstructured); ok {
			set(imageDigest(u, container))
		}
	}
	return follow(ctx, c.one(pods(), pod), &unstructured.Unstructured{}, update, func() { set("") })
}

// imageDigest takes the digest out of an image ID, which runtimes write as NAME@sha256:HEX or as sha256:HEX.
func imageDigest(pod *unstructured.Unstructured, container string) string {
	statuses, _, _ := unstructured.NestedSlice(pod.Object, "status", "containerStatuses") // absent at first
	for _, status := range statuses {
		fields, ok := status.(map[string]any)
		if !ok || fields["name"] != container {
			continue
		}
		id, _ := fields["imageID"].(string)
		if at := strings.LastIndex(id, "sha256:"); at >= 0 {
			return id[at:]
		}
	}
	return ""
}

// one lists and watches a single object.
func (c *Client) one(resource schema.GroupVersionResource, name types.NamespacedName) *cache.ListWatch {
	client := c.dynamic.Resource(resource).Namespace(name.Namespace)
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = byName(name.Name)
			return client.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = byName(name.Name)
			return client.Watch(ctx, o)
		},
	}
}

// Apply makes exactly these annotations and labels the plugin's on its Node, by server-side apply. What an earlier call
// wrote and this one leaves out is removed; keys of others stay.
func (c *Client) Apply(ctx context.Context, annotations, labels map[string]string) error {
	body, err := json.Marshal(map[string]any{
		"apiVersion": "v1",
		"kind":       "Node",
		"metadata":   map[string]any{"name": c.name, "annotations": annotations, "labels": labels},
	})
	if err != nil {
		return fmt.Errorf("writing node facts: %w", err)
	}
	force := true // a hand-made value under our keys gives way, unless podvirt.dev/skip-node says otherwise
	_, err = c.metadata.Resource(nodes()).Patch(ctx, c.name, types.ApplyPatchType, body,
		metav1.PatchOptions{FieldManager: FieldManager, Force: &force})
	if err != nil {
		return fmt.Errorf("writing node facts: %w", err)
	}
	return nil
}

// Untaint takes all taints with a key off the Node, and says whether there was one. It fails if somebody changes the
// taints at the same moment.
func (c *Client) Untaint(ctx context.Context, key string) (bool, error) {
	node, err := c.dynamic.Resource(nodes()).Get(ctx, c.name, metav1.GetOptions{})
	if err != nil {
		return false, fmt.Errorf("taint %s: %w", key, err)
	}
	taints, _, _ := unstructured.NestedSlice(node.Object, "spec", "taints") // absent: none
	others := slices.DeleteFunc(slices.Clone(taints), func(taint any) bool {
		fields, ok := taint.(map[string]any)
		return ok && fields["key"] == key
	})
	if len(others) == len(taints) {
		return false, nil
	}
	patch, err := json.Marshal([]map[string]any{
		{"op": "test", "path": "/spec/taints", "value": taints}, {"op": "replace", "path": "/spec/taints", "value": others},
	})
	if err != nil {
		return false, fmt.Errorf("taint %s: %w", key, err)
	}
	if _, err := c.dynamic.Resource(nodes()).Patch(ctx, c.name, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: FieldManager}); err != nil {
		return false, fmt.Errorf("taint %s: %w", key, err)
	}
	return true, nil
}

// Event tells people something about the Node. warning makes it one of type Warning.
func (c *Client) Event(ctx context.Context, uid types.UID, warning bool, reason, message string) error {
	now := time.Now().UTC()
	kind := "Normal"
	if warning {
		kind = "Warning"
	}
	event := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1",
		"kind":       "Event",
		"metadata":   map[string]any{"generateName": c.name + ".", "namespace": eventNamespace},
		"involvedObject": map[string]any{
			"apiVersion": "v1", "kind": "Node", "name": c.name, "uid": string(uid),
		},
		"type": kind, "reason": reason, "message": message,
		"source":             map[string]any{"component": FieldManager, "host": c.name},
		"reportingComponent": FieldManager, "reportingInstance": c.name,
		"firstTimestamp": now.Format(time.RFC3339), "lastTimestamp": now.Format(time.RFC3339), "count": int64(1),
	}}
	if _, err := c.dynamic.Resource(events()).Namespace(eventNamespace).Create(ctx, event, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("event %s: %w", reason, err)
	}
	return nil
}

// follow runs an informer over at most one object until ctx ends. gone is called when the object is deleted, and after
// the first list if it is not there.
func follow(ctx context.Context, source *cache.ListWatch, example runtime.Object, update func(any), gone func()) error {
	informer := cache.NewSharedInformer(source, example, 0)
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    update,
		UpdateFunc: func(_, obj any) { update(obj) },
		DeleteFunc: func(any) { gone() },
	})
	if err != nil {
		return fmt.Errorf("watching: %w", err)
	}
	context.AfterFunc(ctx, func() { _ = informer.RemoveEventHandler(registration) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		informer.RunWithContext(ctx)
	}()
	defer func() { <-done }()
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced, registration.HasSynced) {
		return nil // the context ended
	}
	if len(informer.GetStore().ListKeys()) == 0 {
		gone()
	}
	return nil
}

func byName(name string) string {
	return fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
}
