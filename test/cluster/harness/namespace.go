package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
)

// Pod Security levels.
const (
	Restricted = "restricted"
	Privileged = "privileged"
)

// fieldManager is the name under which tests apply objects.
const fieldManager = "podvirt-test"

// Namespace is a test's own namespace.
type Namespace struct {
	*Cluster
	Name string
}

// Namespace makes a namespace that enforces a Pod Security level and is removed with everything in it when the test ends.
func (c *Cluster) Namespace(t testing.TB, level string) *Namespace {
	t.Helper()
	ns, err := c.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: objectName(t.Name()) + "-",
		Labels:       map[string]string{"pod-security.kubernetes.io/enforce": level, "podvirt-test": "true"},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("namespace: %v", err)
	}
	n := &Namespace{Cluster: c, Name: ns.Name}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), Medium)
		defer cancel()
		if t.Failed() {
			n.dump(ctx, t)
		}
		n.remove(ctx, t)
	})
	Eventually(t, Short, "service account of "+n.Name, func(ctx context.Context) error {
		_, err := c.Client.CoreV1().ServiceAccounts(n.Name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	return n
}

// remove deletes the namespace and waits for its Pods and claims: the next test wants their room.
func (n *Namespace) remove(ctx context.Context, t testing.TB) {
	grace := metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}
	if err := n.Client.CoreV1().Pods(n.Name).DeleteCollection(ctx, grace, metav1.ListOptions{}); err != nil {
		t.Errorf("removing Pods of %s: %v", n.Name, err)
	}
	if err := n.Client.CoreV1().Namespaces().Delete(ctx, n.Name, metav1.DeleteOptions{}); err != nil {
		t.Errorf("removing namespace %s: %v", n.Name, err)
		return
	}
	err := wait(ctx, func() error {
		_, err := n.Client.CoreV1().Namespaces().Get(ctx, n.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(err, errors.New("still there"))
	})
	if err != nil {
		t.Errorf("namespace %s: %v", n.Name, err)
	}
}

// Apply applies a manifest of one or more objects; those without a namespace go to this one.
func (n *Namespace) Apply(t testing.TB, manifest string) {
	t.Helper()
	if err := n.TryApply(t.Context(), manifest); err != nil {
		t.Fatalf("apply: %v", err)
	}
}

// TryApply is Apply for manifests that may be refused.
func (n *Namespace) TryApply(ctx context.Context, manifest string) error {
	groups, err := restmapper.GetAPIGroupResources(n.Client.Discovery())
	if err != nil {
		return err
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewBufferString(manifest), 4096)
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(object)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(object.Object) == 0 {
			continue
		}
		if err := n.applyOne(ctx, mapper, object); err != nil {
			return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
}

func (n *Namespace) applyOne(ctx context.Context, mapper meta.RESTMapper, object *unstructured.Unstructured) error {
	gvk := object.GroupVersionKind()
	mapping, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return err
	}
	var client dynamic.ResourceInterface = n.Dynamic.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		if object.GetNamespace() == "" {
			object.SetNamespace(n.Name)
		}
		client = n.Dynamic.Resource(mapping.Resource).Namespace(object.GetNamespace())
	}
	data, err := object.MarshalJSON()
	if err != nil {
		return err
	}
	options := metav1.PatchOptions{FieldManager: fieldManager, Force: new(true)}
	_, err = client.Patch(ctx, object.GetName(), types.ApplyPatchType, data, options)
	return err
}

// dump logs what a person would look at first.
func (n *Namespace) dump(ctx context.Context, t testing.TB) {
	events, err := n.Client.CoreV1().Events(n.Name).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Logf("events: %v", err)
		return
	}
	for _, e := range events.Items {
		t.Logf("event %s %s/%s %s: %s", e.Type, e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message)
	}
	pods, err := n.Client.CoreV1().Pods(n.Name).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Logf("pods: %v", err)
		return
	}
	for _, pod := range pods.Items {
		t.Logf("pod %s on %q: %s %s", pod.Name, pod.Spec.NodeName, pod.Status.Phase, describe(&pod))
		for _, container := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
			log, err := n.podLog(ctx, pod.Name, &corev1.PodLogOptions{Container: container.Name, TailLines: new(int64(60))})
			t.Logf("log of %s/%s (%v):\n%s", pod.Name, container.Name, err, log)
		}
	}
}
