package bind

import (
	"fmt"
	"slices"

	"podvirt.dev/cni-bridge/internal/fault"
	"podvirt.dev/cni-bridge/internal/journal"
	"podvirt.dev/cni-bridge/internal/nat"
	"podvirt.dev/internal/nicalias"
	"podvirt.dev/internal/nl"
)

// Differences compares the namespace with the journal and returns one line per difference, none if all is as ADD left it.
func Differences(h *nl.Handle, entry journal.Entry) ([]string, error) {
	var out []string
	rules := 0
	for _, nic := range entry.NICs {
		rules += nic.Rules
		lines, err := nicDifferences(h, nic)
		if err != nil {
			return nil, err
		}
		out = append(out, lines...)
		if lines, err = rateDifferences(h, nic); err != nil {
			return nil, err
		}
		out = append(out, lines...)
		if nic.Wire != nil {
			if lines, err = wireDifferences(h, nic.Wire); err != nil {
				return nil, err
			}
			out = append(out, lines...)
		}
		if nic.Bridge != nil {
			if lines, err = bridgeDifferences(h, nic); err != nil {
				return nil, err
			}
			out = append(out, lines...)
		}
	}
	for _, s := range entry.Sysctls {
		if now, err := read(s.Path); err != nil || now != s.After {
			out = append(out, fmt.Sprintf("sysctl %s is %q, want %q", s.Path, now, s.After))
		}
	}
	now, err := nat.Rules()
	if err != nil {
		return nil, fault.Wrap(fault.NAT, "reading the NAT table", err)
	}
	if now != rules {
		out = append(out, fmt.Sprintf("table inet %s has %d rules, want %d", nat.Table, now, rules))
	}
	return out, nil
}

func nicDifferences(h *nl.Handle, nic journal.NIC) ([]string, error) {
	var out []string
	for _, want := range []struct {
		name, alias string
		mac         string
		addresses   []string
	}{{nic.Tap, nic.Alias, nic.MAC, nic.Addresses}, {nic.Service, nicalias.Service(), "", nil}} {
		link, err := h.Link(want.name)
		if nl.IsNotFound(err) {
			out = append(out, want.name+" is missing")
			continue
		}
		if err != nil {
			return nil, fault.Wrap(fault.Tap, "reading "+want.name, err)
		}
		for _, row := range []struct {
			what      string
			got, want any
			judged    bool
		}{
			{"alias", link.Alias, want.alias, true},
			{"MTU", link.MTU, nic.MTU, true},
			{"up", link.Up, true, true},
			{"MAC", link.MAC.String(), want.mac, want.mac != ""},
		} {
			if row.judged && row.got != row.want {
				out = append(out, fmt.Sprintf("%s: %s is %v, want %v", want.name, row.what, row.got, row.want))
			}
		}
		lines, err := linkDifferences(h, link, want.addresses)
		if err != nil {
			return nil, err
		}
		out = append(out, lines...)
	}
	return out, nil
}

func linkDifferences(h *nl.Handle, link nl.Link, addresses []string) ([]string, error) {
	has, err := h.Addresses(link.Index)
	if err != nil {
		return nil, fault.Wrap(fault.Tap, "reading "+link.Name, err)
	}
	var out []string
	for _, want := range addresses {
		if !slices.ContainsFunc(has, func(a nl.Address) bool { return a.Prefix.String() == want }) {
			out = append(out, fmt.Sprintf("%s: address %s is missing", link.Name, want))
		}
	}
	filters, err := h.Filters(link.Index, nl.Ingress)
	if err != nil {
		return nil, fault.Wrap(fault.NAT, "reading the filter of "+link.Name, err)
	}
	if len(filters) == 0 {
		out = append(out, link.Name+": filter is missing")
	}
	return out, nil
}
