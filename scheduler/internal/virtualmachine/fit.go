package virtualmachine

import (
	"fmt"

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
func fitsCells(request *request, have *topology, bootID string, free []int64) (reason string, hopeless bool) {
	want := request.memory
	switch {
	case have == nil || have.err != nil:
		return reasonNoFacts, true
	case have.boot != bootID:
		return reasonStaleFacts, true
	case choose(want, have, free) != nil:
		return "", false
	}
	reason = reasonPages(want)
	if request.hints.pages != nil {
		reason += request.hints.pages()
	}
	return reason, choose(want, have, have.total(want.size)) == nil
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
