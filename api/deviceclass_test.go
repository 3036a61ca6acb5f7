package api

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseDeviceClasses(t *testing.T) {
	base := DeviceClass{
		Kind: ClassDevice, Resource: "e.org/x", VFs: LeaveVFs, Bind: "vfio-pci", When: "start", Group: "strict", NoReset: "refuse",
		Order: 500, Manage: "create",
	}
	with := func(key string, change func(*DeviceClass)) DeviceClass {
		c := base
		c.Key = key
		change(&c)
		return c
	}
	tests := map[string]struct {
		data map[string]string
		want []DeviceClass
	}{
		"whole GPU": {map[string]string{"device.t4": "resource=nvidia.com/TU104GL_Tesla_T4,match=10DE:1eb8,group=companions"},
			[]DeviceClass{with("device.t4", func(c *DeviceClass) {
				c.Resource, c.Group = "nvidia.com/TU104GL_Tesla_T4", "companions"
				c.Match = []DeviceMatch{{Vendor: 0x10de, Device: 0x1eb8}}
			})}},
		"virtual functions": {map[string]string{"device.vf": "resource=e.org/x,match=8086:154c,pf=ens3f0#0-3+0000:3b:00.1,vfs=8,when=allocate"},
			[]DeviceClass{with("device.vf", func(c *DeviceClass) {
				c.Match = []DeviceMatch{{Vendor: 0x8086, Device: 0x154c}}
				c.PFs = []PFRange{{Name: "ens3f0", To: 3}, {Name: "0000:3b:00.1", To: LeaveVFs}}
				c.VFs, c.When, c.Place = 8, "allocate", "spread"
			})}},
		"subsystem, class, address, driver": {
			map[string]string{"device.a": "resource=e.org/x,match=1:2:3:4+class:0302,address=0000:3B:*.0,driver=igb+none,no-reset=allow"},
			[]DeviceClass{with("device.a", func(c *DeviceClass) {
				c.Match = []DeviceMatch{{Vendor: 1, Device: 2, SubVendor: 3, SubDevice: 4, Sub: true}, {Class: 0x302, ByClass: true}}
				c.Addresses, c.Drivers, c.When, c.NoReset = []string{"0000:3b:*.0"}, []string{"igb", "none"}, "allocate", "allow"
			})}},
		"vGPU with nodes": {map[string]string{"vgpu.n2": `resource=e.org/x,type="GRID T4-4Q",nodes=a:b+c,order=2`, "cpu.default-model": "EPYC"},
			[]DeviceClass{with("vgpu.n2", func(c *DeviceClass) {
				c.Kind, c.When, c.Place, c.Order, c.Type = ClassVGPU, "start", "pack", 2, "GRID T4-4Q"
				c.Nodes = []NodeMatch{{Key: "a", Value: "b"}, {Key: "c", Exists: true}}
			})}},
		"USB bundle": {map[string]string{"usb.desk": "resource=e.org/x,match=045e:07a5+072f:b100:S1"},
			[]DeviceClass{with("usb.desk", func(c *DeviceClass) {
				c.Kind = ClassUSB
				c.Match = []DeviceMatch{{Vendor: 0x45e, Device: 0x7a5}, {Vendor: 0x72f, Device: 0xb100, Serial: "S1"}}
			})}},
		"sorted by key": {map[string]string{"device.b": "resource=e.org/x,path=/dev/b*", "device.a": "resource=e.org/x,path=/dev/a"},
			[]DeviceClass{with("device.a", func(c *DeviceClass) { c.Path = "/dev/a" }), with("device.b", func(c *DeviceClass) { c.Path = "/dev/b*" })}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, errs := ParseDeviceClasses(tt.data)
			if err := errs.Err(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want,+got)\n%s", diff)
			}
		})
	}
}

func TestDeviceClassMistakes(t *testing.T) {
	tests := map[string]struct{ key, value, want string }{
		"no domain":           {"device.a", "resource=T4,match=1:2", "resource=T4: want domain/name"},
		"our domain":          {"device.a", "resource=podvirt.dev/kvm,match=1:2", "the domain podvirt.dev is not yours"},
		"Kubernetes' domain":  {"device.a", "resource=kubernetes.io/x,match=1:2", "the domain kubernetes.io is not yours"},
		"half a match":        {"device.a", "resource=e.org/x,match=10de", "match=10de: want vendor:device, e.g. 10de:1eb8"},
		"half an address":     {"device.a", "resource=e.org/x,address=3b:00", "address=3b:00: want 0000:3b:00.0"},
		"range":               {"device.a", "resource=e.org/x,pf=ens3f0#5-2", "pf=ens3f0#5-2: start above end"},
		"link":                {"device.a", "resource=e.org/x,match=1:2,link=eth", "link=eth: not one of ether, infiniband; nearest: ether"},
		"memory":              {"device.a", "resource=e.org/x,path=/dev/mem", "path=/dev/mem: not offered"},
		"memory by a pattern": {"device.a", "resource=e.org/x,path=/dev/m*", "path=/dev/m*: not offered"},
		"climbing path":       {"device.a", "resource=e.org/x,path=/dev/../etc/x", "want a path below /dev"},
		"path and match":      {"device.a", "resource=e.org/x,path=/dev/x,match=1:2", "path=/dev/x: goes with neither"},
		"nothing selected":    {"device.a", "resource=e.org/x", "one of match, address, pf and path must be given"},
		"too many VFs":        {"device.a", "resource=e.org/x,pf=a,vfs=257", "vfs=257: not a whole number from 0 to 256"},
		"VFs of nothing":      {"device.a", "resource=e.org/x,match=1:2,vfs=2", "vfs=2: needs pf="},
		"unknown option":      {"device.a", "resource=e.org/x,mach=1:2", `unknown option "mach"; nearest: match`},
		"twice":               {"device.a", "resource=e.org/x,match=1:2,match=1:3", "match: " + ListedTwice},
		"no resource":         {"device.a", "match=1:2", "resource is missing"},
		"node selector":       {"device.a", "resource=e.org/x,match=1:2,nodes=a=b", "nodes=a=b: write a:b"},
		"quotes":              {"device.a", `resource=e.org/x,match="1:2`, EmptyItem},
		"name":                {"device.A", "resource=e.org/x,match=1:2", `name "A": want`},
		"vGPU without type":   {"vgpu.a", "resource=e.org/x", "type is missing"},
		"vGPU with match":     {"vgpu.a", "resource=e.org/x,type=t,match=1:2", `unknown option "match"`},
		"half a USB match":    {"usb.a", "resource=e.org/x,match=46f4", "match=46f4: want vendor:product"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			classes, errs := ParseDeviceClasses(map[string]string{tt.key: tt.value, "device.good": "resource=e.org/good,match=1:2"})
			if len(classes) != 1 || classes[0].Key != "device.good" {
				t.Errorf("classes = %+v; want the good one alone", classes)
			}
			if got := errs.Error(); !strings.HasPrefix(got, "data."+tt.key+": ") || !strings.Contains(got, tt.want) {
				t.Errorf("mistakes = %q; want data.%s: … %s", got, tt.key, tt.want)
			}
		})
	}
}

func TestDeviceClassesShareNoVariable(t *testing.T) {
	classes, errs := ParseDeviceClasses(map[string]string{
		"device.a": "resource=nvidia.com/a-b,match=1:2", "device.b": "resource=nvidia.com/a_b,match=1:3", "device.c": "resource=nvidia.com/a-b,match=1:4",
	})
	const want = "data.device.b: resource nvidia.com/a-b and nvidia.com/a_b share the variable PCI_RESOURCE_NVIDIA_COM_A_B"
	if len(classes) != 2 || errs.Error() != want {
		t.Errorf("classes %+v, mistakes %q; want two and %q", classes, errs.Error(), want)
	}
}

func FuzzParseDeviceClasses(f *testing.F) {
	for _, seed := range []string{
		"resource=a.b/c,match=10de:1eb8,pf=x#0-3,nodes=a:b+c", `resource=a.b/c,type="x y",params="a,b"`, "path=/dev/[", "match=+", "vfs=-1,pf=#",
	} {
		f.Add("device.x", seed)
	}
	f.Fuzz(func(t *testing.T, key, value string) {
		classes, errs := ParseDeviceClasses(map[string]string{key: value})
		if len(classes)+len(errs) == 0 && (strings.HasPrefix(key, "device.") || strings.HasPrefix(key, "vgpu.") || strings.HasPrefix(key, "usb.")) {
			t.Errorf("%q: neither a class nor a mistake", value)
		}
		for _, c := range classes {
			if c.Resource == "" || c.Matches(map[string]string{}) != (len(c.Nodes) == 0) {
				t.Errorf("%q gives %+v", value, c)
			}
		}
	})
}
