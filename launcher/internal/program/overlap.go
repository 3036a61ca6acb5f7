package program

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/dhcp"
	"podvirt.dev/launcher/internal/nics"
)

// checkNameServers refuses a network between Pod and guest that hides a name server from the guest (NW-017). The CNI
// plugin has compared that network with the Pod's addresses and routes; the name servers are in the Pod's resolv.conf alone.
// The gateway is the Pod itself, where a sidecar may serve names.
func checkNameServers(vm api.Machine, found []nics.NIC, guest dhcp.Guest) error {
	var errs api.Errors
	for _, nic := range found {
		if nic.Binding != string(api.BindingMasquerade) {
			continue
		}
		for option, inside := range map[string]netip.Prefix{"v4-cidr": nic.Guest4, "v6-cidr": nic.Guest6} {
			if !inside.IsValid() {
				continue
			}
			for _, server := range dhcp.Plan(nic, options(vm, nic.Name), guest).DNS {
				if inside.Contains(server) && server != nic.Gateway4 && server != nic.Gateway6 {
					key := api.Prefix + "nic." + nic.Name
					errs = append(errs, api.Error{Key: key, Text: fmt.Sprintf("%s: %s=%s: %[3]s contains the DNS server %[4]s",
						key, option, inside.Masked(), server)})
				}
			}
		}
	}
	slices.SortFunc(errs, func(a, b api.Error) int { return strings.Compare(a.Text, b.Text) })
	return errs.Err()
}
