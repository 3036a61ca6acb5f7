package devices

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	contract "podvirt.dev/api"
	"podvirt.dev/internal/transcript"
	"podvirt.dev/test/kernel/internal/inguest"
)

// long is how long a guest in this guest may take.
const long = 8 * time.Minute

// TestContainers hands devices to containers: a restricted one opens what it was given and nothing else, and a VM whose variable
// names what it was not given ends with the reason.
func TestContainers(t *testing.T) {
	inguest.Must(t)
	onRequest(t)
	shell(t, "/sbin/modprobe vfio_pci; /sbin/modprobe vfio_iommu_type1; /sbin/modprobe igbvf; /sbin/modprobe kvm_amd")
	n := newNode(t)
	n.args = append(n.args, "--hook-dir=/opt/podvirt/bin")
	root := image(t)
	n.facts(t)
	n.start()
	n.eventually(t, moment, "KVM is offered", func() bool { return n.kubelet.Healthy("podvirt.dev/kvm") == 1000 })
	t.Run("container", func(t *testing.T) { n.container(t, root) })
	t.Run("forged variable", func(t *testing.T) { n.forged(t, root) })
}

// facts says that guests run under KVM here, in place of the launcher, whose own facts make test-kvm shows.
func (n *node) facts(t *testing.T) {
	t.Helper()
	facts := contract.CPUFacts{
		V: 1, Boot: read("/proc/sys/kernel/random/boot_id"), Observed: time.Now(), QEMU: "10.0.0", Arch: "amd64",
		Accelerator: contract.AcceleratorKVM, Vendor: "AMD", Model: "EPYC", Models: []string{"EPYC"},
	}
	text, err := facts.Encode()
	if err == nil {
		err = os.WriteFile(n.path("facts/cpu.json"), []byte(text), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// container: what a container was given it opens as uid 107; one beside it has nothing.
func (n *node) container(t *testing.T, root string) {
	vf := n.offerAll(t)
	var allocs []*pluginapi.ContainerAllocateResponse
	for resource, id := range map[string]string{"podvirt.dev/kvm": "kvm-3", "podvirt.dev/vhost-net": "vhost-net-3", "e.org/vf": vf} {
		got, err := n.kubelet.Give(t.Context(), "c", resource, id)
		if err != nil {
			t.Fatal(err)
		}
		allocs = append(allocs, got)
	}
	group := "/dev/vfio/" + link(vf, "iommu_group")
	script := `for f in /dev/kvm /dev/vhost-net /dev/vfio/vfio ` + group + `; do stat -c '%a %u %n' $f; (exec 3<>$f) && echo opened $f; done
ulimit -l; grep -E 'CapEff|NoNewPrivs' /proc/self/status; mknod /tmp/x c 10 232 2>/dev/null || echo refused`
	hosts := shell(t, "ls -ln /dev/kvm /dev/vfio")
	for _, uid := range []uint32{launcherUID, 1000730000} {
		with := container{name: "with", root: root, uid: uid, cdi: n.path("cdi"), args: []string{"/bin/bash", "-c", script}, allocs: allocs}.says(t)
		for _, want := range []string{fmt.Sprintf("600 %d /dev/kvm", uid), "opened /dev/kvm", "opened /dev/vhost-net", "opened /dev/vfio/vfio",
			"opened " + group, "unlimited", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "refused"} {
			if !strings.Contains(with, want) {
				t.Errorf("with devices, as %d, no %q in:\n%s", uid, want, with)
			}
		}
	}
	without := container{name: "without", root: root, cdi: n.path("cdi"), args: []string{"/bin/bash", "-c", "ls /dev/kvm /dev/vfio; ulimit -l; true"}}.says(t)
	if strings.Count(without, "No such file") != 2 || !strings.Contains(without, "8192") {
		t.Errorf("without devices:\n%s", without)
	}
	if now := shell(t, "ls -ln /dev/kvm /dev/vfio"); now != hosts {
		t.Errorf("the host's files were\n%s\nand are\n%s", hosts, now)
	}
	n.kubelet.End("c")
}

// offerAll has one virtual function, the NVMe disk and edu offered, and returns the function's address.
func (n *node) offerAll(t *testing.T) string {
	t.Helper()
	n.api.set(map[string]string{
		"device.vf":   "resource=e.org/vf,match=" + igbvfID + ",pf=" + one(t, igbID) + ",vfs=1",
		"device.disk": "resource=e.org/disk,match=" + nvmeID,
		"device.edu":  "resource=e.org/edu,match=" + eduID + ",group=companions,no-reset=allow",
	})
	n.eventually(t, moment, "all offered", func() bool {
		return n.kubelet.Healthy("e.org/vf") == 1 && n.kubelet.Healthy("e.org/disk") == 1 && n.kubelet.Healthy("e.org/edu") == 1
	})
	return one(t, igbvfID)
}

// forged: a variable that the Pod's author wrote opens nothing.
func (n *node) forged(t *testing.T, root string) {
	c := vmPod(t, n, root, map[string]string{"vm": "db1", "memory": "128Mi", "accelerator": "tcg", "nic.default": "binding=none"})
	c.allocs = []*pluginapi.ContainerAllocateResponse{{Envs: map[string]string{"PCI_RESOURCE_X": one(t, e1000eID)}}}
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	var out transcript.Transcript
	if err := c.run(ctx, t, &out); err == nil || !strings.Contains(out.String(), one(t, e1000eID)+" is not in this container") {
		t.Errorf("%v:\n%s", err, out.String())
	}
}
