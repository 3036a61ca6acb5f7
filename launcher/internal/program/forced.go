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
func checkForced(features []api.CPUFeature, live *libvirtxml.DomainCPU) error {
	left := map[string]bool{}
	if live != nil {
		for _, f := range live.Features {
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
