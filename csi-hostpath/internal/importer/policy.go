package importer

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"podvirt.dev/csi-hostpath/internal/sandbox"
)

// dialTimeout bounds one attempt to connect.
const dialTimeout = 30 * time.Second

// Range is a part of the network that belongs to the cluster.
type Range struct {
	Prefix netip.Prefix
	What   string // "the cluster's Service range"
}

// Policy says where imports may go (storage.md 2.5).
type Policy struct {
	Allow, Deny []string // host patterns and CIDRs; an empty Allow allows everything that is not denied
	Cluster     []Range
	// Insecure are hosts, with or without port, whose identity need not be verified.
	Insecure []string
	// Resolve finds the addresses of a name; nil: as the machine does.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
}

// Dial connects to host:port where the policy allows it. Every address that the name has is looked at, at every call: what
// is checked is what is connected to (ST-062).
func (p Policy) Dial(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, sandbox.Forbidden("not host:port")
	}
	addresses, err := p.resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	var refusal error
	for _, ip := range addresses {
		if refusal = p.check(host, ip); refusal != nil {
			continue
		}
		var conn net.Conn
		if conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(ip.String(), port)); err == nil {
			return conn, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return nil, refusal
}

func (p Policy) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip}, nil
	}
	if p.Resolve != nil {
		return p.Resolve(ctx, host)
	}
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err == nil && len(addresses) == 0 {
		err = fmt.Errorf("host %s has no address", host)
	}
	return addresses, err
}

// check returns why an address may not be connected to.
func (p Policy) check(host string, ip netip.Addr) error {
	ip = embedded(ip)
	matches := func(pattern string) bool { return pattern != "*" && match(pattern, host, ip) }
	if slices.ContainsFunc(p.Allow, matches) {
		return nil
	}
	if len(p.Allow) > 0 && !slices.Contains(p.Allow, "*") {
		return sandbox.Forbidden(host + " is not in storage.import.allow")
	}
	const way = ": use podvirt.dev/import-mode: pod or ask for storage.import.allow"
	switch {
	case slices.ContainsFunc(p.Deny, func(pattern string) bool { return pattern == "*" || match(pattern, host, ip) }):
		return sandbox.Forbidden(host + " is in storage.import.deny")
	case ip.IsLoopback(), ip.IsUnspecified(), netip.MustParsePrefix("0.0.0.0/8").Contains(ip):
		return sandbox.Forbidden(ip.String() + " is a loopback address" + way)
	case ip.IsLinkLocalUnicast():
		return sandbox.Forbidden(ip.String() + " is a link-local address" + way)
	case ip.IsMulticast(), ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return sandbox.Forbidden(ip.String() + " is a multicast address")
	}
	for _, r := range p.Cluster {
		if r.Prefix.Contains(ip) {
			return sandbox.Forbidden(ip.String() + " is in " + r.What + way)
		}
	}
	return nil
}

// embedded returns the IPv4 address inside an IPv6 one that leads to it: mapped (RFC 4291), NAT64 (RFC 6052), 6to4 (RFC 3056).
func embedded(ip netip.Addr) netip.Addr {
	ip = ip.Unmap().WithZone("")
	if !ip.Is6() {
		return ip
	}
	raw := ip.As16()
	switch {
	case netip.MustParsePrefix("64:ff9b::/96").Contains(ip), netip.MustParsePrefix("::/96").Contains(ip) && ip != netip.IPv6Loopback() && !ip.IsUnspecified():
		return netip.AddrFrom4([4]byte(raw[12:]))
	case netip.MustParsePrefix("2002::/16").Contains(ip):
		return netip.AddrFrom4([4]byte(raw[2:6]))
	}
	return ip
}

// match compares a host name and an address with a pattern: a CIDR, an address, a name, *.domain.
func match(pattern, host string, ip netip.Addr) bool {
	if prefix, err := netip.ParsePrefix(pattern); err == nil {
		return prefix.Contains(ip)
	}
	if address, err := netip.ParseAddr(pattern); err == nil {
		return embedded(address) == ip
	}
	host, pattern = strings.ToLower(strings.TrimSuffix(host, ".")), strings.ToLower(pattern)
	if domain, ok := strings.CutPrefix(pattern, "*"); ok {
		return strings.HasSuffix(host, domain)
	}
	return host == pattern
}

// Unverified says why the identity of a source must be verified although the claim does not ask for it; "" where it need
// not (ST-050). A host without port means 443 and 80.
func (p Policy) Unverified(source string) string {
	parsed, err := url.Parse(source)
	if err == nil && parsed.Scheme == "s3" {
		parsed, err = url.Parse(parsed.Query().Get("endpoint"))
	}
	if err != nil {
		return "not a URL"
	}
	port := parsed.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443", "docker": "443"}[parsed.Scheme]
	}
	at := net.JoinHostPort(parsed.Hostname(), port)
	usual := port == "80" || port == "443"
	if slices.Contains(p.Insecure, at) || usual && slices.Contains(p.Insecure, parsed.Hostname()) {
		return ""
	}
	return parsed.Host + " is not in storage.import.insecure-registries"
}
