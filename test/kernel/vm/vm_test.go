package vm_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"podvirt.dev/test/kernel/vm"
)

func TestArgs(t *testing.T) {
	tests := map[string]struct {
		options []vm.Option
		want    []string // pairs that must be in the command line
	}{
		"defaults":     {nil, []string{"-m 512M", "-smp 1", "-cpu max", "-accel tcg,thread=single", "-kernel k", "-initrd i"}},
		"size":         {[]vm.Option{vm.Memory(1024), vm.CPUs(2)}, []string{"-m 1024M", "-smp 2"}},
		"CPU":          {[]vm.Option{vm.CPU("EPYC,-avx2"), vm.CPU("")}, []string{"-cpu EPYC,-avx2"}},
		"command line": {[]vm.Option{vm.Append("a", "b=c")}, []string{"-append a b=c"}},
		"NUMA": {[]vm.Option{vm.Memory(512), vm.CPUs(4), vm.NUMA(2)}, []string{
			"-object memory-backend-ram,id=cell0,size=256M", "-numa node,nodeid=0,memdev=cell0,cpus=0-1",
			"-object memory-backend-ram,id=cell1,size=256M", "-numa node,nodeid=1,memdev=cell1,cpus=2-3"}},
		"hugepages": {[]vm.Option{vm.Hugepages(8)}, []string{"-append hugepagesz=2M hugepages=8"}},
		"IOMMU":     {[]vm.Option{vm.IOMMU("virtio")}, []string{"-device virtio-iommu-pci"}},
		"devices":   {[]vm.Option{vm.Device("edu"), vm.Device("edu")}, []string{"-device edu,id=dev1", "-device edu,id=dev2"}},
		"share": {[]vm.Option{vm.Share("x", "/d")}, []string{
			"-fsdev local,security_model=none,readonly=on,id=share1,path=/d", "-device virtio-9p-pci,fsdev=share1,mount_tag=x"}},
		"serial": {[]vm.Option{vm.Serial(nil), vm.Serial(nil)}, []string{"-chardev file,id=serial1,path=/dev/fd/4"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m, err := vm.New(append(tt.options, vm.Kernel("k", "i"))...)
			if err != nil {
				t.Fatal(err)
			}
			args := m.Args()
			for _, want := range tt.want {
				option, value, _ := strings.Cut(want, " ")
				if !hasPair(args, option, value) {
					t.Errorf("args = %q; want %s among them", args, want)
				}
			}
		})
	}
}

func hasPair(args []string, option, value string) bool {
	for i := range len(args) - 1 {
		if args[i] == option && args[i+1] == value {
			return true
		}
	}
	return false
}

func TestNewRefuses(t *testing.T) {
	kernel := vm.Kernel("k", "")
	tests := map[string]struct {
		options []vm.Option
		want    error
	}{
		"no kernel":      {nil, vm.ErrNoKernel},
		"uneven nodes":   {[]vm.Option{kernel, vm.CPUs(3), vm.NUMA(2)}, vm.ErrNUMA},
		"unknown IOMMU":  {[]vm.Option{kernel, vm.IOMMU("ibm")}, vm.ErrIOMMU},
		"too many ports": {slices.Repeat([]vm.Option{vm.Serial(nil)}, 5), vm.ErrPorts},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := vm.New(tt.options...); !errors.Is(err, tt.want) {
				t.Errorf("New = %v; want %v", err, tt.want)
			}
		})
	}
}

func TestParse(t *testing.T) {
	tests := map[string]struct {
		words string
		want  string // in the command line, or of the error
		fails bool
	}{
		"all": {
			words: "memory=256 cpus=2 numa=2 hugepages=4 iommu=intel device=edu append=quiet",
			want:  "hugepages=4 intel_iommu=on quiet",
		},
		"unknown":    {words: "color=red", want: `machine option "color=red": unknown`, fails: true},
		"not number": {words: "cpus=many", want: `machine option "cpus=many": want a positive number, not "many"`, fails: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			options, err := vm.Parse(strings.Fields(tt.words))
			if tt.fails {
				if err == nil || err.Error() != tt.want {
					t.Errorf("Parse = %v; want %s", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			m, err := vm.New(append(options, vm.Kernel("k", ""))...)
			if err != nil {
				t.Fatal(err)
			}
			if got := m.CommandLine(); !strings.Contains(got, tt.want) {
				t.Errorf("CommandLine = %s; want %s in it", got, tt.want)
			}
		})
	}
}
