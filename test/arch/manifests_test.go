package arch

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"podvirt.dev/api"
	"podvirt.dev/api/podspec"
)

// decodeStrictly decodes one object and refuses fields that its type does not have.
func decodeStrictly(t *testing.T, where string, text []byte) runtime.Object {
	t.Helper()
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	object, _, err := decoder.Decode(text, nil, nil)
	if err != nil {
		t.Errorf("%s: %v\n%s", where, err, text)
		return nil
	}
	return object
}

// checkVM resolves a VM Pod, or the template of one, with the parser of the launcher.
func checkVM(t *testing.T, where string, object runtime.Object) {
	t.Helper()
	pod := &corev1.Pod{}
	switch o := object.(type) {
	case *corev1.Pod:
		pod = o
	case *appsv1.Deployment:
		pod.ObjectMeta, pod.Spec = o.Spec.Template.ObjectMeta, o.Spec.Template.Spec
	case *appsv1.StatefulSet:
		pod.ObjectMeta, pod.Spec = o.Spec.Template.ObjectMeta, o.Spec.Template.Spec
	}
	if !podspec.IsVM(pod.Labels) {
		return
	}
	if _, errs := api.Parse(pod.Annotations); errs.Err() != nil {
		t.Errorf("%s: %v", where, errs)
	}
	if errs := podspec.Check(pod); errs.Err() != nil {
		t.Errorf("%s: %v", where, errs)
	}
}

// network is a NetworkAttachmentDefinition, whose type is Multus' own.
type network struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            struct {
		Config string `json:"config"`
	} `json:"spec"`
}

// checkNetwork wants a network of cni-bridge; the plugin's own tests call it with each documented configuration.
func checkNetwork(t *testing.T, where string, text []byte) {
	t.Helper()
	var nad network
	if err := yaml.UnmarshalStrict(text, &nad); err != nil {
		t.Errorf("%s: %v\n%s", where, err, text)
	}
	var config struct{ Name, Type string }
	if err := json.Unmarshal([]byte(nad.Spec.Config), &config); err != nil || config.Type != api.CNIType || config.Name == "" {
		t.Errorf("%s: configuration %s: %v", where, nad.Spec.Config, err)
	}
}

// TestDocumentedManifests decodes every YAML block of a page that holds Kubernetes objects.
func TestDocumentedManifests(t *testing.T) {
	block := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")
	pages := []string{filepath.Join(root, "README.md")}
	for _, depth := range []string{"*.md", filepath.Join("*", "*.md")} {
		more, err := filepath.Glob(filepath.Join(root, "docs", depth))
		if err != nil || len(more) == 0 {
			t.Fatalf("docs/%s: %v, %v", depth, more, err)
		}
		pages = append(pages, more...)
	}
	found := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range block.FindAllSubmatch(text, -1) {
			for document := range bytes.SplitSeq(match[1], []byte("\n---\n")) {
				kubernetes := bytes.HasPrefix(document, []byte("apiVersion: ")) && !bytes.Contains(document, []byte("kustomize.config"))
				if !kubernetes || bytes.Contains(document, []byte("kubescheduler.config.k8s.io")) ||
					bytes.HasPrefix(document, []byte("apiVersion: snapshot.storage.k8s.io/")) { // types of another module
					continue
				}
				found++
				if bytes.Contains(document, []byte("\nkind: NetworkAttachmentDefinition\n")) {
					checkNetwork(t, page, document)
					continue
				}
				if object := decodeStrictly(t, page, document); object != nil {
					checkVM(t, page, object)
				}
			}
		}
	}
	if found == 0 {
		t.Error("no page shows a manifest")
	}
}

// TestOverlays builds every overlay as "kubectl apply -k" does and decodes what comes out of it.
func TestOverlays(t *testing.T) {
	overlays, err := filepath.Glob(filepath.Join(root, "manifests", "overlays", "*"))
	if err != nil || len(overlays) == 0 {
		t.Fatalf("overlays: %v, %v", overlays, err)
	}
	for _, overlay := range append(overlays, filepath.Join(root, "test", "cluster", "manifests")) {
		t.Run(filepath.Base(overlay), func(t *testing.T) {
			options := krusty.MakeDefaultOptions()
			resources, err := krusty.MakeKustomizer(options).Run(filesys.MakeFsOnDisk(), overlay)
			if err != nil {
				t.Fatal(err)
			}
			for _, resource := range resources.Resources() {
				text, err := resource.AsYAML()
				if err != nil {
					t.Fatal(err)
				}
				decodeStrictly(t, resource.CurId().String(), text)
				checkLabels(t, resource.CurId().String(), resource.GetLabels())
			}
		})
	}
}

// checkLabels wants every object of an installation to say that it belongs to podvirt (operations.md 2.1).
func checkLabels(t *testing.T, object string, labels map[string]string) {
	t.Helper()
	if labels["app.kubernetes.io/part-of"] != "podvirt" && !strings.Contains(object, "Namespace") {
		t.Errorf("%s lacks the label app.kubernetes.io/part-of: podvirt", object)
	}
}
