package seed

import (
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v3"
)

// NIC is what the network configuration of the guest needs of one NIC.
type NIC struct {
	Name string // of podvirt.dev/nic.NAME
	MAC  string // lower case, with colons
	DHCP bool   // its addresses come by DHCP and router advertisement
	// Static addresses, gateways and DNS, where they do not.
	Addresses []netip.Prefix
	Gateways  []netip.Addr
	DNS       []netip.Addr
	Search    []string
}

// networkConfig writes network-config where a NIC has addresses that no DHCP tells; the user's own file wins
// (VM-150). In what the user wrote only MAC addresses that no NIC has are noticed.
func (b *builder) networkConfig(nics []NIC) {
	if content, given := b.files[NetworkConfig]; given {
		b.checkNetworkConfig(content, nics)
		return
	}
	static := false
	for _, nic := range nics {
		static = static || !nic.DHCP && len(nic.Addresses) > 0
	}
	if !static {
		return // cloud-init's own fallback asks for DHCP on the first NIC
	}
	ethernets := &yaml.Node{Kind: yaml.MappingNode}
	for _, nic := range nics {
		ethernets.Content = append(ethernets.Content, scalar(nic.Name), ethernet(nic))
	}
	b.files[NetworkConfig] = encode(mapping("version", &yaml.Node{Kind: yaml.ScalarNode, Value: "2"}, "ethernets", ethernets))
}

// ethernet is one NIC in version 2 of cloud-init's network configuration, matched by its MAC.
func ethernet(nic NIC) *yaml.Node {
	e := mapping("match", mapping("macaddress", &yaml.Node{Kind: yaml.ScalarNode, Value: nic.MAC, Style: yaml.DoubleQuotedStyle}))
	add := func(key string, value *yaml.Node) { e.Content = append(e.Content, scalar(key), value) }
	if nic.DHCP {
		add("dhcp4", scalar("true"))
		add("dhcp6", scalar("true"))
		return e
	}
	add("addresses", texts(nic.Addresses))
	if len(nic.Gateways) > 0 {
		routes := &yaml.Node{Kind: yaml.SequenceNode}
		for _, gateway := range nic.Gateways {
			routes.Content = append(routes.Content, mapping("to", scalar(anyDestination(gateway)), "via", text(gateway.String())))
		}
		add("routes", routes)
	}
	if len(nic.DNS) > 0 || len(nic.Search) > 0 {
		search := &yaml.Node{Kind: yaml.SequenceNode}
		for _, domain := range nic.Search {
			search.Content = append(search.Content, text(domain))
		}
		add("nameservers", mapping("addresses", texts(nic.DNS), "search", search))
	}
	return e
}

func anyDestination(gateway netip.Addr) string {
	if gateway.Is4() {
		return "0.0.0.0/0"
	}
	return "::/0"
}

func text(value string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Value: value, Style: yaml.DoubleQuotedStyle}
}

func texts[T interface{ String() string }](values []T) *yaml.Node {
	list := &yaml.Node{Kind: yaml.SequenceNode}
	for _, v := range values {
		list.Content = append(list.Content, text(v.String()))
	}
	return list
}

func (b *builder) checkNetworkConfig(content []byte, nics []NIC) {
	var document yaml.Node
	if err := yaml.Unmarshal(content, &document); err != nil {
		b.warn(NetworkConfig, "%s", yamlError(err))
		return
	}
	known := make(map[string]bool, len(nics))
	for _, nic := range nics {
		known[strings.ToLower(nic.MAC)] = true
	}
	walk(&document, 0, func(key string, value *yaml.Node) {
		isMAC := key == "macaddress" || key == "mac_address"
		if isMAC && value.Kind == yaml.ScalarNode && !known[strings.ToLower(value.Value)] {
			b.warn(NetworkConfig, "line %d: no NIC has the MAC address %q", value.Line, value.Value)
		}
	})
}

// maxDepth bounds the walk: deeper files are no network configuration.
const maxDepth = 20

// walk visits every pair of every mapping. Aliases are not followed, so it ends.
func walk(node *yaml.Node, depth int, visit func(key string, value *yaml.Node)) {
	if depth > maxDepth {
		return
	}
	for i, child := range node.Content {
		if node.Kind == yaml.MappingNode && i%2 == 1 {
			visit(node.Content[i-1].Value, child)
		}
		walk(child, depth+1, visit)
	}
}
