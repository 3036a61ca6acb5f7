package nl_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"golang.org/x/sys/unix"

	"podvirt.dev/internal/nl"
	"podvirt.dev/internal/require"
)

// in runs act in a new network namespace with a handle of it.
func in(t *testing.T, act func(t *testing.T, h *nl.Handle)) {
	t.Helper()
	require.Root(t)
	netns, err := testutils.NewNS()
	must(t, err)
	t.Cleanup(func() { must(t, errors.Join(netns.Close(), testutils.UnmountNS(netns))) })
	must(t, netns.Do(func(ns.NetNS) error {
		h, err := nl.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		act(t, h)
		return nil
	}))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTapAsItWasMade(t *testing.T) {
	uid, gid := uint32(107), uint32(108)
	for name, want := range map[string]nl.Tap{
		"owner and queues": {UID: &uid, GID: &gid, MultiQueue: true}, "nobody's": {},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, h *nl.Handle) {
				must(t, nl.AddTap("tap0", want))
				link, err := h.Link("tap0")
				must(t, err)
				if link.Tap == nil || id(link.Tap.UID) != id(want.UID) || id(link.Tap.GID) != id(want.GID) || link.Tap.MultiQueue != want.MultiQueue {
					t.Errorf("tap %+v; want %+v", link.Tap, want)
				}
				if err := nl.AddTap("tap0", want); err == nil {
					t.Error("a second tap of the name was made")
				}
				if _, err := nl.OpenTap("tap0", otherQueues(want)); !errors.Is(err, unix.EINVAL) {
					t.Errorf("opened with the other multi-queue flag: %v; want EINVAL", err)
				}
				if link.Carrier {
					t.Error("a tap that nobody opened has a carrier")
				}
			})
		})
	}
}

func otherQueues(tap nl.Tap) uint16 {
	if tap.MultiQueue {
		return 0
	}
	return unix.IFF_MULTI_QUEUE
}

func id(p *uint32) string {
	if p == nil {
		return "unset"
	}
	return fmt.Sprint(*p)
}

func TestReadTimesOut(t *testing.T) {
	in(t, func(t *testing.T, _ *nl.Handle) {
		tap, err := nl.OpenTap("tap0", 0)
		must(t, err)
		defer tap.Close()
		must(t, tap.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
		if _, err := tap.Read(make([]byte, 2000)); err == nil {
			t.Error("a frame came from nowhere")
		}
	})
}

func TestSettingsAddressesAndRoutes(t *testing.T) {
	in(t, func(t *testing.T, h *nl.Handle) {
		must(t, nl.AddTap("tap0", nl.Tap{}))
		link, err := h.Link("tap0")
		must(t, err)
		mac := net.HardwareAddr{2, 0, 0, 0, 0, 7}
		must(t, h.Set(link.Index, nl.Changes{Alias: "for a test", MAC: mac, MTU: 1400, Up: true}))
		for _, prefix := range []string{"192.0.2.1/24", "2001:db8::1/64", "fe80::7/64"} {
			must(t, h.AddAddress(link.Index, netip.MustParsePrefix(prefix)))
		}
		must(t, h.AddRoute(nl.Route{
			Link: link.Index, Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("192.0.2.9"),
		}))
		link, err = h.Link("tap0")
		must(t, err)
		if link.Alias != "for a test" || link.MAC.String() != mac.String() || link.MTU != 1400 || !link.Up || link.Kind != "tuntap" {
			t.Errorf("link %+v", link)
		}
		addresses, err := h.Addresses(link.Index)
		must(t, err)
		got := map[string]bool{}
		for _, a := range addresses {
			got[a.Prefix.String()] = a.LinkLocal
			if a.Tentative {
				t.Errorf("%s is tentative; want it usable at once", a.Prefix)
			}
		}
		if linkLocal, ok := got["fe80::7/64"]; !ok || !linkLocal || got["192.0.2.1/24"] || len(got) < 3 {
			t.Errorf("addresses %v", got)
		}
		wantDefaultRoute(t, h, link.Index, "192.0.2.9")
	})
}

func wantDefaultRoute(t *testing.T, h *nl.Handle, link int, gateway string) {
	t.Helper()
	routes, err := h.Routes()
	must(t, err)
	for _, r := range routes {
		if r.Destination.Bits() == 0 && r.Gateway == netip.MustParseAddr(gateway) && r.Link == link {
			return
		}
	}
	t.Errorf("routes %+v; want the default route by %s", routes, gateway)
}

func TestWhatIsNotThere(t *testing.T) {
	in(t, func(t *testing.T, h *nl.Handle) {
		_, byName := h.Link("absent0")
		for name, err := range map[string]error{
			"link": byName, "delete": h.Delete(9999), "set": h.Set(9999, nl.Changes{Up: true}), "down": h.Down(9999),
			"address": h.AddAddress(9999, netip.MustParsePrefix("192.0.2.1/24")), "clsact": h.AddClsact(9999),
		} {
			if !nl.IsNotFound(err) || !errors.Is(err, nl.ErrNotFound) {
				t.Errorf("%s: %v; want ErrNotFound", name, err)
			}
		}
	})
	if nl.IsNotFound(nil) || nl.IsNotFound(unix.EPERM) {
		t.Error("what is no absence is taken for one")
	}
}

func TestFiltersNeedClsact(t *testing.T) {
	in(t, func(t *testing.T, h *nl.Handle) {
		index := map[string]int{}
		for _, name := range []string{"a", "b"} {
			must(t, nl.AddTap(name, nl.Tap{}))
			link, err := h.Link(name)
			must(t, err)
			index[name] = link.Index
		}
		filters := func() int {
			found, err := h.Filters(index["a"], nl.Ingress)
			must(t, err)
			return len(found)
		}
		if n := filters(); n != 0 {
			t.Errorf("%d filters without clsact", n)
		}
		must(t, h.AddClsact(index["a"]))
		must(t, h.AddRedirect(nl.Redirect{From: index["a"], To: index["b"], Protocol: unix.ETH_P_ALL, Priority: 1}))
		if n := filters(); n == 0 {
			t.Error("the redirect is not listed")
		}
		must(t, h.DeleteClsact(index["a"]))
		if n := filters(); n != 0 {
			t.Errorf("%d filters after clsact was deleted", n)
		}
	})
}

// TestHandleStaysInItsNamespace uses a handle on threads of another namespace.
func TestHandleStaysInItsNamespace(t *testing.T) {
	in(t, func(t *testing.T, h *nl.Handle) {
		must(t, nl.AddTap("only-here", nl.Tap{}))
		done := make(chan error)
		go func() { // a goroutine of the test's own namespace
			_, err := h.Link("only-here")
			done <- err
		}()
		must(t, <-done)
	})
}
