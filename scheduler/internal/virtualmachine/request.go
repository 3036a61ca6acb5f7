package virtualmachine

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"

	"podvirt.dev/api"
	"podvirt.dev/api/podspec"
)

// request is what the placement of one VM Pod depends on.
type request struct {
	accelerator api.Accelerator
	model       string
	features    []api.CPUFeature
	vcpus       int
}

// isVM says whether a Pod is one of ours; all others are passed over.
func isVM(pod *corev1.Pod) bool { return pod.Labels[api.LabelVM] != "" }

// newRequest reads a VM Pod under the policy in force, which also gives the default CPU model (SC-028). The error holds
// every mistake of the Pod, in the words that admission and the launcher use (SC-082).
func newRequest(pod *corev1.Pod, config api.Config) (*request, error) {
	machine, errs := api.Resolve(podspec.Read(pod), config)
	if err := errs.Err(); err != nil {
		return nil, err
	}
	return &request{
		accelerator: machine.CPU.Accelerator,
		model:       machine.CPU.Model,
		features:    machine.CPU.Features,
		vcpus:       machine.VCPUs,
	}, nil
}

// spelling refuses names that no node knows where another name is near: a mistake, and no reason to wait (SC-027).
// A name far from all others may be offered by a node that is yet to come; Filter gives that reason.
func (r *request) spelling(nodes *catalog) api.Errors {
	var errs api.Errors
	models, features, _ := nodes.names()
	if r.named() && !nodes.offersModel(r.model) {
		if near := nearestName(r.model, models); near != "" {
			errs = append(errs, api.Error{Key: api.KeyCPUModel,
				Text: fmt.Sprintf("%s: %q: no such model; nearest: %s", api.KeyCPUModel, r.model, near)})
		}
	}
	for _, feature := range r.features {
		if feature.Policy != api.FeatureRequire || nodes.offersFeature(feature.Name) {
			continue
		}
		if near := nearestName(feature.Name, features); near != "" {
			errs = append(errs, api.Error{Key: api.KeyCPUFeatures,
				Text: fmt.Sprintf("%s: %s: no node offers it; nearest: %s", api.KeyCPUFeatures, feature.Name, near)})
		}
	}
	return errs
}

// nearestName also finds names that differ in case alone, however long they are.
func nearestName(word string, known []string) string {
	slices.Sort(known)
	for _, name := range known {
		if strings.EqualFold(name, word) {
			return name
		}
	}
	return api.Nearest(word, known)
}

// named says whether the VM asks for one model by name.
func (r *request) named() bool {
	return !sets.New("", api.CPUHostModel, api.CPUHostPassthrough, api.CPUMaximum).Has(r.model)
}

// special says whether the VM asks for anything that only facts can answer.
func (r *request) special() bool { return r.named() || len(r.features) > 0 }

// signature is everything Filter and Score read, in a form that is equal for equal requests.
func (r *request) signature() string {
	features := make([]string, len(r.features))
	for i, f := range r.features {
		features[i] = f.Name + "=" + string(f.Policy)
	}
	slices.Sort(features)
	return fmt.Sprintf("%s %s %d %s", r.accelerator, r.model, r.vcpus, strings.Join(features, ","))
}
