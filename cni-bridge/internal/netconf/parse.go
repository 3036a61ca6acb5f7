package netconf

import (
	"bytes"
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/cni-bridge/internal/fault"
)

// standard are the keys that every plugin gets; those under cni.dev/ are the specification's too.
func standard() []string {
	return []string{
		"cniVersion", "cniVersions", "name", "type", "capabilities", "runtimeConfig", "prevResult", "args", "dns", "ipam",
		"disableCheck", "disableGC",
	}
}

func common() []string {
	return []string{"mode", "macPrefix", "macSalt", "stateDir", "logFile", "logLevel", "lockTimeout"}
}

// ofMode are the keys of one mode beside those of all modes.
func ofMode(mode Mode) []string {
	switch mode {
	case ModePod:
		return []string{
			"owner", "defaultBinding", "secondaryBinding", "allowedBindings", "v4CIDR", "v6CIDR", "gatewayMAC", "reservedPorts", "networks",
			"maxNICs",
		}
	case ModeBridge:
		return []string{
			"bridge", "create", "uplink", "vlan", "vlanTrunk", "vlanProto", "preserveDefaultVlan", "mtu", "macspoofchk", "portIsolation",
			"hairpinMode", "promiscMode", "stp", "multicastSnooping", "mirrorTo", "disableContainerInterface",
		}
	case ModeMacvlan:
		return []string{"master", "submode", "mtu", "mac"}
	case ModeMacvtap:
		return []string{"deviceID", "mtu", "mac", "promiscMode"}
	case ModeSRIOV:
		return []string{
			"deviceID", "vlan", "vlanQoS", "vlanProto", "mac", "spoofchk", "trust", "linkState", "link_state", "minTxRate", "min_tx_rate",
			"maxTxRate", "max_tx_rate", "mtu",
		}
	default:
		return []string{"mac", "mtu", "allmulti", "promisc"}
	}
}

// Parse reads a configuration. The errors have the codes 2, 6 and 7 (network.md 2.9); with one, what could be read is
// returned nevertheless.
func Parse(data []byte) (Config, error) {
	c := defaults()
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(data, &keys); err != nil {
		return c, fault.New(fault.Decode, "the network configuration is not JSON: %v", err)
	}
	c.Raw = data
	d := decoder{keys: keys}
	d.text("cniVersion", &c.CNIVersion)
	d.text("name", &c.Name)
	d.text("stateDir", &c.StateDir) // first, DEL needs it whatever else is wrong
	if raw, ok := keys["prevResult"]; ok && !bytes.Equal(raw, []byte("null")) {
		c.Previous = raw
	}
	c.Mode = d.mode(c.Previous != nil)
	d.known(c.Mode)
	d.text("logFile", &c.LogFile)
	d.word("logLevel", &c.LogLevel, []string{"error", "warning", "info", "debug"})
	d.duration("lockTimeout", &c.LockTimeout)
	d.macPrefix("macPrefix", &c.MACPrefix)
	d.text("macSalt", &c.MACSalt)
	d.runtime(&c)
	switch {
	case c.Mode == ModePod:
		d.pod(&c.Pod)
	case c.Mode.IsLAN(), c.Mode == ModeTuning:
		d.lan(c.Mode, &c.LAN)
	}
	return c, d.err
}

// decoder reads keys one after the other and keeps the first error.
type decoder struct {
	keys map[string]json.RawMessage
	err  error
}

func (d *decoder) fail(code fault.Code, format string, args ...any) {
	if d.err == nil {
		d.err = fault.New(code, format, args...)
	}
}

// value decodes a key into out and says whether it is there and right.
func (d *decoder) value(key string, out any) bool {
	raw, ok := d.keys[key]
	if !ok {
		return false
	}
	if err := json.Unmarshal(raw, out); err != nil {
		d.fail(fault.Config, "%s %s: not the right type: %v", key, raw, err)
		return false
	}
	return true
}

func (d *decoder) text(key string, out *string) { d.value(key, out) }

func (d *decoder) word(key string, out *string, words []string) {
	if d.value(key, out) && !slices.Contains(words, *out) {
		d.fail(fault.Config, "%s %q: not one of %s%s", key, *out, strings.Join(words, ", "), Nearest(*out, words))
	}
}

func (d *decoder) duration(key string, out *time.Duration) {
	var text string
	if !d.value(key, &text) {
		return
	}
	parsed, err := time.ParseDuration(text)
	if err != nil || parsed <= 0 {
		d.fail(fault.Config, "%s %q: not a duration", key, text)
		return
	}
	*out = parsed
}

func (d *decoder) mode(chained bool) Mode {
	modes := []string{
		string(ModePod), string(ModeBridge), string(ModeMacvlan), string(ModeMacvtap), string(ModeSRIOV), string(ModeTuning),
	}
	var mode string
	if _, ok := d.keys["mode"]; ok {
		d.word("mode", &mode, modes)
		return Mode(mode)
	}
	has := func(key string) bool { _, ok := d.keys[key]; return ok }
	var called string
	d.text("type", &called)
	switch {
	case strings.HasSuffix(called, "tuning"): // a name of network.compat-names
		return ModeTuning
	case has("bridge"), has("uplink"):
		return ModeBridge
	case has("master"):
		return ModeMacvlan
	case has("deviceID"):
		return ModeSRIOV
	case chained:
		return ModePod
	}
	d.fail(fault.Config, "mode: nothing says what to do; set bridge, uplink, master or mode")
	return ""
}

func (d *decoder) known(mode Mode) {
	if d.err != nil {
		return
	}
	known := slices.Concat(common(), ofMode(mode))
	refused := []string{"isGateway", "isDefaultGateway", "forceAddress", "ipMasq", "ipMasqBackend", "enabledad"}
	var unknown []string
	for key := range d.keys {
		if !slices.Contains(known, key) && !slices.Contains(standard(), key) && !strings.HasPrefix(key, "cni.dev/") {
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	for _, key := range unknown {
		if mode == ModeBridge && slices.Contains(refused, key) {
			d.fail(fault.Unsupported, "%s=%s: not supported; use type bridge for routed networks", key, d.keys[key])
			return
		}
		d.fail(fault.Unsupported, "%s=%s: unknown key in mode %s%s", key, d.keys[key], mode, Nearest(key, known))
	}
}

func (d *decoder) runtime(c *Config) {
	var runtime map[string]json.RawMessage
	d.value("runtimeConfig", &runtime)
	if raw, ok := runtime[Annotations]; ok {
		if err := json.Unmarshal(raw, &c.Annotations); err != nil {
			d.fail(fault.Decode, "runtimeConfig %s: %v", Annotations, err)
		}
	}
	d.value("cni.dev/valid-attachments", &c.Valid)
}

func (d *decoder) pod(p *Pod) {
	var owner struct{ UID, GID *int }
	if d.value("owner", &owner) {
		if owner.UID != nil {
			p.Owner = api.Owner{UID: *owner.UID, GID: *owner.UID}
		}
		if owner.GID != nil {
			p.Owner.GID = *owner.GID
		}
		if p.Owner.UID <= 0 || p.Owner.GID <= 0 {
			d.fail(fault.Config, "owner.uid %d, owner.gid %d: root is not allowed", p.Owner.UID, p.Owner.GID)
		}
	}
	words := make([]string, 0, len(bindings()))
	for _, b := range bindings() {
		words = append(words, string(b))
	}
	d.word("defaultBinding", (*string)(&p.DefaultBinding), words)
	d.word("secondaryBinding", (*string)(&p.SecondaryBinding), words)
	if d.value("allowedBindings", &p.AllowedBindings) {
		for _, b := range p.AllowedBindings {
			if !slices.Contains(words, string(b)) {
				d.fail(fault.Config, "allowedBindings %q: not one of %s%s", b, strings.Join(words, ", "), Nearest(string(b), words))
			}
		}
	}
	d.prefix("v4CIDR", &p.V4CIDR, 30)
	d.prefix("v6CIDR", &p.V6CIDR, 126)
	d.mac("gatewayMAC", &p.GatewayMAC)
	d.ports("reservedPorts", &p.Reserved)
	if d.value("maxNICs", &p.MaxNICs) && (p.MaxNICs < 1 || p.MaxNICs > 64) {
		d.fail(fault.Config, "maxNICs %d: 1 to 64", p.MaxNICs)
	}
	var networks map[string]json.RawMessage
	if d.value("networks", &networks) && len(networks) > 0 {
		d.fail(fault.Config, "networks: not supported by this version")
	}
}

func (d *decoder) prefix(key string, out *netip.Prefix, most int) {
	var text string
	if !d.value(key, &text) {
		return
	}
	parsed, err := netip.ParsePrefix(text)
	switch {
	case err != nil || parsed.Addr().Is4() != (most == 30):
		d.fail(fault.Config, "%s %q: not a prefix; example: %s", key, text, *out)
	case parsed.Bits() > most:
		d.fail(fault.Config, "%s %q: too small; at most /%d", key, text, most)
	default:
		*out = parsed.Masked()
	}
}

func (d *decoder) mac(key string, out *net.HardwareAddr) {
	var text string
	if !d.value(key, &text) {
		return
	}
	parsed, err := net.ParseMAC(text)
	switch {
	case err != nil || len(parsed) != 6:
		d.fail(fault.Config, "%s %q: not a MAC", key, text)
	case parsed[0]&1 != 0:
		d.fail(fault.Config, "%s %q: multicast", key, text)
	default:
		*out = parsed
	}
}

func (d *decoder) macPrefix(key string, out *net.HardwareAddr) {
	var text string
	if !d.value(key, &text) {
		return
	}
	var prefix net.HardwareAddr
	for octet := range strings.SplitSeq(text, ":") {
		value, err := strconv.ParseUint(octet, 16, 8)
		if err != nil || len(octet) != 2 {
			d.fail(fault.Config, "%s %q: not 1 to 3 octets; example: 02", key, text)
			return
		}
		prefix = append(prefix, byte(value))
	}
	switch {
	case len(prefix) > 3:
		d.fail(fault.Config, "%s %q: not 1 to 3 octets; example: 02", key, text)
	case prefix[0]&1 != 0:
		d.fail(fault.Config, "%s %q: multicast", key, text)
	default:
		*out = prefix
	}
}

func (d *decoder) ports(key string, out *[]api.PortRange) {
	var texts []string
	if !d.value(key, &texts) {
		return
	}
	ranges := make([]api.PortRange, 0, len(texts))
	for _, text := range texts {
		ports, protocol, _ := strings.Cut(text, "/")
		first, last, isRange := strings.Cut(ports, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || from == 0 || from > to || protocol != "tcp" {
			d.fail(fault.Config, "%s %q: not a range of ports; example: 49152-49155/tcp", key, text)
			return
		}
		ranges = append(ranges, api.PortRange{First: int(from), Last: int(to), Protocol: protocol})
	}
	if len(ranges) == 0 {
		d.fail(fault.Config, "%s: empty; the launcher needs its ports", key)
		return
	}
	*out = ranges
}

// Nearest returns "; nearest: WORD" for a word that is nearly one of words, or nothing.
func Nearest(word string, words []string) string {
	if near := api.Nearest(word, words); near != "" {
		return "; nearest: " + near
	}
	return ""
}
