package apitest

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
)

// Apply applies every object of the given YAML files; objects without a namespace that need one go to namespace.
func (s *Server) Apply(t testing.TB, namespace string, files ...string) {
	t.Helper()
	client, err := dynamic.NewForConfig(s.Admin)
	if err != nil {
		t.Fatal(err)
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(s.Client.Discovery()))
	for _, file := range files {
		for _, object := range objects(t, file) {
			kind := object.GroupVersionKind()
			mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			var to dynamic.ResourceInterface = client.Resource(mapping.Resource)
			if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
				if object.GetNamespace() == "" {
					object.SetNamespace(namespace)
				}
				to = client.Resource(mapping.Resource).Namespace(object.GetNamespace())
			}
			if _, err := to.Apply(t.Context(), object.GetName(), object, metav1.ApplyOptions{FieldManager: "test"}); err != nil {
				t.Fatalf("%s: %s %s: %v", file, kind.Kind, object.GetName(), err)
			}
		}
	}
}

func objects(t testing.TB, file string) []*unstructured.Unstructured {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
	var all []*unstructured.Unstructured
	for {
		object := &unstructured.Unstructured{}
		switch err := decoder.Decode(object); {
		case errors.Is(err, io.EOF):
			return all
		case err != nil:
			t.Fatalf("%s: %v", file, err)
		case len(object.Object) > 0:
			all = append(all, object)
		}
	}
}
