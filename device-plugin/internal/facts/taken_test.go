package facts

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/allotment"
	"podvirt.dev/device-plugin/internal/device"
)

// TestTaken: cells are not told before the kubelet was asked, and then with what it gave of each: CPUs, memory, and units
// of devices that have a cell (SC-011, SC-012).
func TestTaken(t *testing.T) {
	files := Snapshot{
		CPU:  &api.CPUFacts{V: 1},
		NUMA: &api.NUMAFacts{V: 1, Cells: []api.Cell{{ID: 0, CPUs: "0-3"}, {ID: 1, CPUs: "4-7"}, {ID: 2}}},
	}
	var taken Taken
	taken.Image("sha256:1")
	taken.Devices([]device.Resource{
		{Name: "podvirt.dev/kvm", Units: []device.Unit{{ID: "kvm-0"}}},
		{Name: "example.org/nic", Units: []device.Unit{
			{ID: "a", Cells: []int{0}}, {ID: "b", Cells: []int{0}}, {ID: "c", Cells: []int{1}}, {ID: "d", Cells: []int{1}, Reason: "gone"},
		}},
	})
	if got := taken.Files(files); got.NUMA != nil || got.CPU.Launcher != "sha256:1" {
		t.Errorf("before the kubelet was asked: %+v", got)
	}
	got := taken.Given(allotment.Given{
		Kubelet: &api.Kubelet{CPU: "static"}, Allocatable: []int{1, 2, 3, 4, 5, 6, 7}, Exclusive: []int{2, 3, 6},
		Memory: map[int]int64{1: 4096}, Units: map[string][]string{"example.org/nic": {"b"}},
	})
	want := []api.Cell{
		{ID: 0, CPUs: "0-3", Reserved: "0", Exclusive: "2-3", Devices: map[string]api.DeviceUnits{"example.org/nic": {Total: 2, Free: 1}}},
		{ID: 1, CPUs: "4-7", Exclusive: "6", MemoryPinned: 4096, Devices: map[string]api.DeviceUnits{"example.org/nic": {Total: 1, Free: 1}}},
		{ID: 2},
	}
	if diff := cmp.Diff(want, got.NUMA.Cells); diff != "" {
		t.Errorf("cells (-want,+got):\n%s", diff)
	}
	got = taken.Given(allotment.Given{Problem: "kubelet: configuration is forbidden: nodes/configz"})
	if got.NUMA.Kubelet != nil || got.NUMA.Cells[0].Reserved != "" || len(got.CPU.Problems) != 1 {
		t.Errorf("a kubelet that does not say: %+v, problems %q", got.NUMA, got.CPU.Problems)
	}
	if files.NUMA.Cells[0].Exclusive != "" || files.CPU.Problems != nil {
		t.Error("what the launcher wrote was changed")
	}
}
