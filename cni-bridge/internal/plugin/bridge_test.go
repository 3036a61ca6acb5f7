package plugin

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"podvirt.dev/cni-bridge/internal/world"
	"podvirt.dev/internal/nicalias"
	"podvirt.dev/internal/nl"
)

// TestBridgeOnThePodNetwork: the guest alone has the Pod's address and MAC, by a Linux bridge in the Pod (NW-025).
func TestBridgeOnThePodNetwork(t *testing.T) {
	onHostAlone(t)
	for _, family := range []struct{ name, outside, pod string }{
		{"IPv4", world.Outside4, world.Pod4}, {"IPv6", world.Outside6, world.Pod6},
	} {
		t.Run(family.name, func(t *testing.T) {
			a := newAttachment(t, world.Options{}, vmPod("binding=bridge"))
			before, mac := world.Snapshot(t, a.Pod), macOf(t, a.Pod, "eth0")
			must(t, a.add(t))
			world.Listen(t, a.Pod, net.JoinHostPort("", "80"))
			world.Listen(t, a.Outside, join(family.outside, 80))
			if got, err := world.Ask(a.Outside, join(family.pod, 80)); err == nil {
				t.Errorf("before the guest is there the Pod answers as %q", got)
			}
			bridgedPod(t, a)
			nic := a.Boot(t)
			if nic.Guest4.String() != world.Pod4+"/24" || nic.Guest6.String() != world.Pod6+"/64" || nic.MAC.String() != mac.String() {
				t.Errorf("alias %+v; want address and MAC of eth0", nic)
			}
			world.Listen(t, a.Guest, join(family.pod, 80))
			if got, err := world.Ask(a.Outside, join(family.pod, 80)); got != family.outside || err != nil {
				t.Errorf("in: the server saw %q, %v; want %q", got, err, family.outside)
			}
			if got, err := world.Ask(a.Guest, join(family.outside, 80)); got != family.pod || err != nil {
				t.Errorf("out: the server saw %q, %v; want %q", got, err, family.pod)
			}
			must(t, a.check(t))
			must(t, a.del(t))
			if diff := cmp.Diff(before, world.Snapshot(t, a.Pod)); diff != "" {
				t.Errorf("namespace (-before,+after)\n%s", diff)
			}
		})
	}
}

// onHostAlone leaves a test out in the kernel guest, which is slow and whose bridges are no others.
func onHostAlone(t *testing.T) {
	t.Helper()
	if vlans() {
		t.Skip("shown by the same test on the host")
	}
}

// bridgedPod is what a sidecar sees: no address, and nobody to talk to.
func bridgedPod(t *testing.T, a *attachment) {
	t.Helper()
	world.Do(t, a.Pod, func(h *nlHandle) {
		for _, name := range []string{"eth0", nicalias.BridgeName(0), "tap0"} {
			link, err := h.Link(name)
			must(t, err)
			addresses, err := h.Addresses(link.Index)
			if err != nil || len(addresses) > 0 {
				t.Errorf("%s has %v, %v; want no address", name, addresses, err)
			}
		}
	})
	if _, err := world.Ask(a.Pod, join(world.Outside4, 80)); err == nil {
		t.Error("the Pod's stack reaches the outside")
	}
}

// TestBridgeAnswersNobody asks for the address by ARP while there is no guest, and sends what a guest must not.
func TestBridgeAnswersNobody(t *testing.T) {
	onHostAlone(t)
	a := newAttachment(t, world.Options{}, vmPod("binding=bridge"))
	own := macOf(t, a.Pod, "eth0")
	must(t, a.add(t))
	var seen *packets
	must(t, a.Outside.Do(func(ns.NetNS) (err error) { seen, err = sniff("out0"); return err }))
	defer seen.Close()
	if _, err := world.Ask(a.Outside, join(world.Pod4, 80)); err == nil { // sends requests
		t.Error("somebody answers")
	}
	if seen.any(quiet, func(frame []byte) bool {
		const arpReply = 2
		return len(frame) > 22 && frame[12] == 0x08 && frame[13] == 0x06 && frame[21] == arpReply
	}) {
		t.Error("the Pod's stack answers ARP for the guest's address")
	}
	guest, _ := a.taps(t)
	frames := strangeFrames(t, own, net.HardwareAddr{2, 9, 9, 9, 9, 9})
	for deadline := time.Now().Add(arrival); time.Now().Before(deadline); { // the first frames are lost
		_, err := guest.Write(frames["its own datagram"].frame)
		must(t, err)
		if seen.has(frames["its own datagram"].frame, quiet/5) {
			break
		}
	}
	for _, name := range []string{"datagram without an address", "another MAC", "another IPv4 address", "a router"} {
		row := frames[name]
		_, err := guest.Write(row.frame)
		must(t, err)
		patience := arrival
		if !row.passes {
			patience = quiet / 2
		}
		if got := seen.has(row.frame, patience); got != row.passes {
			t.Errorf("%s arrives outside: %v; want %v", name, got, row.passes)
		}
	}
}

// TestBridgeDrift: CHECK says what is not as ADD left it.
func TestBridgeDrift(t *testing.T) {
	onHostAlone(t)
	bridge := nicalias.BridgeName(0)
	for want, drift := range map[string]func(t *testing.T, h *nl.Handle){
		bridge + " is missing": func(t *testing.T, h *nl.Handle) { must(t, h.Delete(index(t, h, bridge))) },
		"eth0 is not in bridge " + bridge: func(t *testing.T, h *nl.Handle) {
			must(t, h.Free(index(t, h, "eth0")))
		},
		bridge + ": up is false, want true": func(t *testing.T, h *nl.Handle) { must(t, h.Down(index(t, h, bridge))) },
	} {
		t.Run(want, func(t *testing.T) {
			a := newAttachment(t, world.Options{}, vmPod("binding=bridge"))
			before := world.Snapshot(t, a.Pod)
			must(t, a.add(t))
			must(t, a.check(t))
			world.Do(t, a.Pod, func(h *nlHandle) { drift(t, h) })
			if err := a.check(t); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("CHECK = %v; want it to say %q", err, want)
			}
			must(t, a.del(t))
			if diff := cmp.Diff(before, world.Snapshot(t, a.Pod)); diff != "" {
				t.Errorf("namespace (-before,+after)\n%s", diff)
			}
		})
	}
}

// any waits for a frame.
func (p *packets) any(patience time.Duration, is func(frame []byte) bool) bool {
	buffer := make([]byte, 1<<16)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		timeout := unix.NsecToTimeval(time.Until(deadline).Nanoseconds())
		if unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout) != nil {
			return false
		}
		if n, _, err := unix.Recvfrom(p.fd, buffer, 0); err == nil && is(buffer[:n]) {
			return true
		}
	}
	return false
}
