package world

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/nftables"

	"podvirt.dev/internal/nl"
)

// Snapshot describes everything of a namespace that the plugin could change: links, addresses, routes, filters,
// nftables, sysctls. Two equal texts are two equal namespaces.
func Snapshot(t testing.TB, netns ns.NetNS) string {
	t.Helper()
	var lines []string
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	Do(t, netns, func(h *nl.Handle) {
		links, err := h.Links()
		must(t, err)
		for _, l := range links {
			say("link %d %s %s alias=%q mac=%s mtu=%d up=%v master=%d", l.Index, l.Name, l.Kind, l.Alias, l.MAC, l.MTU, l.Up, l.Master)
			addresses, err := h.Addresses(l.Index)
			must(t, err)
			for _, a := range addresses {
				if !a.Prefix.Addr().IsLinkLocalUnicast() { // the kernel's own come when it likes
					say("address %s %s", l.Name, a.Prefix)
				}
			}
			for _, hook := range []nl.Hook{nl.Ingress, nl.Egress} {
				filters, err := h.Filters(l.Index, hook)
				must(t, err)
				say("filters %s %v", l.Name, filters)
			}
		}
		routes, err := h.Routes()
		must(t, err)
		for _, r := range routes {
			if !r.Destination.Addr().IsLinkLocalUnicast() {
				say("route %+v", r)
			}
		}
		conn, err := nftables.New()
		must(t, err)
		tables, err := conn.ListTables()
		must(t, err)
		for _, table := range tables {
			say("table %d %s", table.Family, table.Name)
		}
		for _, line := range sysctls(t) {
			say("%s", line)
		}
	})
	return strings.Join(lines, "\n") + "\n"
}

func sysctls(t testing.TB) []string {
	t.Helper()
	var lines []string
	for _, root := range []string{"/proc/sys/net/ipv4", "/proc/sys/net/ipv6"} {
		must(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || strings.Contains(path, "/neigh/") {
				return err
			}
			if value, err := os.ReadFile(path); err == nil { // some can only be written
				lines = append(lines, path+" = "+strings.TrimSpace(string(value)))
			}
			return nil
		}))
	}
	slices.Sort(lines)
	return lines
}
