package program

import (
	"net/netip"
	"testing"

	"podvirt.dev/api"
	"podvirt.dev/internal/nicalias"
	"podvirt.dev/launcher/internal/dhcp"
	"podvirt.dev/launcher/internal/nics"
)

func TestNameServersBehindTheGuestNetwork(t *testing.T) {
	nic := func(binding string) []nics.NIC {
		return []nics.NIC{{
			NIC: nicalias.NIC{
				Name: "default", Interface: "eth0", Binding: binding,
				Guest4: netip.MustParsePrefix("10.0.2.2/24"), Guest6: netip.MustParsePrefix("fd10:0:2::2/120"),
			},
			Gateway4: netip.MustParseAddr("10.0.2.1"), Gateway6: netip.MustParseAddr("fd10:0:2::1"),
		}}
	}
	const (
		hidden4 = "podvirt.dev/nic.default: v4-cidr=10.0.2.0/24: 10.0.2.0/24 contains the DNS server 10.0.2.10"
		hidden6 = "podvirt.dev/nic.default: v6-cidr=fd10:0:2::/120: fd10:0:2::/120 contains the DNS server fd10:0:2::a"
	)
	for name, row := range map[string]struct {
		binding, resolv string
		own             []string // dhcp-dns
		want            string
	}{
		"elsewhere":           {"masquerade", "nameserver 10.96.0.10\nnameserver fd00::10", nil, ""},
		"hidden":              {"masquerade", "nameserver 10.0.2.10", nil, hidden4},
		"hidden, both":        {"masquerade", "nameserver fd10:0:2::a\nnameserver 10.0.2.10", nil, hidden4 + "\n" + hidden6},
		"a sidecar":           {"masquerade", "nameserver 10.96.0.10", []string{"10.0.2.1"}, ""},
		"the guest has other": {"masquerade", "nameserver 10.0.2.10", []string{"192.0.2.53"}, ""},
		"its own are hidden":  {"masquerade", "nameserver 192.0.2.53", []string{"10.0.2.10"}, hidden4},
		"no network between":  {"wire", "nameserver 10.0.2.10", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			vm := api.Machine{VM: api.VM{NICs: []api.NIC{{Name: "default", DHCPDNS: row.own}}}}
			got := ""
			if err := checkNameServers(vm, nic(row.binding), dhcp.Guest{Resolv: dhcp.ParseResolv(row.resolv)}); err != nil {
				got = err.Error()
				outcome := explain("web")(err)
				if outcome.Reason != api.ReasonBadConfig {
					t.Errorf("the VM ends with %s; want BadConfig", outcome.Reason)
				}
			}
			if got != row.want {
				t.Errorf("%q; want %q", got, row.want)
			}
		})
	}
}
