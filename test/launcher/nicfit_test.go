package launcher

import (
	"os"
	"testing"
)

// TestNICsDoNotFit starts VMs whose NICs the Pod does not have as they are asked for: each start ends with what to do about it.
func TestNICsDoNotFit(t *testing.T) {
	for _, row := range []struct {
		name string
		nic  string
		spec func(*containerSpec)
		code int
		want string
	}{
		{"a sandbox without the network stage, and no tun device (NW-010)", "binding=masquerade", func(s *containerSpec) { s.NoTun = true }, 11,
			`^NodeLacks: the network stage of this node did not see this Pod \(made before it was installed, or the runtime passes no annotations\); ` +
				`delete this Pod$`},
		{"no tun device", "binding=masquerade", func(s *containerSpec) { s.Tap, s.NoTun = true, true }, 11,
			`^NodeLacks: no /dev/net/tun in this container: request podvirt\.dev/tun: 1$`},
		{"larger frames than the Pod's (NW-039)", "binding=masquerade,mtu=9000", func(s *containerSpec) { s.Tap = true }, 10,
			`^BadConfig: podvirt\.dev/nic\.default: mtu=9000: above the 1450 of eth0$`},
		{"a tap that is held and stays so (NW-009)", "binding=masquerade", func(s *containerSpec) { s.Tap, s.Held = true, true }, 11,
			`^NodeLacks: tap0 is held by pid 1$`},
		{"the network of the host (NW-006)", "binding=masquerade", func(s *containerSpec) { s.Host = true }, 10,
			`^BadConfig: hostNetwork: a VM Pod needs a network namespace of its own$`},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			p := newPod(t, map[string]string{"nic.default": row.nic})
			row.spec(&p.spec)
			if _, err := os.Stat("/proc/sys/net/core/netdev_max_backlog"); p.spec.Host && err != nil {
				t.Skip("this machine is a container: its network is not that of the host either")
			}
			p.start().wantEnd(row.code, row.want)
		})
	}
}

// TestRestartWithNIC starts QEMU anew on the tap of the one before, whether the tap has many queues or one (NW-009).
func TestRestartWithNIC(t *testing.T) {
	for _, model := range []string{"virtio", "e1000e"} {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			p := newPod(t, map[string]string{"nic.default": "binding=masquerade,model=" + model, "start": "paused", "shutdown": "acpi,timeout=1s"})
			p.spec.Tap, p.spec.Single = true, model != "virtio"
			v := p.start()
			v.paused()
			for boot := range 3 {
				v.ctl("restart")
				v.eventually("another QEMU", func() bool {
					state := v.state()
					return state["state"] == "paused" && state["boots"] == float64(boot+2)
				})
			}
		})
	}
}
