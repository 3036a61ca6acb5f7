package virtualmachine

import (
	"fmt"
	"slices"

	"podvirt.dev/api"
)

// Reasons of Filter. They hold values of the VM and never of a node, so that the scheduler adds equal ones up
// (scheduling.md 2.6).
const (
	reasonNoFacts    = "no podvirt facts"
	reasonStaleFacts = "podvirt facts older than the node's last boot"
	reasonVCPUs      = "more than the machine's vCPU limit"
)

// fits compares what a VM asks for with what a node offers and returns every reason against it. bootID is that of the
// node's status: facts of another boot say nothing.
func fits(want *request, have *facts, bootID string, requireFacts bool) []string {
	switch {
	case have == nil || have.err != nil:
		if requireFacts || want.special() {
			return []string{reasonNoFacts}
		}
		return nil
	case have.boot != bootID:
		return []string{reasonStaleFacts}
	}
	var reasons []string
	if have.kind != want.accelerator {
		reasons = append(reasons, fmt.Sprintf("accelerator %s not usable", want.accelerator))
	}
	if want.named() && !have.models.Has(want.model) {
		reasons = append(reasons, fmt.Sprintf("CPU model %s not usable%s", want.model, want.hints.model))
	}
	for _, feature := range want.features {
		reasons = append(reasons, againstFeature(feature, have)...)
	}
	for _, model := range want.nics {
		if have.nics.Len() > 0 && !have.nics.Has(model) {
			reasons = append(reasons, fmt.Sprintf("NIC model %s not usable", model))
		}
	}
	if have.maxVCPUs > 0 && want.vcpus > have.maxVCPUs {
		reasons = append(reasons, reasonVCPUs+want.hints.vcpus)
	}
	return reasons
}

// againstFeature applies the table of scheduling.md 2.4: force, optional and disable never filter.
func againstFeature(feature api.CPUFeature, have *facts) []string {
	switch offered := have.features.Has(feature.Name); {
	case feature.Policy == api.FeatureRequire && !offered:
		return []string{fmt.Sprintf("CPU feature %s missing", feature.Name)}
	case feature.Policy == api.FeatureForbid && offered:
		return []string{fmt.Sprintf("CPU feature %s forbidden but present", feature.Name)}
	}
	return nil
}

// fitsCells compares what a VM needs of NUMA cells with a Node whose free pages are given per cell. hopeless says that
// the cells would not do if they were empty either.
func fitsCells(request *request, have *topology, bootID string, free room) (reason string, hopeless bool) {
	want := request.cells
	switch {
	case have == nil || have.err != nil:
		return reasonNoFacts, true
	case have.boot != bootID:
		return reasonStaleFacts, true
	}
	if reason := againstKubelet(want, have); reason != "" {
		return reason, true
	}
	if !want.placed() || choose(want, have, free) != nil {
		return "", false
	}
	return reasonCells(request, have, free), choose(want, have, have.empty(want.size)) == nil
}

// againstKubelet says why the kubelet would not give the VM CPUs of its own, however many are free (kubernetes
// pkg/kubelet/cm/cpumanager/policy_static.go, pkg/kubelet/cm/topologymanager/policy_single_numa_node.go).
func againstKubelet(want demand, have *topology) string {
	threads := int64(have.threads)
	switch {
	case want.cpus == 0:
		return ""
	case have.kubelet.CPU != api.CPUManagerStatic:
		return "CPU manager is not static"
	case slices.Contains(have.kubelet.CPUOptions, api.FullPhysicalCPUsOnly) && want.cpus%threads != 0:
		return fmt.Sprintf("%d CPUs are not whole cores of %d threads", want.cpus, threads)
	case have.kubelet.Topology == api.TopologySingleNode && want.policy == api.NUMACells && want.cells > 1:
		return "kubelet topology policy would refuse it"
	}
	return ""
}

// reasonCells names pages or CPUs, whichever is missing, or that they are not in the same cells.
func reasonCells(request *request, have *topology, free room) string {
	want := request.cells
	pagesAlone, cpusAlone := want, want
	pagesAlone.cpus, cpusAlone.pages = 0, 0
	lacksPages := want.pages > 0 && choose(pagesAlone, have, free) == nil
	if want.cpus > 0 && !lacksPages && (want.pages == 0 || choose(cpusAlone, have, free) == nil) {
		return reasonCPUs(want)
	}
	reason := reasonPages(want)
	if !lacksPages {
		return fmt.Sprintf("%s, beside %d whole CPUs", reason, want.cpus)
	}
	if request.hints.pages != nil {
		reason += request.hints.pages()
	}
	return reason
}

func reasonCPUs(want demand) string {
	const text = "not enough whole CPUs"
	switch want.policy {
	case api.NUMASingle:
		return fmt.Sprintf("%s in 1 NUMA cell(s): %d needed in one", text, want.cpus)
	case api.NUMACells:
		return fmt.Sprintf("%s in %d NUMA cell(s): %d needed in each", text, want.cells, api.Portion(want.cpus, want.cells, 0))
	default:
		return fmt.Sprintf("%s: %d needed", text, want.cpus)
	}
}

func reasonPages(want demand) string {
	text := fmt.Sprintf("not enough free %s pages", want.size)
	switch want.policy {
	case api.NUMASingle:
		return fmt.Sprintf("%s in 1 NUMA cell(s): %d needed in one", text, want.pages)
	case api.NUMACells:
		return fmt.Sprintf("%s in %d NUMA cell(s): %d needed in each", text, want.cells, api.Portion(want.pages, want.cells, 0))
	default:
		return fmt.Sprintf("%s: %d needed", text, want.pages)
	}
}
