package dhcp

import (
	"net/netip"
	"strings"
)

// Resolv is what a resolv.conf says that a guest can be told. Options such as ndots have no form in DHCP.
type Resolv struct {
	Servers []netip.Addr
	Search  []string
}

// maxSearch bounds the search list, in domains; Kubernetes allows 32.
const maxSearch = 32

// ParseResolv reads a resolv.conf (resolv.conf(5)). Servers on the loopback interface are left out: the guest could not
// reach them. The last of several search or domain lines counts.
func ParseResolv(text string) Resolv {
	var r Resolv
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") || strings.HasPrefix(fields[0], ";") {
			continue
		}
		switch fields[0] {
		case "nameserver":
			address, err := netip.ParseAddr(fields[1])
			if err == nil && !address.IsLoopback() && address.Zone() == "" {
				r.Servers = append(r.Servers, address.Unmap())
			}
		case "search", "domain":
			r.Search = nil
			for _, domain := range fields[1:] {
				if domain = strings.TrimSuffix(domain, "."); isDomain(domain) && len(r.Search) < maxSearch {
					r.Search = append(r.Search, domain)
				}
			}
		}
	}
	return r
}

// isDomain reports whether a name has the lengths of RFC 1035.
func isDomain(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
	}
	return true
}
