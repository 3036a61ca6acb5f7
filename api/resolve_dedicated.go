package api

import (
	"fmt"
	"strconv"
)

// dedicated checks that the kubelet can give a VM CPUs of its own, and enough of them (VM-024). The CPU manager looks
// at whole CPUs of containers in Pods of class Guaranteed only; package podspec looks at the other containers.
func (r *resolver) dedicated() {
	cpu := &r.m.CPU
	if cpu.Emulator == "" {
		cpu.Emulator = EmulatorShared
	}
	if !cpu.Dedicated {
		return
	}
	limit := r.pod.Limits.CPU
	r.m.CPUs = int(limit / 1000)
	if r.pod.Requests != nil && (limit == 0 || limit%1000 != 0 || r.pod.Requests.CPU != 0 && r.pod.Requests.CPU != limit) {
		request := r.pod.Requests.CPU
		if request == 0 {
			request = limit // as the API server fills it in
		}
		r.value("cpu-dedicated", "true", fmt.Sprintf("needs equal integer CPU requests and limits; found request %s, limit %s",
			showCPU(request), showCPU(limit)))
		return
	}
	if need := cpu.Emulator.CPUs(r.m.VCPUs); limit > 0 && limit < int64(need)*1000 {
		key, value := "cpu-dedicated", "true"
		if cpu.Emulator != EmulatorShared {
			key, value = "emulator-thread", string(cpu.Emulator)
		}
		r.value(key, value, fmt.Sprintf("needs a CPU limit of at least %d for %d vCPUs", need, r.m.VCPUs))
	}
}

// showCPU writes thousandths of a CPU as Kubernetes does.
func showCPU(milli int64) string {
	switch {
	case milli == 0:
		return "none"
	case milli%1000 == 0:
		return strconv.FormatInt(milli/1000, 10)
	default:
		return strconv.FormatInt(milli, 10) + "m"
	}
}
