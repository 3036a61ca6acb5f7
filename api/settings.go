package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Setting is one key of ConfigMap podvirt-config (operations.md 2.2).
type Setting struct {
	Key     string // "device.NAME" and the like: one key per name
	Group   string
	Value   Value
	Commas  bool   // a list, divided by commas; Value holds for each item
	Lines   bool   // may hold several lines (YAML, JSON); its program reads it
	Default string // for people
	Meaning string
	InForce string // live, new Pods, …
}

// Settings returns a copy of all keys of podvirt-config, in the order of the reference page.
func Settings() []Setting { return slices.Clone(settings().rows) }

// settingTable is the list of settings with its index.
type settingTable struct {
	rows     []Setting
	byKey    map[string]*Setting
	prefixes map[string]*Setting // of keys with a free name: "device."
	names    []string
}

//nolint:gochecknoglobals // built once, never written again
var settings = sync.OnceValue(func() *settingTable {
	t := &settingTable{byKey: map[string]*Setting{}, prefixes: map[string]*Setting{}}
	for _, group := range [][]Setting{
		podSettings(), nodeSettings(), deviceSettings(), storageSettings(), networkSettings(), migrationSettings(), outwardSettings(),
	} {
		t.rows = append(t.rows, group...)
	}
	for i := range t.rows {
		s := &t.rows[i]
		if prefix, free := strings.CutSuffix(s.Key, "NAME"); free {
			t.prefixes[prefix] = s
			continue
		}
		t.byKey[s.Key] = s
		t.names = append(t.names, s.Key)
	}
	return t
})

// lookup finds the row of a key; the longest prefix wins.
func (t *settingTable) lookup(key string) *Setting {
	if s := t.byKey[key]; s != nil {
		return s
	}
	var best *Setting
	longest := 0
	for prefix, s := range t.prefixes {
		if name, ok := strings.CutPrefix(key, prefix); ok && name != "" && len(prefix) > longest {
			best, longest = s, len(prefix)
		}
	}
	return best
}

// ParseConfig reads the data of ConfigMap podvirt-config, strictly: an unknown key and a bad value are errors, all of
// them are returned at once, and with any error the Config is not to be applied.
func ParseConfig(data map[string]string) (Config, Errors) {
	var errs Errors
	good := make(map[string]string, len(data))
	for key, value := range data {
		s := settings().lookup(key)
		if s == nil {
			errs = append(errs, Error{Key: key, Text: "data." + key + ": unknown key" + nearestSuffix(key, settings().names)})
			continue
		}
		wrong := s.check(value)
		for _, text := range wrong {
			shown := quote(value)
			if s.Lines {
				shown = `"…"`
			}
			errs = append(errs, Error{Key: key, Text: fmt.Sprintf("data.%s: %s: %s", key, shown, text)})
		}
		if len(wrong) == 0 {
			good[key] = value
		}
	}
	config := newConfig(good)
	return config, append(errs, checkConfig(config, good)...).sorted()
}

// check returns what is wrong with the value of a setting.
func (s *Setting) check(value string) []string {
	switch {
	case s.Lines:
		return some(s.Value.unsupported(value))
	case strings.ContainsFunc(value, isControl):
		return some("control characters are not allowed")
	case !s.Commas:
		return some(s.Value.Check(value))
	case strings.TrimSpace(value) == "":
		return nil
	}
	var wrong []string
	for item := range strings.SplitSeq(value, ",") {
		item = strings.TrimSpace(item)
		switch text := s.Value.Check(item); {
		case text == "":
		case item == value:
			wrong = append(wrong, text)
		default:
			wrong = append(wrong, quote(item)+" is "+text)
		}
	}
	return wrong
}

func some(text string) []string {
	if text == "" {
		return nil
	}
	return []string{text}
}

// items returns the items of a list setting.
func items(value string) []string {
	var list []string
	for item := range strings.SplitSeq(value, ",") {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list
}

// newConfig gives good values their types.
func newConfig(data map[string]string) Config {
	number := func(key string) int { return int(toInt(data[key])) }
	c := Config{
		Visible: true, Emulation: data["emulation"], ConsoleDefault: ConsoleMode(data["console.default"]),
		MachineDefault: data["machine.default"], LauncherImage: data["launcher.image"], RuntimeClass: data["launcher.runtime-class"],
		PortBase: number("launcher.port-base"), CPUDefaultModel: data["cpu.default-model"],
		CPUObsoleteModels: items(data["cpu.obsolete-models"]), CPUMinModel: data["cpu.min-model"], CPULabels: data["cpu.labels"],
		CPUAllocation: number("cpu.allocation-ratio"),
		Memory: MemoryConfig{
			OvercommitPercent: number("memory.overcommit-percent"),
			OverheadTenths:    int(toInt(strings.Replace(data["memory.overhead-factor"], ".", "", 1))),
			AutoLimits:        toBool(data["memory.auto-limits"]), FreePageReporting: toBool(data["memory.free-page-reporting"]),
			KSMNodes: data["memory.ksm-nodes"], KSMFreePercent: number("memory.ksm-free-percent"),
		},
		Verbosity: map[string]int{},
		Network: NetworkConfig{
			DefaultBinding: Binding(data["network.default-binding"]), SecondaryBinding: Binding(data["network.secondary-binding"]),
			V4CIDR: data["network.v4-cidr"], V6CIDR: data["network.v6-cidr"], SpoofCheck: data["network.spoof-check"],
			MACPrefix: data["network.mac-prefix"], MACSalt: data["network.mac-salt"], MaxNICs: number("network.max-nics"),
			CompatNames:   items(data["network.compat-names"]),
			InstallMethod: data["network.install-method"], ConfDir: data["network.conf-dir"], BinDir: data["network.bin-dir"],
		},
		DeviceCapacity: map[string]int{}, StartupTaint: data["nodes.startup-taint"] == "on",
		MinWrite: toDuration(data["nodes.min-write-interval"]), VsockCIDBase: uint32(number("devices.vsock-cid-base")),
		MdevOff: data["devices.mdev"] == "off", UnsafeIRQs: data["devices.unsafe-interrupts"] == "allow",
		StoragePools: data["storage.pools"], DefaultClass: data["storage.default-class"],
		Import: ImportConfig{
			MaxPerNode: number("storage.import.max-per-node"), MaxPerNamespace: number("storage.import.max-per-namespace"),
			Memory: toBytes(data["storage.import.memory"]), Bandwidth: toBytes(strings.TrimSuffix(data["storage.import.bandwidth"], "/s")),
			Insecure: items(data["storage.import.insecure-registries"]), Allow: items(data["storage.import.allow"]), CA: data["storage.import.ca"],
			Deny: items(data["storage.import.deny"]), NoLandlock: data["storage.import.require-landlock"] == "off",
		},
	}
	for _, binding := range items(data["network.allowed-bindings"]) {
		c.Network.AllowedBindings = append(c.Network.AllowedBindings, Binding(binding))
	}
	if word := data["memory.guest-overhead"]; word != "" {
		counted := word == "counted"
		c.Memory.OverheadCounted = &counted
	}
	for key := range data {
		if name, ok := strings.CutPrefix(key, "verbosity."); ok {
			c.Verbosity[name] = number(key)
		}
		if name, ok := strings.CutPrefix(key, "devices.capacity."); ok {
			c.DeviceCapacity[name] = number(key)
		}
	}
	return c
}

// checkConfig applies the rules between settings and those that a grammar does not hold.
func checkConfig(c Config, data map[string]string) Errors {
	var errs Errors
	wrong := func(key, text string) {
		errs = append(errs, Error{Key: key, Text: fmt.Sprintf("data.%s: %s: %s", key, quote(data[key]), text)})
	}
	allowed := c.Network.AllowedBindings
	if len(allowed) == 0 {
		allowed = []Binding{BindingMasquerade, BindingWire, BindingBridge, BindingMacvtap, BindingSRIOV, BindingVhostUser, BindingVDPA, BindingNone}
	}
	for key, binding := range map[string]Binding{
		"network.default-binding": c.Network.DefaultBinding, "network.secondary-binding": c.Network.SecondaryBinding,
	} {
		if binding != "" && !slices.Contains(allowed, binding) {
			wrong(key, "not among network.allowed-bindings")
		}
	}
	for key, smallest := range map[string]int64{"network.v4-cidr": 30, "network.v6-cidr": 126} {
		_, length, _ := strings.Cut(data[key], "/")
		if n := toInt(length); data[key] != "" && n > smallest {
			wrong(key, fmt.Sprintf("/%d has no room for gateway and guest", n))
		}
	}
	for _, model := range c.CPUObsoleteModels {
		if name, off := strings.CutPrefix(model, "-"); off && !slices.Contains(strings.Fields(obsoleteModels), name) {
			wrong("cpu.obsolete-models", "-"+name+": not on the built-in list")
		}
	}
	checkImportTargets(c.Import, wrong)
	if strings.HasPrefix(c.Network.MACPrefix, "01") || len(c.Network.MACPrefix) > 1 && strings.Contains("13579bdfBDF", c.Network.MACPrefix[1:2]) {
		wrong("network.mac-prefix", "multicast")
	}
	return errs
}

func checkImportTargets(c ImportConfig, wrong func(key, text string)) {
	for key, targets := range map[string][]string{"storage.import.allow": c.Allow, "storage.import.deny": c.Deny} {
		for _, target := range targets {
			if _, err := netip.ParsePrefix(target); err != nil && strings.Contains(target, "/") {
				wrong(key, quote(target)+" is neither CIDR nor host pattern")
			}
		}
	}
}
