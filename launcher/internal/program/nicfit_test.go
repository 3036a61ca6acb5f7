package program

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/api"
	"podvirt.dev/internal/nicalias"
	"podvirt.dev/launcher/internal/nics"
)

func TestNICsDoNotFit(t *testing.T) {
	found := []nics.NIC{
		{NIC: nicalias.NIC{Name: "default", Interface: "eth0"}, MTU: 1450}, {NIC: nicalias.NIC{Name: "net1", Interface: "net1"}, MTU: 1500},
	}
	dir := t.TempDir()
	tun := filepath.Join(dir, "tun")
	here := func(name string, mtu int) api.Machine {
		return api.Machine{VM: api.VM{NICs: []api.NIC{{Name: name, MTU: mtu}}}}
	}
	for _, row := range []struct {
		name string
		err  error
		want string
	}{
		{"no device", checkTun(found, tun), "NodeLacks: no " + tun + " in this container: request podvirt.dev/tun: 1"},
		{"larger frames than the Pod's", checkMTU(here("net1", 9000), found), "BadConfig: podvirt.dev/nic.net1: mtu=9000: above the 1500 of net1"},
		{"the Pod's own MTU", checkMTU(here("default", 1450), found), ""},
		{"a NIC that is not there", checkMTU(here("net2", 9000), found), ""},
		{"no device and no NIC", checkTun(nil, tun), ""},
	} {
		got := ""
		if row.err != nil {
			outcome := explain("web")(row.err)
			got = outcome.Message()
		}
		if got != row.want {
			t.Errorf("%s: %q; want %q", row.name, got, row.want)
		}
	}
	if err := errors.Join(os.WriteFile(tun, nil, 0o600), checkTun(found, tun)); err != nil {
		t.Error(err)
	}
}

func TestUntoldAddresses(t *testing.T) {
	found := []nics.NIC{
		{NIC: nicalias.NIC{Name: "default", Interface: "eth0", Binding: "masquerade", Guest4: netip.MustParsePrefix("10.0.2.2/24")}},
		{NIC: nicalias.NIC{Name: "net1", Interface: "net1", Binding: "wire", Guest4: netip.MustParsePrefix("198.51.100.7/24")}},
		{NIC: nicalias.NIC{Name: "net2", Interface: "net2", Binding: "bridge", Guest4: netip.MustParsePrefix("198.51.100.8/24")}},
		{NIC: nicalias.NIC{Name: "net3", Interface: "net3", Binding: "wire"}},
	}
	var vm api.Machine
	for _, name := range []string{"default", "net1", "net3"} {
		vm.NICs = append(vm.NICs, api.NIC{Name: name, DHCP: "off"})
	}
	want := []string{"podvirt.dev/nic.net1: dhcp=off: the guest is not told that it has 198.51.100.7/24, the address of net1"}
	if diff := cmp.Diff(want, untold(vm, found)); diff != "" {
		t.Errorf("(-want,+got)\n%s", diff)
	}
}
