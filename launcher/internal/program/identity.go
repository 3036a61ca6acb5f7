package program

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/internal/atomicfile"
	"podvirt.dev/launcher/internal/domain"
)

// Files in /vm/state (vm.md 2.4).
const (
	stateUUID    = "uuid"
	stateMachine = "machine"
	stateLayout  = "layout"
	stateNVRAM   = "nvram.fd"
	stateTPM     = "tpm"
)

// state keeps what makes a VM the same over its starts. dir is empty where /vm/state is not mounted: then everything is
// a function of the VM's name, and what is not, is new at every start.
type state struct{ dir string }

func stateOf(vm api.Machine) state {
	if vm.State {
		return state{dir: api.PathState}
	}
	return state{}
}

// uuid is the SMBIOS system UUID: what the user says, else what was, else a function of namespace and name (VM-064).
func (s state) uuid(vm api.Machine, given bool) (uuid.UUID, error) {
	kept, err := s.read(stateUUID)
	if err != nil {
		return uuid.UUID{}, err
	}
	if kept != "" && !given {
		id, err := uuid.Parse(kept)
		if err != nil {
			return uuid.UUID{}, fmt.Errorf("%s: not a UUID", filepath.Join(s.dir, stateUUID))
		}
		return id, nil
	}
	id, err := uuid.Parse(vm.UUID)
	if err != nil || kept == id.String() {
		return id, err
	}
	return id, s.write(stateUUID, []byte(id.String()+"\n"))
}

// machine is the versioned machine type of an earlier start, as long as the user names no other (VM-050).
func (s state) machine(vm api.Machine) (string, error) {
	kept, err := s.read(stateMachine)
	if err != nil || kept == "" {
		return vm.Machine, err
	}
	if vm.Machine == "" || vm.Machine == family(kept) {
		return kept, nil
	}
	return vm.Machine, nil
}

// keepMachine remembers the versioned machine type. Where there is nothing to remember it in, the user is warned that
// another image may choose another one (VM-050).
func (s *starter) keepMachine(logger klog.Logger, machine string) error {
	if s.vm.State {
		return stateOf(s.vm).write(stateMachine, []byte(machine+"\n"))
	}
	if s.vm.Machine == machine {
		return nil
	}
	s.warn(logger, fmt.Sprintf("%s: this image chose %s, another one may choose otherwise; name it, or mount %s", api.KeyMachine, machine, api.PathState))
	return nil
}

// family is the word for the newest machine type of a kind: q35 of pc-q35-10.0, pc of pc-i440fx-10.0.
func family(machine string) string {
	switch {
	case strings.HasPrefix(machine, "pc-q35-"):
		return "q35"
	case strings.HasPrefix(machine, "pc-i440fx-"):
		return "pc"
	default:
		return strings.TrimRight(machine, "0123456789.-")
	}
}

// layout gives every device its PCI address and keeps it (VM-069).
func (s state) layout(vm api.Machine) (domain.Layout, error) {
	text, err := s.read(stateLayout)
	if err != nil {
		return nil, err
	}
	var known domain.Layout
	if text != "" {
		if err := json.Unmarshal([]byte(text), &known); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(s.dir, stateLayout), err)
		}
	}
	layout, err := domain.NewLayout(vm, known)
	if err != nil {
		return nil, err
	}
	// A device that is away for one start finds its place again.
	all := domain.Layout{}
	maps.Copy(all, known)
	maps.Copy(all, layout)
	raw, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	return layout, s.write(stateLayout, raw)
}

// firmware finds the files of UEFI (VM-051).
func (s state) firmware(vm api.Machine) domain.Firmware {
	if vm.Firmware.Kind != api.FirmwareUEFI {
		return domain.Firmware{}
	}
	fw := domain.Firmware{
		Code: ovmfDir + "/OVMF_CODE_4M.fd", Template: ovmfDir + "/OVMF_VARS_4M.fd",
		Vars: filepath.Join(api.PathRun, stateNVRAM),
	}
	if vm.Firmware.SecureBoot {
		fw.Code = ovmfDir + "/OVMF_CODE_4M.secboot.fd"
		if keys := vm.Firmware.EnrolledKeys; keys == nil || *keys {
			fw.Template = ovmfDir + "/OVMF_VARS_4M.ms.fd"
		}
	}
	if s.dir != "" {
		fw.Vars = filepath.Join(s.dir, stateNVRAM)
	}
	return fw
}

// tpm is the directory of what the TPM holds. What is in memory ends with the Pod (VM-054). A directory with a file in it is one
// that libvirt leaves to swtpm, which makes a new TPM by itself: libvirt's own way, swtpm_setup, writes to /tmp, and a VM Pod has
// none that can be written.
func (s state) tpm(vm api.Machine) (string, error) {
	if !vm.TPM.On() {
		return "", nil
	}
	dir := filepath.Join(s.dir, stateTPM)
	if s.dir == "" {
		dir = filepath.Join(api.PathRun, stateTPM)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return dir, atomicfile.Write(filepath.Join(dir, "version"), []byte(vm.TPM.Version+"\n"), 0o600)
}

func (s state) read(name string) (string, error) {
	if s.dir == "" {
		return "", nil
	}
	raw, err := os.ReadFile(filepath.Join(s.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(raw)), err
}

// write keeps a file; without /vm/state it does nothing.
func (s state) write(name string, content []byte) error {
	if s.dir == "" {
		return nil
	}
	return atomicfile.Write(filepath.Join(s.dir, name), content, 0o600)
}
