package program

import (
	"fmt"
	"strings"

	"libvirt.org/go/libvirtxml"

	"podvirt.dev/api"
)

// forcedError: features that the user forces and QEMU does not give (VM-022).
type forcedError struct{ names []string }

// Error names the annotation and the features.
func (e *forcedError) Error() string {
	return fmt.Sprintf("%s: QEMU cannot give %s=force", api.Prefix+"cpu-features", strings.Join(e.names, "=force, "))
}

// checkForced compares what was forced with the CPU that QEMU has made. libvirt checks the others before QEMU starts, and
// writes down as disabled what QEMU has left out with no more than a warning.
func checkForced(features []api.CPUFeature, live string) error {
	var domain libvirtxml.Domain
	if err := domain.Unmarshal(live); err != nil {
		return err
	}
	left := map[string]bool{}
	if domain.CPU != nil {
		for _, f := range domain.CPU.Features {
			left[f.Name] = f.Policy == "disable"
		}
	}
	var missing []string
	for _, f := range features {
		if f.Policy == api.FeatureForce && left[f.Name] {
			missing = append(missing, f.Name)
		}
	}
	if len(missing) > 0 {
		return &forcedError{missing}
	}
	return nil
}

// checkCPU is the step of a start that finds a forced feature left out.
func (s *starter) checkCPU(p *plan) error {
	live, err := p.dom.XML()
	if err != nil {
		return err
	}
	return checkForced(s.vm.CPU.Features, live)
}
