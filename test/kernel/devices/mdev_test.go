package devices

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"podvirt.dev/test/kernel/internal/inguest"
)

// Types of the sample driver mtty (Linux, samples/vfio-mdev/mtty.c): serial cards of one and of two ports; a card has 24 ports.
const (
	onePort  = "mtty-1"
	twoPorts = "mtty-2"
)

// TestMediated: mediated devices are made as classes say, by the built plugin, from a driver of the kernel's samples. Each
// step goes on from the one before.
func TestMediated(t *testing.T) {
	inguest.Must(t)
	onRequest(t)
	modules := t.TempDir()
	n := newNode(t)
	n.start()
	n.eventually(t, moment, "base devices", func() bool { return n.kubelet.Healthy("podvirt.dev/memlock") == 1000 })
	n.api.set(map[string]string{"vgpu.one": "resource=e.org/one,type=" + onePort, "vgpu.none": "resource=e.org/none,type=GRID_T4-9Z"})
	n.eventually(t, moment, "offered before there is a driver", func() bool { return n.kubelet.Healthy("e.org/one") == 0 })
	mount(t, "mtty-rootfs", modules)
	shell(t, "/sbin/modprobe mdev; /sbin/modprobe vfio; /sbin/modprobe vfio_iommu_type1; /bin/busybox insmod "+modules+"/modules/mtty.ko")
	took := n.eventually(t, moment, "made when the driver came", func() bool { return n.kubelet.Healthy("e.org/one") == 24 })
	t.Logf("24 instances and units %v after the driver came", took)
	for _, step := range []struct {
		name string
		run  func(*node, *testing.T)
	}{
		{"a type that no card has is told, the rest works", (*node).missingType},
		{"allocation", (*node).allocateSlice},
		{"another type waits for the last instance", (*node).changeType},
		{"labels of the node override", (*node).override},
		{"names are the same", (*node).sameNames},
		{"instances of others", (*node).others},
		{"switched off", (*node).switchedOff},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(n, t) }) {
			return
		}
	}
}

// instances returns those of a type, sorted.
func instances(t *testing.T, kind string) []string {
	t.Helper()
	all, err := filepath.Glob("/sys/bus/mdev/devices/*")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, dir := range all {
		if target, err := os.Readlink(dir + "/mdev_type"); err == nil && filepath.Base(target) == kind {
			found = append(found, filepath.Base(dir))
		}
	}
	return found
}

func (n *node) missingType(t *testing.T) {
	n.eventually(t, moment, "told", func() bool {
		return strings.Contains(n.api.said(), "Warning DeviceClassInvalid: data.vgpu.none: type=GRID_T4-9Z: no card on this node supports it")
	})
	if units := n.kubelet.Healthy("e.org/none"); units != 0 {
		t.Errorf("%d units", units)
	}
}

func (n *node) allocateSlice(t *testing.T) {
	slice := instances(t, onePort)[5]
	got, err := n.kubelet.Give(t.Context(), "vm", "e.org/one", slice)
	if err != nil || got.Envs["MDEV_PCI_RESOURCE_E_ORG_ONE"] != slice || got.CdiDevices[0].Name != "podvirt.dev/mdev="+slice {
		t.Fatalf("Allocate = %v, %v", got, err)
	}
	group, err := os.Readlink("/sys/bus/mdev/devices/" + slice + "/iommu_group")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile("/dev/vfio/"+filepath.Base(group), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if spec := read(n.path("cdi/podvirt.dev-mdev.json")); !strings.Contains(spec, `"/dev/vfio/`+filepath.Base(group)+`"`) {
		t.Errorf("specification: %.300s", spec)
	}
}

// changeType goes on from allocateSlice: a VM has one of the old type. The new one is named by the vendor's name.
func (n *node) changeType(t *testing.T) {
	held := instances(t, onePort)[5]
	n.api.set(map[string]string{"vgpu.two": "resource=e.org/two,type=Dual_port_serial"})
	n.eventually(t, moment, "free ones are gone", func() bool { return slices.Equal(instances(t, onePort), []string{held}) })
	n.eventually(t, moment, "the one that is held is told", func() bool {
		return n.kubelet.Health("e.org/one", held) == pluginapi.Unhealthy && n.kubelet.Healthy("e.org/two") == 0
	})
	n.kubelet.End("vm")
	start := time.Now()
	n.eventually(t, moment, "the new type", func() bool { return n.kubelet.Healthy("e.org/two") == 12 })
	t.Logf("the card has its new type %v after the VM ended", time.Since(start))
}

func (n *node) override(t *testing.T) {
	n.api.set(map[string]string{
		"vgpu.two": "resource=e.org/two,type=" + twoPorts, "vgpu.here": "resource=e.org/one,type=" + onePort + ",nodes=gpu:serial",
	})
	n.eventually(t, moment, "not for this node yet", func() bool { return n.kubelet.Healthy("e.org/two") == 12 })
	n.api.label("gpu", "serial")
	n.eventually(t, moment, "this node has its own", func() bool { return n.kubelet.Healthy("e.org/one") == 24 && len(instances(t, twoPorts)) == 0 })
}

func (n *node) sameNames(t *testing.T) {
	before := instances(t, onePort)
	n.kill()
	shell(t, "for i in /sys/bus/mdev/devices/*; do echo 1 > $i/remove; done") // as a reboot does
	n.start()
	n.eventually(t, moment, "made again", func() bool { return slices.Equal(instances(t, onePort), before) })
}

func (n *node) others(t *testing.T) {
	n.api.set(map[string]string{"vgpu.here": "resource=e.org/two,type=" + twoPorts + ",manage=found,nodes=gpu"})
	n.eventually(t, moment, "ours are gone", func() bool { return len(instances(t, onePort)) == 0 })
	const foreign = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
	shell(t, "echo "+foreign+" > /sys/class/mdev_bus/mtty/mdev_supported_types/"+twoPorts+"/create")
	n.eventually(t, moment, "found", func() bool { return n.kubelet.Health("e.org/two", foreign) == pluginapi.Healthy })
	n.api.set(map[string]string{"vgpu.here": "resource=e.org/one,type=" + onePort + ",nodes=gpu"})
	n.eventually(t, moment, "no more offered", func() bool { return n.kubelet.Health("e.org/two", foreign) != pluginapi.Healthy })
	if !slices.Equal(instances(t, twoPorts), []string{foreign}) {
		t.Errorf("instances: %v; want the foreign one untouched", instances(t, twoPorts))
	}
	shell(t, "echo 1 > /sys/bus/mdev/devices/"+foreign+"/remove")
	n.eventually(t, moment, "the card is free", func() bool { return n.kubelet.Healthy("e.org/one") == 24 })
}

func (n *node) switchedOff(t *testing.T) {
	n.api.set(map[string]string{"devices.mdev": "off", "vgpu.here": "resource=e.org/two,type=" + twoPorts + ",nodes=gpu"})
	n.eventually(t, moment, "seen", func() bool { return n.kubelet.Healthy("e.org/one") == 0 })
	if len(instances(t, onePort)) != 24 {
		t.Errorf("%d instances; want nothing touched", len(instances(t, onePort)))
	}
}

// label changes the labels of the Node.
func (a *api) label(key, value string) {
	a.change(func() {
		a.labels = maps.Clone(a.labels)
		a.labels[key] = value
	})
}
