package policy

import (
	"fmt"

	"podvirt.dev/api"
)

// milliCPU is the CPU of a list of resources in thousandths, rounded up; 0 where there is none.
func milliCPU(list string) string {
	return fmt.Sprintf(`%s[?"cpu"].optMap(q, quantity(string(q)).asApproximateFloat() * 1000.0 - 0.0001)
  .optMap(f, double(int(f)) < f ? int(f) + 1 : int(f)).orValue(0)`, list)
}

// showCPU writes thousandths of a CPU as Kubernetes does.
func showCPU(milli string) string {
	return fmt.Sprintf(`[%s].map(n, n == 0 ? "none" : n %% 1000 == 0 ? string(n / 1000) : string(n) + "m")[0]`, milli)
}

// dedicatedRules are about whole CPUs, and enough of them (api.resolver.dedicated).
func dedicatedRules() string {
	emulator, dedicated := good(api.KeyEmulatorThread), good(api.KeyCPUDedicated)
	return fmt.Sprintf(`%[1]s != "true" || variables.vm.size() == 0 ? [] :
  variables.cpuLimit == 0 || variables.cpuLimit %% 1000 != 0 || (variables.cpuRequest != 0 && variables.cpuRequest != variables.cpuLimit)
  ? [%[2]s + "needs equal integer CPU requests and limits; found request " + %[3]s + ", limit " + %[4]s]
  : [%[5]s == "isolated" ? 1 : %[5]s == "isolated-even" ? 2 - variables.vcpus %% 2 : 0].map(more, variables.vcpus + more)
    .filter(need, variables.cpuLimit < need * 1000).map(need, (%[5]s.startsWith("isolated") ? %[6]s : %[2]s)
    + "needs a CPU limit of at least " + string(need) + " for " + string(variables.vcpus) + " vCPUs")`,
		dedicated, whole(api.KeyCPUDedicated), showCPU("variables.cpuRequest == 0 ? variables.cpuLimit : variables.cpuRequest"),
		showCPU("variables.cpuLimit"), emulator, whole(api.KeyEmulatorThread))
}

// guaranteedRules are about the class of the Pod (podspec.checkGuaranteed).
func guaranteedRules() string {
	of := func(field string) string {
		return fmt.Sprintf(`variables.spec.?%[1]s.orValue([]).map(c, ["cpu", "memory"].filter(r, !(c.name == "vm" && r == "cpu"))
  .filter(r, c.?resources.?limits[?r].optMap(l, quantity(string(l))).optMap(l, l.compareTo(quantity("0")) == 0
    || c.?resources.?requests[?r].optMap(q, quantity(string(q))).optMap(q, q.compareTo(quantity("0")) != 0 && q.compareTo(l) != 0)
    .orValue(false)).orValue(true))
  .map(r, "spec.%[1]s[" + c.name + "].resources.limits." + r + ": must be set and equal to the request: %[2]s needs it in every container")).flatten()`,
			field, api.KeyCPUDedicated)
	}
	return fmt.Sprintf(`variables.a[?%s].orValue("") != "true" ? [] : %s + %s`, str(api.KeyCPUDedicated), of("initContainers"), of("containers"))
}
