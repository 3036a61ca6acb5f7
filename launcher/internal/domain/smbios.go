package domain

import (
	"strings"

	"libvirt.org/go/libvirtxml"
)

// sysInfo are the tables of SMBIOS types 1, 2, 3 and 11: what podvirt.dev/smbios says over the defaults (VM-064). Without
// a word about the board, QEMU makes none.
func (b *builder) sysInfo() []libvirtxml.DomainSysInfo {
	id := b.host.UUID.String()
	smbios := &libvirtxml.DomainSysInfoSMBIOS{
		System: &libvirtxml.DomainSysInfoSystem{Entry: append(
			b.smbios("", []string{"manufacturer=podvirt", "product=VM", "version", "serial=" + id, "sku", "family"}),
			libvirtxml.DomainSysInfoEntry{Name: "uuid", Value: id},
		)},
		Chassis: &libvirtxml.DomainSysInfoChassis{
			Entry: b.smbios("chassis-", []string{"manufacturer=podvirt", "version", "serial=" + id, "asset", "sku"}),
		},
	}
	if board := b.smbios("board-", []string{"manufacturer", "product", "version", "serial", "asset", "location"}); len(board) > 0 {
		smbios.BaseBoard = []libvirtxml.DomainSysInfoBaseBoard{{Entry: board}}
	}
	if oem := b.vm.SMBIOS.OEM; len(oem) > 0 {
		smbios.OEMStrings = &libvirtxml.DomainSysInfoOEMStrings{Entry: oem}
	}
	return []libvirtxml.DomainSysInfo{{SMBIOS: smbios}}
}

// smbios are the entries of one table whose options begin with a prefix; NAME=VALUE gives a default.
func (b *builder) smbios(prefix string, names []string) []libvirtxml.DomainSysInfoEntry {
	var list []libvirtxml.DomainSysInfoEntry
	for _, name := range names {
		name, value, _ := strings.Cut(name, "=")
		value = orElse(b.vm.SMBIOS.Fields[prefix+name], value)
		if value != "" {
			list = append(list, libvirtxml.DomainSysInfoEntry{Name: name, Value: value})
		}
	}
	return list
}
