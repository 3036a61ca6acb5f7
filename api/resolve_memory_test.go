package api

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestHugepages holds how page size, guest memory and limits agree, and every text about them (VM-027, VM-041, SC-042).
func TestHugepages(t *testing.T) {
	const gi = int64(1) << 30
	type result struct {
		size   string
		guest  MiB
		policy NUMAPolicy
		errs   []string
	}
	tests := map[string]struct {
		annotations map[string]string
		limits      map[string]int64
		seccomp     string
		want        result
	}{
		"none":           {map[string]string{KeyMemory: "1Gi"}, nil, "", result{"", 1024, NUMANone, nil}},
		"all from limit": {nil, map[string]int64{"1Gi": 4 * gi, "2Mi": 0}, "RuntimeDefault", result{"1Gi", 4096, NUMAAuto, nil}},
		"all written": {map[string]string{KeyMemory: "4Gi", KeyHugepages: "2Mi", KeyNUMA: "single"}, map[string]int64{"2Mi": 4 * gi}, LocalhostProfile,
			result{"2Mi", 4096, NUMASingle, nil}},
		"no whole pages": {map[string]string{KeyMemory: "500Mi", KeyHugepages: "1Gi"}, map[string]int64{"1Gi": gi}, "",
			result{"1Gi", 500, NUMAAuto, []string{"podvirt.dev/hugepages: 500Mi is not a multiple of 1Gi"}}},
		"two amounts": {map[string]string{KeyMemory: "8Gi"}, map[string]int64{"1Gi": 4 * gi}, "",
			result{"1Gi", 8192, NUMAAuto, []string{"podvirt.dev/hugepages: limits.hugepages-1Gi is 4Gi, memory is 8Gi: they must be equal"}}},
		"two sizes": {nil, map[string]int64{"1Gi": gi, "2Mi": gi}, "",
			result{"1Gi", 1024, NUMAAuto, []string{"podvirt.dev/hugepages: limits.hugepages-1Gi, limits.hugepages-2Mi: two page sizes requested"}}},
		"no amount": {map[string]string{KeyHugepages: "2Mi"}, nil, "",
			result{"2Mi", 0, NUMAAuto, []string{"podvirt.dev/memory: not set, and container vm has no limit of hugepages-2Mi to take it from"}}},
		"five vCPUs in two cells": {map[string]string{KeyMemory: "1Gi", KeyNUMA: "2", KeyCPUTopology: "cores=5"}, nil, "",
			result{"", 1024, NUMACells, []string{`podvirt.dev/numa: "2": 5 vCPUs cannot be divided into 2 cells`}}},
		"three pages in two cells": {map[string]string{KeyNUMA: "2", KeyCPUTopology: "cores=2"}, map[string]int64{"1Gi": 3 * gi}, "",
			result{"1Gi", 3072, NUMACells, []string{`podvirt.dev/numa: "2": 3Gi cannot be divided into 2 cells`}}},
		"forbidden by its profile": {map[string]string{KeyMemory: "1Gi", KeyNUMA: "single"}, nil, "RuntimeDefault", result{"", 1024, NUMASingle,
			[]string{`podvirt.dev/numa: "single": needs seccompProfile Localhost podvirt/launcher.json; the Pod says RuntimeDefault`}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m, errs := Resolve(Pod{
				Labels: map[string]string{LabelVM: "db1"}, Annotations: tt.annotations, Seccomp: tt.seccomp,
				Limits: Resources{Memory: 2 * gi, Hugepages: tt.limits}, Requests: &Resources{},
			}, Config{})
			got := result{m.Memory.Hugepages, m.Memory.Guest, m.CPU.NUMA.Policy, nil}
			for _, err := range errs {
				got.errs = append(got.errs, err.Text)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(result{})); diff != "" {
				t.Errorf("(-want,+got):\n%s", diff)
			}
		})
	}
}
