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
	nics        []string // models of the NICs other than virtio, sorted, each once
	cells       demand
	shape       string // what a kubelet may refuse it for; "" while no kubelet has refused anything

	hints hints
}

// hints are added to reasons that hold on every Node of the cluster, not on this one alone.
type hints struct {
	model string        // the nearest model that a Node has, where none has the one asked for
	vcpus string        // the most vCPUs that any Node allows, where that is too few
	pages func() string // what to do where no Node has a pool of such pages; nil: nothing is known
}

// isVM says whether a Pod is one of ours; all others are passed over.
func isVM(pod *corev1.Pod) bool { return podspec.IsVM(pod.Labels) }

// newRequest reads a VM Pod under the policy in force, which also gives the default CPU model (SC-028). The error holds
// every mistake of the Pod, in the words that admission and the launcher use (SC-082).
func newRequest(pod *corev1.Pod, config api.Config) (*request, error) {
	machine, errs := podspec.Resolve(pod, config)
	if err := errs.Err(); err != nil {
		return nil, err
	}
	return &request{
		accelerator: machine.CPU.Accelerator,
		model:       machine.CPU.Model,
		features:    machine.CPU.Features,
		vcpus:       machine.VCPUs,
		nics:        nicModels(machine),
		cells:       demandOf(machine),
	}, nil
}

// nicModels are the NIC models that a node may lack. Every QEMU has virtio.
func nicModels(m api.Machine) []string {
	var models []string
	for _, n := range m.NICs {
		if n.Model != "" && n.Model != "virtio" && n.Binding != api.BindingNone {
			models = append(models, n.Model)
		}
	}
	slices.Sort(models)
	return slices.Compact(models)
}

// demandOf is what the VM needs of NUMA cells: huge pages, and CPUs of its own. Other memory is bound to no cell before
// the guest touches it.
func demandOf(m api.Machine) demand {
	d := demand{cpus: int64(m.CPUs), policy: m.CPU.NUMA.Policy, cells: m.CPU.NUMA.Cells}
	if m.HugepagesBacked {
		d.size = m.Memory.Hugepages
		d.pages = m.Memory.Guest.Bytes() / api.PageBytes(d.size)
	}
	return d
}

// named says whether the VM asks for one model by name.
func (r *request) named() bool {
	return !sets.New("", api.CPUHostModel, api.CPUHostPassthrough, api.CPUMaximum).Has(r.model)
}

// special says whether the VM asks for anything that only facts can answer.
func (r *request) special() bool {
	return r.named() || len(r.features) > 0 || r.cells.size != "" || r.cells.cpus > 0
}

// signature is everything Filter and Score read, in a form that is equal for equal requests.
func (r *request) signature() string {
	features := make([]string, len(r.features))
	for i, f := range r.features {
		features[i] = f.Name + "=" + string(f.Policy)
	}
	slices.Sort(features)
	return fmt.Sprintf("%s %s %d %d %s %s", r.accelerator, r.model, r.vcpus, r.cells.cpus, strings.Join(features, ","), strings.Join(r.nics, ","))
}
