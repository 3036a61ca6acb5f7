package api

import (
	"fmt"
	"strings"
)

// DeviceClaim begins the resource of a device that comes by a ResourceClaim.
const DeviceClaim = "claim/"

// hostDevices checks that what podvirt.dev/device.NAME is about is asked for in the limits, where they are visible.
func (r *resolver) hostDevices() {
	for _, d := range r.m.Devices {
		key := KeyDevice + d.Name
		units, requested := r.pod.Limits.Extended[d.Resource]
		switch {
		case d.Resource == "":
			r.errs = append(r.errs, Error{Key: key, Text: key + ": resource is missing: want resource=domain/name"})
		case strings.HasPrefix(d.Resource, DeviceClaim):
			r.errs = append(r.errs, Error{Key: key, Text: fmt.Sprintf("%s: resource=%s: %s", key, d.Resource, NotYet)})
		case r.pod.Limits.Extended != nil && (!requested || units == 0):
			r.errs = append(r.errs, Error{Key: key, Text: fmt.Sprintf(`%s: resource=%s: container vm does not request it: add %s: "1" to its limits`,
				key, d.Resource, d.Resource)})
		}
	}
}
