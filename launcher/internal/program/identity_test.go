package program

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/domain"
)

// TestFirmware: which files of OVMF a VM gets, and where its variables are (VM-051, VM-053).
func TestFirmware(t *testing.T) {
	no := false
	const dir = "/usr/share/OVMF/"
	for _, row := range []struct {
		name     string
		firmware api.Firmware
		dir      string
		want     domain.Firmware
	}{
		{"BIOS", api.Firmware{Kind: api.FirmwareBIOS}, "/vm/state", domain.Firmware{}},
		{"UEFI", api.Firmware{Kind: api.FirmwareUEFI}, "/vm/state",
			domain.Firmware{Code: dir + "OVMF_CODE_4M.fd", Template: dir + "OVMF_VARS_4M.fd", Vars: "/vm/state/nvram.fd"}},
		{"nothing kept", api.Firmware{Kind: api.FirmwareUEFI}, "",
			domain.Firmware{Code: dir + "OVMF_CODE_4M.fd", Template: dir + "OVMF_VARS_4M.fd", Vars: "/run/podvirt/nvram.fd"}},
		{"Secure Boot", api.Firmware{Kind: api.FirmwareUEFI, SecureBoot: true}, "/vm/state",
			domain.Firmware{Code: dir + "OVMF_CODE_4M.secboot.fd", Template: dir + "OVMF_VARS_4M.ms.fd", Vars: "/vm/state/nvram.fd"}},
		{"keys of one's own", api.Firmware{Kind: api.FirmwareUEFI, SecureBoot: true, EnrolledKeys: &no}, "/vm/state",
			domain.Firmware{Code: dir + "OVMF_CODE_4M.secboot.fd", Template: dir + "OVMF_VARS_4M.fd", Vars: "/vm/state/nvram.fd"}},
	} {
		vm := api.Machine{VM: api.VM{Firmware: row.firmware}}
		if diff := cmp.Diff(row.want, state{dir: row.dir}.firmware(vm)); diff != "" {
			t.Errorf("%s (-want,+got):\n%s", row.name, diff)
		}
	}
}
