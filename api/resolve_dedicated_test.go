package api

import (
	"maps"
	"strings"
	"testing"
)

// TestDedicated: whole CPUs, enough of them for QEMU's own threads too, and how many are left for the guest (VM-024).
func TestDedicated(t *testing.T) {
	type keys = map[string]string
	for name, tt := range map[string]struct {
		annotations    keys
		request, limit int64
		vcpus          int
		wrong          string
	}{
		"one each":         {keys{KeyCPUDedicated: "true"}, 4000, 4000, 4, ""},
		"request as limit": {keys{KeyCPUDedicated: "true"}, 0, 4000, 4, ""},
		"not equal": {keys{KeyCPUDedicated: "true"}, 3500, 4000, 4,
			`cpu-dedicated: "true": needs equal integer CPU requests and limits; found request 3500m, limit 4`},
		"not whole": {keys{KeyCPUDedicated: "true"}, 1500, 1500, 2, "found request 1500m, limit 1500m"},
		"no limit":  {keys{KeyCPUDedicated: "true"}, 0, 0, 1, "found request none, limit none"},
		"isolated":  {keys{KeyCPUDedicated: "true", KeyEmulatorThread: "isolated"}, 0, 5000, 4, ""},
		"isolated, one too few": {keys{KeyCPUDedicated: "true", KeyEmulatorThread: "isolated", KeyCPUTopology: "cores=8"}, 0, 8000, 8,
			`emulator-thread: "isolated": needs a CPU limit of at least 9 for 8 vCPUs`},
		"even sum of odd vCPUs":  {keys{KeyCPUDedicated: "true", KeyEmulatorThread: "isolated-even"}, 0, 4000, 3, ""},
		"even sum of even vCPUs": {keys{KeyCPUDedicated: "true", KeyEmulatorThread: "isolated-even", KeyCPUTopology: "cores=4"}, 0, 6000, 4, ""},
		"even, one too few": {keys{KeyCPUDedicated: "true", KeyEmulatorThread: "isolated-even", KeyCPUTopology: "cores=4"}, 0, 5000, 4,
			"needs a CPU limit of at least 6 for 4 vCPUs"},
		"topology too large": {keys{KeyCPUDedicated: "true", KeyCPUTopology: "cores=4"}, 0, 3000, 4,
			`cpu-dedicated: "true": needs a CPU limit of at least 4 for 4 vCPUs`},
		"isolated alone": {keys{KeyEmulatorThread: "isolated"}, 0, 3000, 2, `emulator-thread: "isolated": needs cpu-dedicated`},
	} {
		t.Run(name, func(t *testing.T) {
			pod := Pod{
				Namespace: "shop", Name: "db1", Labels: map[string]string{LabelVM: "db1"}, Annotations: keys{KeyVM: "db1", KeyMemory: "1Gi"},
				Limits: Resources{CPU: tt.limit, Memory: 4 << 30}, Requests: &Resources{CPU: tt.request},
			}
			maps.Copy(pod.Annotations, tt.annotations)
			got, errs := Resolve(pod, Config{})
			if text := errs.Err(); (text != nil) != (tt.wrong != "") || text != nil && !strings.Contains(text.Error(), tt.wrong) {
				t.Errorf("error %v; want %q", text, tt.wrong)
			}
			if got.VCPUs != tt.vcpus {
				t.Errorf("%d vCPUs; want %d", got.VCPUs, tt.vcpus)
			}
			if tt.wrong == "" && got.CPUs != int(tt.limit/1000) {
				t.Errorf("%d CPUs; want %d", got.CPUs, tt.limit/1000)
			}
		})
	}
}
