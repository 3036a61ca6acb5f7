package devices

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"podvirt.dev/test/kernel/internal/inguest"
)

// Ids of the machine's devices.
const (
	igbID    = "8086:10c9"
	igbvfID  = "8086:10ca"
	eduID    = "1234:11e8"
	testerID = "1b36:0005"
	nvmeID   = "1b36:0010"
	e1000eID = "8086:10d3"
)

const moment = 2 * time.Minute

// TestFunctions: PCI functions are offered as classes say, bound and given back, by the built plugin. Each step goes on from
// the one before.
func TestFunctions(t *testing.T) {
	inguest.Must(t)
	shell(t, "/sbin/modprobe vfio_pci; /sbin/modprobe igbvf")
	before := sysfsState(t)
	n := newNode(t)
	n.start()
	n.eventually(t, moment, "base devices", func() bool { return n.kubelet.Healthy("podvirt.dev/memlock") == 1000 })
	for _, step := range []struct {
		name string
		run  func(*node, *testing.T)
	}{
		{"vhost-net: opening the node loads the driver", (*node).vhostNet},
		{"a group with two devices, strict and whole", (*node).groups},
		{"what the host needs is refused", (*node).hostUse},
		{"virtual functions by declaration", (*node).virtualFunctions},
		{"preferred units", (*node).preferred},
		{"a function that goes is unhealthy", (*node).hotUnplug},
		{"bound at the first allocation", (*node).lateBinding},
		{"nothing held is taken away", (*node).held},
		{"killed at any time", (*node).killed},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(n, t) }) {
			return
		}
	}
	n.api.set(nil)
	n.eventually(t, 2*moment, "the node is as it was", func() bool { return slices.Equal(sysfsState(t), before) })
}

// sysfsState is what the plugin may change: drivers, overrides and numbers of virtual functions.
func sysfsState(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob("/sys/bus/pci/devices/*")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, dir := range all {
		address := filepath.Base(dir)
		lines = append(lines, strings.Join([]string{address, link(address, "driver"), read(dir + "/driver_override"), read(dir + "/sriov_numvfs")}, " "))
	}
	return lines
}

func (n *node) vhostNet(t *testing.T) {
	n.eventually(t, moment, "units", func() bool { return n.kubelet.Healthy("podvirt.dev/vhost-net") == 1000 })
	if !strings.Contains(read("/proc/modules"), "vhost_net") {
		t.Errorf("modules:\n%s", read("/proc/modules"))
	}
}

func (n *node) groups(t *testing.T) {
	edu, tester := one(t, eduID), one(t, testerID)
	n.api.set(map[string]string{"device.edu": "resource=e.org/edu,match=" + strings.ToUpper(eduID)})
	n.eventually(t, moment, "refused", func() bool { return n.kubelet.Health("e.org/edu", edu) == pluginapi.Unhealthy })
	n.eventually(t, moment, "with the reason", func() bool {
		return strings.Contains(n.api.said(), "Warning DeviceUnhealthy: "+edu+" of e.org/edu: IOMMU group "+
			link(edu, "iommu_group")+" also holds "+tester+" (no driver)")
	})
	if _, err := n.kubelet.Allocate(t.Context(), "e.org/edu", edu); err == nil || !strings.Contains(err.Error(), tester) {
		t.Errorf("Allocate = %v; want the reason", err)
	}
	n.api.set(map[string]string{
		"device.edu": "resource=e.org/edu,match=" + eduID + ",group=companions,no-reset=allow", "device.tester": "resource=e.org/tester,match=" + testerID,
	})
	n.eventually(t, moment, "whole", func() bool { return n.kubelet.Health("e.org/edu", edu) == pluginapi.Healthy })
	if link(edu, "driver") != "vfio-pci" || link(tester, "driver") != "vfio-pci" || len(n.kubelet.Units("e.org/tester")) > 0 {
		t.Errorf("drivers %q, %q, units of the other %v", link(edu, "driver"), link(tester, "driver"), n.kubelet.Units("e.org/tester"))
	}
	n.api.set(nil)
	n.eventually(t, moment, "given back", func() bool { return link(edu, "driver") == "" && link(tester, "driver") == "" })
}

func (n *node) hostUse(t *testing.T) {
	nic, disk := one(t, e1000eID), one(t, nvmeID)
	name := filepath.Base(glob(t, "/sys/bus/pci/devices/"+nic+"/net/*"))
	shell(t, "ip link add br7 type bridge; ip link set "+name+" master br7")
	n.api.set(map[string]string{"device.nic": "resource=e.org/nic,match=" + e1000eID, "device.disk": "resource=e.org/disk,match=" + nvmeID})
	n.eventually(t, moment, "refused", func() bool {
		return strings.Contains(n.api.said(), nic+" of e.org/nic: in use by the host: "+name+" is part of br7")
	})
	n.eventually(t, moment, "the disk is offered", func() bool { return n.kubelet.Health("e.org/disk", disk) == pluginapi.Healthy })
	if link(nic, "driver") != "e1000e" || link(disk, "driver") != "vfio-pci" {
		t.Errorf("drivers %s, %s; want the node's own NIC untouched", link(nic, "driver"), link(disk, "driver"))
	}
	shell(t, "ip link set "+name+" nomaster; ip link del br7")
	n.eventually(t, 2*moment, "healthy again", func() bool { return n.kubelet.Health("e.org/nic", nic) == pluginapi.Healthy })
	n.api.set(nil)
	n.eventually(t, moment, "given back", func() bool { return link(nic, "driver") == "e1000e" && link(disk, "driver") == "nvme" })
}

func glob(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v, %v; want one", pattern, found, err)
	}
	return found[0]
}

func (n *node) virtualFunctions(t *testing.T) {
	pf := one(t, igbID)
	n.api.set(map[string]string{"device.vf": "resource=e.org/vf,match=" + igbvfID + ",pf=" + pf + ",vfs=8"})
	n.eventually(t, moment, "too many", func() bool { return strings.Contains(n.api.said(), "data.device.vf: vfs=8: PF "+pf+" has 7") })
	start := time.Now()
	n.api.set(map[string]string{"device.vf": "resource=e.org/vf,match=" + igbvfID + ",pf=" + pf + ",vfs=4"})
	n.eventually(t, moment, "four", func() bool { return n.kubelet.Healthy("e.org/vf") == 4 })
	t.Logf("from the declaration to four units: %v", time.Since(start))
	groups := map[string]bool{}
	for _, vf := range functions(t, igbvfID) {
		groups[link(vf, "iommu_group")] = true
		if link(vf, "driver") != "vfio-pci" {
			t.Errorf("driver of %s: %s", vf, link(vf, "driver"))
		}
	}
	if len(groups) != 4 {
		t.Errorf("groups %v; want one for each", groups)
	}
	vf := functions(t, igbvfID)[1]
	got, err := n.kubelet.Give(t.Context(), "vm", "e.org/vf", vf)
	if err != nil || got.Envs["PCI_RESOURCE_E_ORG_VF"] != vf || len(got.CdiDevices) != 1 || got.CdiDevices[0].Name != "podvirt.dev/pci="+vf {
		t.Fatalf("Allocate = %v, %v", got, err)
	}
	spec := read(n.path("cdi/podvirt.dev-pci.json"))
	if !strings.Contains(spec, `"/dev/vfio/`+link(vf, "iommu_group")+`"`) || !strings.Contains(spec, "memlock=unlimited") {
		t.Errorf("specification: %s", spec)
	}
	n.api.set(map[string]string{"device.vf": "resource=e.org/vf,match=" + igbvfID + ",pf=" + pf + ",vfs=2"})
	n.eventually(t, moment, "it waits for the VM", func() bool {
		return strings.Contains(n.api.said(), "vfs=2: PF "+pf+" keeps 4 while default/vm has one")
	})
	if len(functions(t, igbvfID)) != 4 {
		t.Error("virtual functions were taken from a VM")
	}
	n.kubelet.End("vm")
	n.eventually(t, moment, "two", func() bool { return n.kubelet.Healthy("e.org/vf") == 2 })
}

func (n *node) preferred(t *testing.T) {
	pf := one(t, igbID)
	n.api.set(map[string]string{"device.vf": "resource=e.org/vf,match=" + igbvfID + ",pf=" + pf + "#0-1,vfs=3,place=pack"})
	n.eventually(t, moment, "two of three", func() bool {
		return n.kubelet.Healthy("e.org/vf") == 2 && len(functions(t, igbvfID)) == 3
	})
	got, err := n.kubelet.Prefer(t.Context(), "e.org/vf", 2)
	if err != nil || !slices.Equal(got, functions(t, igbvfID)[:2]) {
		t.Errorf("preferred %v, %v", got, err)
	}
}

func (n *node) hotUnplug(t *testing.T) {
	disk := one(t, nvmeID)
	n.api.set(map[string]string{"device.disk": "resource=e.org/disk,match=" + nvmeID})
	n.eventually(t, moment, "offered", func() bool { return n.kubelet.Health("e.org/disk", disk) == pluginapi.Healthy })
	if _, err := n.kubelet.Give(t.Context(), "vm", "e.org/disk", disk); err != nil {
		t.Fatal(err)
	}
	shell(t, "echo 1 > /sys/bus/pci/devices/"+disk+"/remove")
	took := n.eventually(t, moment, "unhealthy", func() bool { return n.kubelet.Health("e.org/disk", disk) == pluginapi.Unhealthy })
	t.Logf("a function that is gone is unhealthy after %v", took)
	shell(t, "echo 1 > /sys/bus/pci/rescan")
	took = n.eventually(t, moment, "healthy", func() bool { return n.kubelet.Health("e.org/disk", disk) == pluginapi.Healthy })
	t.Logf("and healthy %v after it is back", took)
	n.kubelet.End("vm")
}

func (n *node) lateBinding(t *testing.T) {
	nic := one(t, e1000eID)
	n.api.set(map[string]string{"device.nic": "resource=e.org/nic,match=" + e1000eID + ",when=allocate"})
	n.eventually(t, moment, "offered", func() bool { return n.kubelet.Health("e.org/nic", nic) == pluginapi.Healthy })
	if link(nic, "driver") != "e1000e" {
		t.Errorf("driver %s; want the host's until the first allocation", link(nic, "driver"))
	}
	start := time.Now()
	if _, err := n.kubelet.Give(t.Context(), "vm", "e.org/nic", nic); err != nil {
		t.Fatal(err)
	}
	t.Logf("bound and allocated in %v", time.Since(start))
	if link(nic, "driver") != "vfio-pci" {
		t.Errorf("driver %s", link(nic, "driver"))
	}
}

// held goes on from lateBinding: a VM has the card.
func (n *node) held(t *testing.T) {
	nic := one(t, e1000eID)
	group, err := os.OpenFile("/dev/vfio/"+link(nic, "iommu_group"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	n.api.set(nil)
	n.eventually(t, moment, "said", func() bool { return strings.Contains(n.api.said(), nic+" of e.org/nic: class removed") })
	n.kill()
	n.start() // the new process knows it by the journal and the kubelet
	n.eventually(t, moment, "known again", func() bool { return n.kubelet.Health("e.org/nic", nic) == pluginapi.Unhealthy })
	if link(nic, "driver") != "vfio-pci" {
		t.Errorf("driver %s: taken from a VM", link(nic, "driver"))
	}
	if err := group.Close(); err != nil {
		t.Fatal(err)
	}
	n.kubelet.End("vm")
	n.eventually(t, moment, "given back", func() bool { return link(nic, "driver") == "e1000e" })
}

// killed kills the plugin while it makes and binds virtual functions: the next one goes on, and nothing is forgotten.
func (n *node) killed(t *testing.T) {
	pf := one(t, igbID)
	class := map[string]string{
		"device.vf":  "resource=e.org/vf,match=" + igbvfID + ",pf=" + pf + ",vfs=3",
		"device.edu": "resource=e.org/edu,match=" + eduID + ",group=companions,no-reset=allow",
	}
	for round := range 12 {
		n.api.set(nil)
		if round%2 == 0 {
			n.api.set(class)
		}
		n.kill()
		n.start()
		<-time.After(time.Duration(round) * 130 * time.Millisecond) // within its start and its work
	}
	n.kill()
	n.api.set(class)
	n.start()
	n.eventually(t, 2*moment, "all units", func() bool { return n.kubelet.Healthy("e.org/vf") == 3 && n.kubelet.Healthy("e.org/edu") == 1 })
}
