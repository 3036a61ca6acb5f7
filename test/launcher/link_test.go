package launcher

import (
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestLink pulls and plugs the cable of a NIC while the guest runs: by launcher ctl, by the annotation, and with another
// launcher than the one that started it (network.md NW-042). On the way it looks at what the guest sees of the NIC, whose tap belongs to
// the launcher's user.
func TestLink(t *testing.T) {
	t.Parallel()
	nic := func(link string) map[string]string {
		return map[string]string{
			"nic.default": "binding=masquerade,queues=3,acpi-index=7,link=" + link, "cpu-topology": "cores=2", "memory": "160Mi",
		}
	}
	p := newPod(t, nic("down"))
	p.spec.Tap = true
	v := p.start()
	v.booted(1)
	s := v.shell()
	s.ask("ifconfig eth0 10.0.2.2 netmask 255.255.255.0 up; nc -lk -p 80 -e /bin/date >/dev/null 2>&1 &")
	link := func(how, want string) {
		t.Helper()
		begin := time.Now()
		s.await("cat /sys/class/net/eth0/carrier", "^"+map[string]string{"up": "1", "down": "0"}[want]+"$")
		t.Logf("%s: the guest saw it after %v", how, time.Since(begin))
		if got := v.nic(); got["link"] != want {
			t.Errorf("%s: the status says %v; want link %s", how, got, want)
		}
	}
	link("at the start", "down")
	s.wants(map[string]string{
		"ls -d /sys/class/net/eth0/queues/rx-* | wc -l":  "^2$", // one per CPU of those that there are
		"cat /sys/class/net/eth0/address":                "^" + guestMAC + "$",
		"cat /sys/class/net/eth0/mtu":                    "^" + strconv.Itoa(guestMTU) + "$",
		"cat /sys/class/net/eth0/device/../acpi_index":   "^7$",
		"ping -c 1 -W 2 10.0.2.1 | grep -c '1 received'": "^0$",
	})
	if queues := v.nic()["queues"]; queues != 3.0 {
		t.Errorf("the status says %v queues; want 3", queues)
	}
	v.ctl("update", "nic", "link=up")
	link("launcher ctl", "up")
	s.await("ping -c 1 -W 2 -s 1400 10.0.2.1", "1 packets received")

	p.writePod(nic("up")) // which it is by now, but the annotation said something else
	v.log.wait(t, "the annotation moves the cable of a NIC", 1)
	p.writePod(nic("down"))
	link("annotation", "down")
	kill(t, v, "launcher", syscall.SIGKILL)
	v.eventually("the launcher is back", func() bool {
		_, _, code := v.inside(nil, "/usr/bin/launcher", "ctl", "probe", "state", "running")
		return code == 0
	})
	s = v.shell()
	link("another launcher", "down")
	p.writePod(nic("up"))
	link("annotation, another launcher", "up")

	for words, want := range map[string]string{
		"nic net7 link=up":      "1 update nic net7: no such NIC: default",
		"nic default link=half": "2 usage: update nic default: link=half: not one of link=up, link=down",
		"disk root":             "2 usage: update disk root: want nic [NAME] link=up or link=down",
	} {
		_, errs, code := v.inside(nil, append([]string{"/usr/bin/launcher", "ctl", "update"}, strings.Fields(words)...)...)
		if got := string(rune('0'+code)) + " " + strings.TrimSpace(errs); got != want {
			t.Errorf("update %s: %q; want %q", words, got, want)
		}
	}
}

// nic is what the status says about nic.default.
func (v *vm) nic() map[string]any {
	v.t.Helper()
	for _, nic := range v.state()["nics"].([]any) {
		if n := nic.(map[string]any); n["name"] == "default" {
			return n
		}
	}
	v.t.Fatal("no nic.default")
	return nil
}
