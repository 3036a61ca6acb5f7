package policy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/client-go/kubernetes/scheme"
)

const manifests = "../../../manifests/admission"

// TestUpToDate: the files in manifests/admission are those that the tables give, and every one is in the kustomization.
func TestUpToDate(t *testing.T) {
	kustomization, err := os.ReadFile(filepath.Join(manifests, "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range Files() {
		want, err := file.YAML()
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(manifests, file.Name))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s: run go generate ./api/... (-want,+got):\n%s", file.Name, diff)
		}
		if !strings.Contains(string(kustomization), "- "+file.Name+"\n") {
			t.Errorf("%s is not in kustomization.yaml", file.Name)
		}
	}
}

// maxApplied is how large an object may be for kubectl apply, which keeps all of it in an annotation.
const maxApplied = 262144

// TestFilesDecodeStrictly: the API server accepts every object as it stands, and kubectl apply can hold it.
func TestFilesDecodeStrictly(t *testing.T) {
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, json.SerializerOptions{Yaml: true, Strict: true})
	plain := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, json.SerializerOptions{})
	for _, file := range Files() {
		content, err := file.YAML()
		if err != nil {
			t.Fatal(err)
		}
		for document := range strings.SplitSeq(string(content), "---\n") {
			object, kind, err := strict.Decode([]byte(document), nil, nil)
			if err != nil {
				t.Errorf("%s: %v", file.Name, err)
				continue
			}
			var applied strings.Builder
			if err := plain.Encode(object, &applied); err != nil {
				t.Fatal(err)
			}
			if applied.Len() > maxApplied*3/4 {
				t.Errorf("%s: %s of %d bytes", file.Name, kind.Kind, applied.Len())
			}
			want := admissionv1.Fail
			if strings.HasPrefix(file.Name, "podvirt-warn-") { // a warning refuses nothing
				want = admissionv1.Ignore
			}
			if p, ok := object.(*admissionv1.ValidatingAdmissionPolicy); ok && *p.Spec.FailurePolicy != want {
				t.Errorf("%s: failure policy %s; want %s", p.Name, *p.Spec.FailurePolicy, want)
			}
		}
	}
}
