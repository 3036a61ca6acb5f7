package api

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseConfig(t *testing.T) {
	got, errs := ParseConfig(map[string]string{
		"emulation": "allow", "console.default": "log", "cpu.obsolete-models": "Haswell, -Conroe", "cpu.allocation-ratio": "4",
		"memory.overhead-factor": "1.2", "memory.guest-overhead": "not-counted", "network.allowed-bindings": "masquerade,none",
		"devices.capacity.kvm": "10", "devices.capacity.kvm.node.n1": "0", "storage.pools": "- {name: a, path: /var/lib/podvirt/a}\n",
		"verbosity.launcher": "5", "storage.import.allow": "10.96.0.10/32, *.mirror.lab,fd00::/8", "storage.import.max-per-node": "2",
		"storage.import.memory": "128Mi", "storage.import.require-landlock": "off", "storage.import.insecure-registries": "registry.lab:5000",
		"storage.import.ca": "lab-ca",
	})
	if err := errs.Err(); err != nil {
		t.Fatal(err)
	}
	no := false
	want := Config{
		Visible: true, Emulation: "allow", ConsoleDefault: ConsoleLog, CPUObsoleteModels: []string{"Haswell", "-Conroe"}, CPUAllocation: 4,
		Memory:    MemoryConfig{OverheadTenths: 12, OverheadCounted: &no},
		Verbosity: map[string]int{"launcher": 5}, Network: NetworkConfig{AllowedBindings: []Binding{BindingMasquerade, BindingNone}},
		DeviceCapacity: map[string]int{"kvm": 10, "kvm.node.n1": 0}, StoragePools: "- {name: a, path: /var/lib/podvirt/a}\n",
		Import: ImportConfig{
			MaxPerNode: 2, Memory: 128 << 20, Insecure: []string{"registry.lab:5000"}, NoLandlock: true, CA: "lab-ca",
			Allow: []string{"10.96.0.10/32", "*.mirror.lab", "fd00::/8"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Config (-want,+got):\n%s", diff)
	}
	for model, obsolete := range map[string]bool{"Conroe": false, "pentium3-v1": true, "Haswell-v2": true, "EPYC": false, "qemu64": true} {
		if got.Obsolete(model) != obsolete {
			t.Errorf("Obsolete(%s) = %v", model, !obsolete)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	_, errs := ParseConfig(map[string]string{
		"migration.bandwdth": "1", "emulation": "yes", "cpu.allocation-ratio": "0", "nodes.min-write-interval": "10ms",
		"network.default-binding": "masq", "network.v4-cidr": "10.0.2.0/31", "cpu.obsolete-models": "-Haswell",
		"rebalance": "on", "network.mac-prefix": "01", "tpyo": "x", "storage.import.deny": "10.0.0/8", "storage.import.allow": "10.0.0.0/33",
	})
	want := []string{
		`data.cpu.allocation-ratio: "0": 1 to 1000`,
		`data.cpu.obsolete-models: "-Haswell": -Haswell: not on the built-in list`,
		`data.emulation: "yes": not one of forbid, allow`,
		`data.migration.bandwdth: unknown key; nearest: migration.bandwidth`,
		`data.network.default-binding: "masq": not one of masquerade, bridge, wire, passt, macvtap, sriov; nearest: masquerade`,
		`data.network.mac-prefix: "01": multicast`,
		`data.network.v4-cidr: "10.0.2.0/31": /31 has no room for gateway and guest`,
		`data.nodes.min-write-interval: "10ms": at least 1s`,
		`data.rebalance: "on": not supported by this version`,
		`data.storage.import.allow: "10.0.0.0/33": neither CIDR nor host pattern`,
		`data.storage.import.deny: "10.0.0/8": neither CIDR nor host pattern`,
		`data.tpyo: unknown key`,
	}
	var got []string
	for _, err := range errs {
		got = append(got, err.Text)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors (-want,+got):\n%s", diff)
	}
}
