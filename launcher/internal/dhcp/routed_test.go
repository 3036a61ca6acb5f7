package dhcp

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"podvirt.dev/api"
	"podvirt.dev/internal/nicalias"
	"podvirt.dev/internal/nl"
	"podvirt.dev/launcher/internal/nics"
)

// pod is what the launcher finds of a Pod whose interface has these routes and whose guest owns it.
func pod(address string, routes ...nl.Route) nics.NIC {
	return nics.NIC{
		NIC: nicalias.NIC{Name: "default", Binding: string(api.BindingWire), MAC: guestMAC, Guest4: netip.MustParsePrefix(address)},
		MTU: 1450, GatewayMAC: gatewayMAC, Server4: netip.MustParseAddr("169.254.75.1"), Routes: routes,
	}
}

// routed is Calico's Pod: 32 bits, and a link-local gateway that is on link by a route of its own.
func routed() Config {
	nic := pod("10.244.1.5/32", nl.Route{Destination: netip.MustParsePrefix("169.254.1.1/32")})
	nic.Gateway4 = netip.MustParseAddr("169.254.1.1")
	return Plan(nic, api.NIC{}, Guest{DefaultRoute: "default"})
}

// second is a pod network whose guest has its default route elsewhere (NW-050): what the Pod reaches by its interface, it
// reaches still.
func second() Config {
	gateway := netip.MustParseAddr("10.244.1.1")
	nic := pod("10.244.1.5/24", nl.Route{Destination: netip.MustParsePrefix("10.96.0.0/12"), Gateway: gateway},
		nl.Route{Destination: netip.MustParsePrefix("10.244.0.0/16"), Gateway: gateway})
	nic.Gateway4, nic.OnLink = gateway, true
	return Plan(nic, api.NIC{}, Guest{DefaultRoute: "net1"})
}

// beside is the masqueraded pod network of a guest whose default route is elsewhere.
func beside() Config {
	nic := pod("10.0.2.2/24", nl.Route{Destination: netip.MustParsePrefix("10.244.1.0/24")},
		nl.Route{Destination: netip.MustParsePrefix("10.96.0.0/12"), Gateway: netip.MustParseAddr("10.244.1.1")},
		nl.Route{Destination: netip.MustParsePrefix("fd00:96::/112"), Gateway: netip.MustParseAddr("fd00:244::1")})
	nic.Binding, nic.Gateway4, nic.Server4 = string(api.BindingMasquerade), netip.MustParseAddr("10.0.2.1"), netip.Addr{}
	nic.Guest6, nic.LinkLocal = netip.MustParsePrefix("fd10:0:2::2/120"), netip.MustParseAddr("fe80::ff:fe00:0")
	return Plan(nic, api.NIC{}, Guest{
		DefaultRoute: "net1", Resolv: ParseResolv("nameserver 10.96.0.10\nnameserver 192.0.2.53\nnameserver fd00:53::1"),
	})
}

// install does with busybox' udhcpc what its usual script does (RFC 3442): where there are static routes, the router is ignored.
const install = `#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
[ -n "$staticroutes" ] || ip route add default via "$router" dev "$interface"
set -- $staticroutes
while [ $# -ge 2 ]; do
	if [ "$2" = 0.0.0.0 ]; then ip route add "$1" dev "$interface"; else ip route add "$1" via "$2" dev "$interface"; fi || exit 1
	shift 2
done
`

// TestRoutesOfTheGuest has a client install what it is told, and looks at the guest's kernel.
func TestRoutesOfTheGuest(t *testing.T) {
	for name, row := range map[string]struct {
		config, told string
		routes       []string // destination and gateway
	}{
		"routed Pod, gateway on link": {
			"routed", "staticroutes='169.254.1.1/32 0.0.0.0 0.0.0.0/0 169.254.1.1'",
			[]string{"0.0.0.0/0 169.254.1.1", "169.254.1.1/32 on link"},
		},
		"default route elsewhere": {
			"second", "staticroutes='10.96.0.0/12 10.244.1.1 10.244.0.0/16 10.244.1.1'",
			[]string{"10.96.0.0/12 10.244.1.1", "10.244.0.0/16 10.244.1.1", "10.244.1.0/24 on link"},
		},
		"default route elsewhere, masqueraded": {
			"beside", "staticroutes='10.244.1.0/24 10.0.2.1 10.96.0.0/12 10.0.2.1 192.0.2.53/32 10.0.2.1'",
			[]string{"10.244.1.0/24 10.0.2.1", "10.96.0.0/12 10.0.2.1", "192.0.2.53/32 10.0.2.1", "10.0.2.0/24 on link"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			n.serveAs(t, row.config)
			program, told := script(t)
			n.run(t, "busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-s", program, "-O", "staticroutes", "-O", "msstaticroutes")
			wantTold(t, told, row.told, "ms"+row.told)
			installer := filepath.Join(t.TempDir(), "install")
			must(t, os.WriteFile(installer, []byte(install), 0o755))
			n.run(t, "busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-s", installer, "-O", "staticroutes")
			n.enter(t, n.guest)
			h := handle(t)
			routes, err := h.Routes()
			must(t, err)
			have := map[string]bool{}
			for _, r := range routes {
				via := " on link"
				if r.Gateway.IsValid() {
					via = " " + r.Gateway.String()
				}
				if r.Destination.Addr().Is4() {
					have[r.Destination.String()+via] = true
				}
			}
			for _, want := range row.routes {
				if !have[want] {
					t.Errorf("the guest's kernel lacks %s; it has %v", want, have)
				}
			}
			if len(have) != len(row.routes) {
				t.Errorf("the guest's kernel has %v; want %v", have, row.routes)
			}
		})
	}
}

// TestRoutesByAdvertisement: a guest whose default route is elsewhere learns by router advertisement what is behind the Pod,
// and no default route.
func TestRoutesByAdvertisement(t *testing.T) {
	n := newNetwork(t)
	n.enter(t, n.guest)
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/eth0/accept_ra_rt_info_max_plen", []byte("128"), 0o644)) // networkd's own way takes all
	n.serveAs(t, "beside")
	n.enter(t, n.guest)
	h := handle(t)
	waitFor(t, "the routes of the advertisement", func() bool {
		routes, err := h.Routes()
		must(t, err)
		left := map[string]bool{"fd00:96::/112": true, "fd00:53::1/128": true}
		for _, r := range routes {
			if r.Gateway == netip.MustParseAddr("fe80::ff:fe00:0") {
				if r.Destination.Bits() == 0 {
					t.Fatal("the guest has a default route by the Pod")
				}
				delete(left, r.Destination.String())
			}
		}
		return len(left) == 0
	})
}

// TestDhclientRoutes: the other client says the routes in its own form, the prefix length first.
func TestDhclientRoutes(t *testing.T) {
	if _, err := exec.LookPath("dhclient"); err != nil {
		t.Skip("no dhclient; TestDhclient says so where it is promised")
	}
	n := newNetwork(t)
	n.serveAs(t, "routed")
	program, told := script(t)
	dir := t.TempDir()
	conf := filepath.Join(dir, "conf")
	must(t, os.WriteFile(conf, []byte("option rfc3442 code 121 = array of unsigned integer 8;\nrequest subnet-mask, routers, rfc3442;\n"), 0o600))
	wants := []string{"new_ip_address='10.244.1.5'", "new_subnet_mask='255.255.255.255'", "new_rfc3442='32 169 254 1 1 0 0 0 0 0 169 254 1 1'"}
	n.runUntil(t, told, strings.Split(wants[0], "=")[0], "dhclient", "-4", "-1", "-d", "-sf", program, "-cf", conf,
		"-lf", filepath.Join(dir, "leases"), "-pf", filepath.Join(dir, "pid"), "eth0")
	wantTold(t, told, wants...)
}
