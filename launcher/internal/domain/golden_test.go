package domain

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"libvirt.org/go/libvirtxml"
	"sigs.k8s.io/yaml"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/hostdev"
)

var update = flag.Bool("update", false, "write the XML files anew")

// golden is one input: what a Pod says, and what the launcher found behind its paths.
type golden struct {
	Annotations map[string]string `json:"annotations"`
	CPU         int64             `json:"cpu"`
	Paths       []api.Path        `json:"paths"`
	NICs        []NIC             `json:"nics"`
	Devices     []hostdev.Device  `json:"devices"`
	Block       []string          `json:"block"`
	Overlays    []string          `json:"overlays"`
	Buffered    []string          `json:"buffered"` // disks whose file system has no O_DIRECT
	Seed        bool              `json:"seed"`
	Cells       Cells             `json:"cells"`
	Pins        Pins              `json:"pins"`
}

// TestBuild compares testdata/NAME.yaml with testdata/NAME.xml; go test -update writes the latter.
func TestBuild(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no inputs: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			got := buildGolden(t, file)
			target := filepath.Join("testdata", name+".xml")
			if *update {
				if err := os.WriteFile(target, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(target)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (-want,+got):\n%s", target, diff)
			}
		})
	}
}

func buildGolden(t *testing.T, file string) string {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var in golden
	if err := yaml.UnmarshalStrict(raw, &in); err != nil {
		t.Fatal(err)
	}
	vm := resolve(t, in)
	host := Host{
		UUID: uuid.MustParse(vm.UUID), RunDir: api.PathRun, Emulator: "/usr/bin/qemu-system-x86_64",
		Firmware: Firmware{Code: "/fw/CODE.fd", Template: "/fw/VARS.fd", Vars: "/vm/state/nvram.fd"},
		TPMDir:   "/vm/state/tpm",
	}
	if k := vm.Kernel; k.Path != "" {
		host.Kernel = Kernel{Image: "/vm/kernel/" + k.Path, Shim: "/vm/kernel/" + k.Shim}
	}
	for _, d := range vm.Disks {
		host.Disks = append(host.Disks, in.disk(d))
	}
	if in.Seed {
		readOnly := true
		host.Disks = append(host.Disks, Disk{
			Options: api.Disk{Name: SeedDisk, Bus: "virtio", Serial: "cidata", ReadOnly: &readOnly, IOThread: "none", Queues: 1},
			Source:  "/run/podvirt/seed.iso", Format: "raw",
		})
	}
	for _, n := range in.NICs {
		for _, o := range vm.NICs {
			if o.Name == n.Options.Name {
				n.Options = o
			}
		}
		host.NICs = append(host.NICs, n)
	}
	host.Cells, host.Pins = in.Cells, in.Pins
	all := vm
	all.NICs = nil
	for _, n := range host.NICs {
		all.NICs = append(all.NICs, n.Options)
	}
	host.Devices, all.Devices = in.Devices, nil
	for _, d := range host.Devices {
		all.Devices = append(all.Devices, d.Device)
	}
	layout, err := NewLayout(all, nil)
	if err != nil {
		t.Fatal(err)
	}
	host.Addresses = layout
	d, err := Build(vm, host)
	if err != nil {
		t.Fatal(err)
	}
	text, err := d.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var again libvirtxml.Domain
	if err := again.Unmarshal(text); err != nil {
		t.Errorf("the XML cannot be read again: %v", err)
	}
	return text + "\n"
}

func resolve(t *testing.T, in golden) api.Machine {
	t.Helper()
	annotations := map[string]string{}
	for key, value := range in.Annotations {
		annotations["podvirt.dev/"+key] = value
	}
	vm, errs := api.Resolve(api.Pod{
		Namespace: "shop", Name: "db1-0", UID: "u", Labels: map[string]string{"podvirt.dev/vm": "db1"}, Annotations: annotations,
		Limits: api.Resources{CPU: in.CPU, Memory: 8 << 30}, Paths: in.Paths, NodeArch: "amd64",
	}, api.Config{})
	if err := errs.Err(); err != nil {
		t.Fatal(err)
	}
	return vm
}

func (in golden) disk(o api.Disk) Disk {
	has := func(list []string) bool { return slices.Contains(list, o.Name) }
	d := Disk{Options: o, Source: o.Path + "/disk.img", Format: "raw", DirectIO: !has(in.Buffered)}
	switch {
	case has(in.Block):
		d.Source, d.Block = o.Path, true
	case has(in.Overlays):
		d.Source, d.Format = "/vm/scratch/"+o.Name+".overlay.qcow2", "qcow2"
		d.Backing = &Backing{Source: o.Path + "/disk/image.qcow2", Format: "qcow2"}
	case o.Empty > 0:
		d.Source, d.Format = "/vm/scratch/"+o.Name+".qcow2", "qcow2"
	}
	return d
}

func TestUnsupported(t *testing.T) {
	for _, topology := range []api.Topology{{Sockets: 1, Dies: 2, Clusters: 1, Cores: 1, Threads: 1}, {Sockets: 1, Dies: 1, Clusters: 2, Cores: 1, Threads: 1}} {
		vm := api.Machine{VM: api.VM{CPU: api.CPU{Accelerator: api.AcceleratorTCG, Topology: &topology}}}
		if _, err := Build(vm, Host{}); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%+v under emulation: %v, want ErrUnsupported", topology, err)
		}
	}
	_, err := Build(api.Machine{VM: api.VM{CPU: api.CPU{Arch: "s390x"}}}, Host{})
	if !errors.Is(err, ErrUnsupported) {
		t.Errorf("arch s390x: %v, want ErrUnsupported", err)
	}
	_, err = Build(api.Machine{}, Host{Disks: []Disk{{Options: api.Disk{Name: "d", Bus: "nvme"}}}})
	if !errors.Is(err, ErrUnsupported) {
		t.Errorf("bus nvme: %v, want ErrUnsupported", err)
	}
}
