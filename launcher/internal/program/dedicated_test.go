package program

import (
	"fmt"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/internal/sysfs"
	"podvirt.dev/launcher/internal/domain"
)

// twoThreads is a node of eight cores with two threads each: 0 and 8 share one, 1 and 9, and so on.
func twoThreads() fstest.MapFS {
	files := fstest.MapFS{}
	for cpu := range 16 {
		name := fmt.Sprintf("sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu)
		files[name] = &fstest.MapFile{Data: fmt.Appendf(nil, "%d,%d\n", cpu%8, cpu%8+8)}
	}
	return files
}

func TestPins(t *testing.T) {
	for name, tt := range map[string]struct {
		vcpus    int
		emulator api.EmulatorThread
		cells    [][]int
		want     domain.Pins
	}{
		"shared": {4, api.EmulatorShared, [][]int{{2, 3, 10, 11}}, domain.Pins{VCPUs: []int{2, 10, 3, 11}, Emulator: []int{2, 3, 10, 11}}},
		"isolated, after the core that is half used": {
			3, api.EmulatorIsolated, [][]int{{2, 3, 10, 11}}, domain.Pins{VCPUs: []int{2, 10, 3}, Emulator: []int{11}},
		},
		"a core for the emulator": {4, api.EmulatorIsolatedEven, [][]int{{1, 2, 3, 9, 10, 11}}, domain.Pins{VCPUs: []int{1, 9, 2, 10}, Emulator: []int{3, 11}}},
		"two cells": {
			3, api.EmulatorIsolated, [][]int{{0, 1, 8}, {4}}, domain.Pins{VCPUs: []int{0, 8, 4}, Emulator: []int{1}},
		},
		"two guest cells in one": {
			3, api.EmulatorIsolated, [][]int{{0, 1, 8, 9}, {0, 1, 8, 9}}, domain.Pins{VCPUs: []int{0, 8, 1}, Emulator: []int{9}},
		},
		"more than it needs": {1, api.EmulatorShared, [][]int{{6, 7}}, domain.Pins{VCPUs: []int{6}, Emulator: []int{6, 7}}},
	} {
		t.Run(name, func(t *testing.T) {
			vm := api.Machine{VCPUs: tt.vcpus}
			vm.CPU.Emulator = tt.emulator
			if diff := cmp.Diff(tt.want, pins(twoThreads(), vm, tt.cells)); diff != "" {
				t.Errorf("(-want,+got):\n%s", diff)
			}
		})
	}
}

// TestFollow: the kubelet's CPUs win over the cells that the scheduler chose, as long as memory can be taken beside them
// (SC-050).
func TestFollow(t *testing.T) {
	pool := func(free int64) []sysfs.Hugepages { return []sysfs.Hugepages{{Size: 2 << 20, Total: 64, Free: free}} }
	cells := []sysfs.Cell{
		{ID: 0, CPUs: []int{0, 1, 2, 3}, Hugepages: pool(0)}, {ID: 1, CPUs: []int{4, 5, 6, 7}, Hugepages: pool(64)}, {ID: 2, Hugepages: pool(64)},
	}
	for name, tt := range map[string]struct {
		chosen, cpus []int
		pages        string
		want         []int
		moved        bool
		wrong        string
	}{
		"as chosen":    {[]int{1}, []int{4, 5}, "2Mi", []int{1}, false, ""},
		"in both":      {[]int{0, 1}, []int{3, 4}, "", []int{0, 1}, false, ""},
		"twice in one": {[]int{0, 0}, []int{0, 1}, "", []int{0, 0}, false, ""},
		"elsewhere":    {[]int{0}, []int{4, 5}, "2Mi", []int{1}, true, ""},
		"over both":    {[]int{0}, []int{3, 4}, "", []int{0, 1}, true, ""},
		"elsewhere, no pages": {[]int{1}, []int{0, 1}, "2Mi", nil, false,
			"podvirt.dev/numa-cell: 1: the kubelet gave CPUs 0-1 of cells 0, which have 0 free 2Mi pages"},
		"half of one in other": {[]int{0, 1}, []int{4, 5}, "", []int{1}, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := &starter{instance: &instance{}}
			s.vm.VCPUs, s.vm.Placement.Cells = 2, tt.chosen
			s.vm.Memory.Hugepages, s.vm.Memory.Guest = tt.pages, 64
			got, moved, err := s.follow(klog.Background(), places{cpus: tt.cpus}, cells)
			if diff := cmp.Diff(tt.want, got); diff != "" || moved != tt.moved {
				t.Errorf("moved %v; (-want,+got):\n%s", moved, diff)
			}
			if text := fmt.Sprint(err); (err != nil || tt.wrong != "") && text != tt.wrong {
				t.Errorf("error %q; want %q", text, tt.wrong)
			}
			if warned := len(s.vm.Warnings) > 0; warned != tt.moved {
				t.Errorf("warnings %q", s.vm.Warnings)
			}
		})
	}
}
