package launcher

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"podvirt.dev/api"
)

// askQEMU takes the facts and then has QEMU itself say what it knows, in one container.
const askQEMU = `set -e
launcher node-facts --virt-type tcg --only cpu --timeout 60s
qemu-system-x86_64 -machine help | sed -n 's/^\([a-z0-9.-]*\) .*/\1/p' | grep -v '^Supported' | tr '\n' ' '
echo
printf '%s\n' '{"execute":"qmp_capabilities"}' '{"execute":"query-cpu-definitions"}' '{"execute":"quit"}' |
  qemu-system-x86_64 -machine none -accel tcg -nodefaults -display none -qmp stdio
printf '%s\n' '{"execute":"qmp_capabilities"}' '{"execute":"qom-list-types","arguments":{"implements":"pci-device"}}' '{"execute":"quit"}' |
  qemu-system-x86_64 -machine none -accel tcg -nodefaults -display none -qmp stdio | tr '{' '\n' | sed -n 's/.*"name": "\([^"]*\)".*/device \1/p'
`

// TestFactsAreQEMUs compares the models and machine types of the facts with what QEMU says without libvirt in between: a
// model is usable where QEMU lacks none of its features (SC-001, SC-009).
func TestFactsAreQEMUs(t *testing.T) {
	p := newPod(t, nil)
	p.spec.Argv = []string{"/usr/bin/reaper", "/bin/sh", "-c", askQEMU}
	v := p.start()
	if code, _ := v.wait(); code != 0 {
		t.Fatalf("exit %d: %s", code, v.log)
	}
	lines := strings.Split(strings.TrimSpace(v.out.String()), "\n")
	facts, err := api.DecodeCPUFacts(lines[0])
	if err != nil {
		t.Fatal(err)
	}
	offered := strings.Fields(lines[1])
	for _, machine := range facts.Machines {
		if !slices.Contains(offered, machine) {
			t.Errorf("machine %s is not QEMU's", machine)
		}
	}
	for _, machine := range offered {
		versioned := strings.HasPrefix(machine, "pc-") || machine == "microvm"
		if versioned && !slices.Contains(facts.Machines, machine) {
			t.Errorf("machine %s of QEMU is missing", machine)
		}
	}
	checkNICModels(t, facts, lines)
	usable := usableModels(t, lines[2:])
	for _, model := range facts.Models {
		if ok, known := usable[model]; !ok {
			t.Errorf("model %s: known to QEMU: %v, usable: %v", model, known, ok)
		}
	}
	for model, ok := range usable {
		if ok && !slices.Contains([]string{"base", "max"}, model) && !slices.Contains(facts.Models, model) {
			t.Errorf("model %s can be used and is missing", model)
		}
	}
}

// checkNICModels looks for every NIC model of network.md 2.2 among QEMU's devices (NW-005).
func checkNICModels(t *testing.T, facts api.CPUFacts, lines []string) {
	t.Helper()
	for _, model := range []string{"e1000", "e1000e", "igb", "rtl8139", "vmxnet3", "ne2k_pci", "pcnet", "virtio-net-pci"} {
		name := strings.TrimSuffix(model, "-net-pci")
		if has := slices.Contains(lines, "device "+model); has != slices.Contains(facts.NICs, name) {
			t.Errorf("QEMU has the NIC model %s: %t; the facts have %s", name, has, facts.NICs)
		}
	}
}

// usableModels reads the answer to query-cpu-definitions.
func usableModels(t *testing.T, lines []string) map[string]bool {
	t.Helper()
	usable := map[string]bool{}
	for _, line := range lines {
		var answer struct {
			Return json.RawMessage `json:"return"`
		}
		var models []struct {
			Name    string   `json:"name"`
			Lacking []string `json:"unavailable-features"`
		}
		if json.Unmarshal([]byte(line), &answer) != nil || json.Unmarshal(answer.Return, &models) != nil {
			continue // the greeting, and answers to other questions
		}
		for _, m := range models {
			usable[m.Name] = len(m.Lacking) == 0
		}
	}
	if len(usable) < 50 {
		t.Fatalf("QEMU knows %d models:\n%s", len(usable), strings.Join(lines, "\n"))
	}
	return usable
}
