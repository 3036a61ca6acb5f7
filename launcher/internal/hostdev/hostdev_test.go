package hostdev

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/api"
)

const (
	gpu0, gpu1 = "0000:65:00.0", "0000:66:00.0"
	slice      = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
)

// container has two GPUs, a slice of a third, and a serial port.
func container() fstest.MapFS {
	link := func(target string) *fstest.MapFile {
		return &fstest.MapFile{Data: []byte(target), Mode: fs.ModeSymlink}
	}
	file := &fstest.MapFile{}
	return fstest.MapFS{
		"sys/bus/pci/devices/" + gpu0 + "/iommu_group":   link("../../../kernel/iommu_groups/7"),
		"sys/bus/pci/devices/" + gpu1 + "/iommu_group":   link("../../../kernel/iommu_groups/8"),
		"sys/bus/mdev/devices/" + slice + "/iommu_group": link("../../../kernel/iommu_groups/9"),
		"dev/vfio/vfio": file, "dev/vfio/7": file, "dev/vfio/8": file, "dev/vfio/9": file, "dev/ttyUSB0": file,
	}
}

func TestFind(t *testing.T) {
	two := 1
	pair := []string{"PATH=/bin", "PCI_RESOURCE_NVIDIA_COM_T4=" + gpu0 + "," + gpu1}
	tests := map[string]struct {
		env     []string
		options []api.Device
		want    []Device
	}{
		"none": {env: []string{"PATH=/bin"}},
		"without annotation": {pair, nil, []Device{
			{Device: api.Device{Name: "nvidia-com-t4_0"}, Kind: PCI, ID: gpu0}, {Device: api.Device{Name: "nvidia-com-t4_1"}, Kind: PCI, ID: gpu1},
		}},
		"options of the second": {pair, []api.Device{{Name: "gpu", Resource: "nvidia.com/T4", Index: &two, ROM: "off"}}, []Device{
			{Device: api.Device{Name: "nvidia-com-t4_0"}, Kind: PCI, ID: gpu0},
			{Device: api.Device{Name: "gpu", Resource: "nvidia.com/T4", Index: &two, ROM: "off"}, Kind: PCI, ID: gpu1},
		}},
		"the next free one": {pair, []api.Device{{Name: "a", Resource: "nvidia.com/T4"}, {Name: "b", Resource: "nvidia.com/T4", Index: new(int)}}, []Device{
			{Device: api.Device{Name: "b", Resource: "nvidia.com/T4", Index: new(int)}, Kind: PCI, ID: gpu0},
			{Device: api.Device{Name: "a", Resource: "nvidia.com/T4"}, Kind: PCI, ID: gpu1},
		}},
		"three providers": {[]string{
			"MDEV_PCI_RESOURCE_NVIDIA_COM_GRID=" + slice, "PCIDEVICE_INTEL_COM_VF=" + gpu0, "PCIDEVICE_INTEL_COM_VF_INFO={}", "CHAR_RESOURCE_E_ORG_TTY=/dev/ttyUSB0",
		}, nil, []Device{
			{Device: api.Device{Name: "e-org-tty_0"}, Kind: Char, ID: "/dev/ttyUSB0"}, {Device: api.Device{Name: "intel-com-vf_0"}, Kind: PCI, ID: gpu0},
			{Device: api.Device{Name: "nvidia-com-grid_0"}, Kind: Mdev, ID: slice},
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Find(tt.env, tt.options, container())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want,+got)\n%s", diff)
			}
		})
	}
}

func TestFindRefuses(t *testing.T) {
	three := 2
	const pair = "PCI_RESOURCE_NVIDIA_COM_T4=" + gpu0 + "," + gpu1
	tests := map[string]struct {
		env     string
		options []api.Device
		want    string
	}{
		"not requested": {"", []api.Device{{Name: "gpu", Resource: "nvidia.com/T4"}},
			"podvirt.dev/device.gpu: resource=nvidia.com/T4: container vm does not request it"},
		"index too high": {pair, []api.Device{{Name: "gpu", Resource: "nvidia.com/T4", Index: &three}},
			"podvirt.dev/device.gpu: index=2: 2 units requested (0, 1)"},
		"one index twice": {pair, []api.Device{{Name: "a", Resource: "nvidia.com/T4", Index: new(int)}, {Name: "b", Resource: "nvidia.com/T4", Index: new(int)}},
			"podvirt.dev/device.b: index=0: also used by device.a"},
		"more options than units": {"PCI_RESOURCE_X=" + gpu0, []api.Device{{Name: "a", Resource: "x"}, {Name: "b", Resource: "x"}},
			"podvirt.dev/device.b: resource=x: 1 units requested, and all have options"},
		"forged":       {"PCI_RESOURCE_X=0000:00:1f.2", nil, "0000:00:1f.2 is not in this container"},
		"forged slice": {"MDEV_PCI_RESOURCE_X=" + strings.Replace(slice, "8", "9", 1), nil, "is not in this container"},
		"forged path":  {"CHAR_RESOURCE_X=/dev/mem", nil, "/dev/mem is not in this container"},
		"no address":   {"PCI_RESOURCE_X=../../etc", nil, `variable PCI_RESOURCE_X: "../../etc" is not the name of a device`},
		"climbing":     {"CHAR_RESOURCE_X=/dev/../etc/passwd", nil, "is not the name of a device"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Find([]string{tt.env}, tt.options, container())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Find = %v; want %s", err, tt.want)
			}
			if here := strings.Contains(tt.want, ErrNotHere.Error()); errors.Is(err, ErrNotHere) != here {
				t.Errorf("ErrNotHere: %v", err)
			}
		})
	}
}

func TestLockedMemory(t *testing.T) {
	vm := api.Machine{Overhead: 300}
	vm.Memory.Guest = 2048
	if n := Needed(vm, []Device{{Kind: Char}}); n != 0 {
		t.Errorf("a character device needs %d", n)
	}
	needed := Needed(vm, []Device{{Kind: PCI}})
	err := CheckLocked(8<<20, needed)
	if err == nil || err.Error() != "locked memory 8 MiB, 2.3 GiB needed: device hook did not run" {
		t.Errorf("%v", err)
	}
	if err := CheckLocked(^uint64(0), needed); err != nil {
		t.Error(err)
	}
}
