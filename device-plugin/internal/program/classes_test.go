package program

import (
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"podvirt.dev/internal/kubelettest"
)

// deviceClasses: classes appear, change and go while the plugin runs; one with a mistake stays as it was, and what a
// container has is left to it.
func (b *bench) deviceClasses(t *testing.T) {
	b.mknod("ttyT0", unix.Mkdev(4, 64))
	b.mknod("ttyT1", unix.Mkdev(4, 65))
	start := time.Now()
	b.configure(map[string]string{
		"device.a": "resource=e.org/tty,path=/dev/ttyT*", "device.b": "resource=e.org/none,match=1234:11e8",
		"device.c": "resource=e.org/c,path=/dev/mem", "vgpu.d": "resource=e.org/d,type=nvidia-1", "device.e": "resource=e.org/e,path=/dev/ttyT1,nodes=gpu",
	})
	kubelettest.Eventually(t, 2*second, "four classes work", func() bool {
		return b.kubelet.Healthy("e.org/tty") == 2 && b.kubelet.Healthy("e.org/none") == 0 && b.kubelet.Healthy("e.org/d") == 0
	})
	t.Logf("from the ConfigMap to the kubelet: %v", time.Since(start))
	if b.kubelet.Healthy("e.org/c") != -1 || b.kubelet.Healthy("e.org/e") != -1 {
		t.Error("a class with a mistake, or of another node, is offered")
	}
	kubelettest.Eventually(t, 5*second, "the fifth is named", func() bool {
		_, metrics := b.get("/metrics")
		return strings.Contains(b.events(), "Warning node-a DeviceClassInvalid: data.device.c: path=/dev/mem: not offered") &&
			strings.Contains(metrics, `podvirt_device_config_errors{key="device.c"} 1`)
	})
	got, err := b.kubelet.Give(t.Context(), "holder", "e.org/tty", "ttyT0")
	if err != nil || got.Envs["CHAR_RESOURCE_E_ORG_TTY"] != "/dev/ttyT0" || got.CdiDevices[0].Name != "podvirt.dev/char=ttyT0" {
		t.Errorf("Allocate = %v, %v", got, err)
	}

	b.configure(map[string]string{"device.a": "resource=e.org/tty,path=/dev/tty/"}) // a mistake: what was in force stays
	kubelettest.Eventually(t, 2*second, "other classes are gone", func() bool { return b.kubelet.Healthy("e.org/none") <= 0 })
	if n := b.kubelet.Healthy("e.org/tty"); n != 2 {
		t.Errorf("%d units of a class whose new value is a mistake; want the 2 of before", n)
	}

	b.configure(nil)
	kubelettest.Eventually(t, 2*second, "only what is held is left", func() bool {
		return b.kubelet.Health("e.org/tty", "ttyT0") == pluginapi.Unhealthy && b.kubelet.Health("e.org/tty", "ttyT1") == ""
	})
	if spec, err := os.ReadFile(b.path("cdi/podvirt.dev-char.json")); err != nil || !strings.Contains(string(spec), "/dev/ttyT0") {
		t.Errorf("specification = %s, %v; a restarted container needs it", spec, err)
	}
	b.kubelet.End("holder")
	kubelettest.Eventually(t, 6*second, "nothing is left", func() bool {
		_, err := os.Stat(b.path("cdi/podvirt.dev-char.json"))
		return b.kubelet.Health("e.org/tty", "ttyT0") != pluginapi.Healthy && os.IsNotExist(err)
	})
	if log := b.events(); !strings.Contains(log, "DeviceUnhealthy: ttyT0 of e.org/tty: class removed") {
		t.Errorf("events:\n%s", log)
	}
}
