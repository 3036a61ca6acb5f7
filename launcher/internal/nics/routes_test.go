package nics

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/api"
	"podvirt.dev/internal/nicalias"
	"podvirt.dev/internal/nl"
)

// TestFindRouted: Pods with an address of 32 bits, as CNIs leave them that route: the gateway is on link by a route of its
// own, which the guest must be told before the default route (NW-046).
func TestFindRouted(t *testing.T) {
	for name, row := range map[string]struct {
		routes  []string // destination, and gateway where there is one
		gateway string
		told    []string
	}{
		"Calico: a link-local gateway":   {[]string{"169.254.1.1/32", "0.0.0.0/0 169.254.1.1"}, "169.254.1.1", []string{"169.254.1.1/32 on link"}},
		"Cilium: the node's own address": {[]string{"10.244.1.1/32", "0.0.0.0/0 10.244.1.1"}, "10.244.1.1", []string{"10.244.1.1/32 on link"}},
		"a subnet behind the gateway, GKE": {
			[]string{"10.244.1.1/32", "10.244.1.0/24 10.244.1.1", "0.0.0.0/0 10.244.1.1"}, "10.244.1.1",
			[]string{"10.244.1.1/32 on link", "10.244.1.0/24 10.244.1.1"},
		},
		"a network behind another neighbour": {
			[]string{"169.254.1.1/32", "10.9.0.1/32", "10.8.0.0/16 10.9.0.1", "0.0.0.0/0 169.254.1.1"}, "169.254.1.1",
			[]string{"10.9.0.1/32 on link", "169.254.1.1/32 on link", "10.8.0.0/16 10.9.0.1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := inNamespace(t)
			owner := uint32(107)
			tap := nl.Tap{UID: &owner, GID: &owner}
			makeTap(t, h, "eth0", "", nl.Tap{}, "10.244.1.5/32")
			pod, err := h.Link("eth0")
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range row.routes {
				if err := h.AddRoute(route(pod.Index, text)); err != nil {
					t.Fatal(err)
				}
			}
			wire := alias("default", "eth0")
			wire.Binding, wire.Guest4, wire.Guest6 = string(api.BindingWire), netip.MustParsePrefix("10.244.1.5/32"), netip.Prefix{}
			makeTap(t, h, "tap0", text(t, wire), tap)
			makeTap(t, h, "svc0", nicalias.Service(), tap, "169.254.75.1/32")
			found, err := Find(h, Wanted{UID: 107, Annotated: true})
			if err != nil || len(found) != 1 {
				t.Fatalf("%+v, %v", found, err)
			}
			nic := found[0]
			if nic.OnLink || nic.Gateway4 != netip.MustParseAddr(row.gateway) {
				t.Errorf("on link %v, gateway %s; want false, %s", nic.OnLink, nic.Gateway4, row.gateway)
			}
			var told []string
			for _, r := range nic.Routes {
				via := "on link"
				if r.Gateway.IsValid() {
					via = r.Gateway.String()
				}
				told = append(told, r.Destination.String()+" "+via)
			}
			if diff := cmp.Diff(row.told, told); diff != "" {
				t.Errorf("routes for the guest (-want,+got)\n%s", diff)
			}
		})
	}
}

func route(link int, text string) nl.Route {
	destination, gateway, found := strings.Cut(text, " ")
	r := nl.Route{Link: link, Destination: netip.MustParsePrefix(destination)}
	if found {
		r.Gateway = netip.MustParseAddr(gateway)
	}
	return r
}
