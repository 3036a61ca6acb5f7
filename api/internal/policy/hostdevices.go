package policy

import (
	"fmt"

	"podvirt.dev/api"
)

// hostDeviceRules are the twin of resolve_hostdevices.go in package api: what podvirt.dev/device.NAME is about is asked for.
func hostDeviceRules() string {
	const resource = `variables.o[k][?"resource"].orValue("")`
	return fmt.Sprintf(`variables.good.filter(k, k.startsWith(%[1]s)).map(k,
  %[2]s == "" ? k + ": resource is missing: want resource=domain/name" :
  %[2]s.startsWith(%[3]s) ? k + ": resource=" + %[2]s + ": " + %[4]s :
  variables.vm.size() > 0 && !(%[2]s in variables.limits && string(variables.limits[%[2]s]) != "0")
    ? k + ": resource=" + %[2]s + ": container vm does not request it: add " + %[2]s + ": \"1\" to its limits" : "").filter(l, l != "")`,
		str(api.KeyDevice), resource, str(api.DeviceClaim), str(api.NotYet))
}
