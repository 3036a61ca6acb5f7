// Package sysfstest makes trees as the kernel shows them in /sys, for tests of what reads them.
package sysfstest

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing/fstest"

	"podvirt.dev/internal/sysfs"
)

// Tree is a root directory with sys and proc below it.
type Tree fstest.MapFS

var _ sysfs.FS = Tree(nil)

// Open implements fs.FS.
func (t Tree) Open(name string) (fs.File, error) { return fstest.MapFS(t).Open(name) }

// ReadDir implements fs.ReadDirFS.
func (t Tree) ReadDir(name string) ([]fs.DirEntry, error) { return fstest.MapFS(t).ReadDir(name) }

// ReadLink implements fs.ReadLinkFS.
func (t Tree) ReadLink(name string) (string, error) { return fstest.MapFS(t).ReadLink(name) }

// Lstat implements fs.ReadLinkFS.
func (t Tree) Lstat(name string) (fs.FileInfo, error) { return fstest.MapFS(t).Lstat(name) }

// Clone returns a copy that can be changed by itself.
func (t Tree) Clone() Tree { return maps.Clone(t) }

// OnDisk writes the tree below a directory, where links may also form loops, which package fstest cannot stand.
func (t Tree) OnDisk(dir string) (sysfs.FS, error) {
	for _, name := range slices.Sorted(maps.Keys(t)) {
		file, target := t[name], filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return nil, err
		}
		var err error
		switch {
		case file.Mode.IsDir():
			err = os.MkdirAll(target, 0o755)
		case file.Mode&fs.ModeSymlink != 0:
			err = os.Symlink(string(file.Data), target)
		default:
			err = os.WriteFile(target, file.Data, 0o644)
		}
		if err != nil {
			return nil, err
		}
	}
	return sysfs.Host(dir)
}

// File writes a file with a line.
func (t Tree) File(name, line string) Tree {
	t[name] = &fstest.MapFile{Data: []byte(line + "\n"), Mode: 0o644}
	return t
}

// Link makes a symbolic link.
func (t Tree) Link(name, target string) Tree {
	t[name] = &fstest.MapFile{Data: []byte(target), Mode: fs.ModeSymlink | 0o777}
	return t
}

// Dir makes an empty directory.
func (t Tree) Dir(name string) Tree {
	t[name] = &fstest.MapFile{Mode: fs.ModeDir | 0o755}
	return t
}

// PCI describes one function; zero fields are what most devices have: class 0x020000, no driver, no cell.
type PCI struct {
	Address, ID string // ID is vendor:device in hexadecimal digits
	Class       string
	Driver      string
	Group       int // 0: no IOMMU group
	Cell        string
	NoReset     bool
	Interface   string
	VFs         []string
	TotalVFs    int
	PF          string
}

// deviceDir is where the kernel keeps a function; the links of the buses point there.
func deviceDir(address string) string { return "sys/devices/pci0000:00/" + address }

// PCI adds a function.
func (t Tree) PCI(p PCI) Tree {
	dir := deviceDir(p.Address)
	vendor, device, _ := strings.Cut(p.ID, ":")
	t.File(dir+"/vendor", "0x"+vendor).File(dir+"/device", "0x"+device)
	t.File(dir+"/subsystem_vendor", "0x1af4").File(dir+"/subsystem_device", "0x1100")
	t.File(dir+"/class", orElse(p.Class, "0x020000")).File(dir+"/numa_node", orElse(p.Cell, "-1"))
	t.Link("sys/bus/pci/devices/"+p.Address, "../../../devices/pci0000:00/"+p.Address)
	if !p.NoReset {
		t.File(dir+"/reset", "")
	}
	if p.Driver != "" {
		t.Link(dir+"/driver", "../../../bus/pci/drivers/"+p.Driver).Dir("sys/bus/pci/drivers/" + p.Driver)
	}
	if p.Group > 0 {
		group := strconv.Itoa(p.Group)
		t.Link(dir+"/iommu_group", "../../../kernel/iommu_groups/"+group)
		t.Link("sys/kernel/iommu_groups/"+group+"/devices/"+p.Address, "../../../../devices/pci0000:00/"+p.Address)
	}
	if p.Interface != "" {
		t.Dir(dir + "/net/" + p.Interface)
		t.Link("sys/class/net/"+p.Interface, "../../devices/pci0000:00/"+p.Address+"/net/"+p.Interface)
	}
	if p.TotalVFs > 0 {
		t.File(dir+"/sriov_totalvfs", strconv.Itoa(p.TotalVFs)).File(dir+"/sriov_numvfs", strconv.Itoa(len(p.VFs)))
	}
	for i, vf := range p.VFs {
		t.Link(fmt.Sprintf("%s/virtfn%d", dir, i), "../"+vf)
	}
	if p.PF != "" {
		t.Link(dir+"/physfn", "../"+p.PF)
	}
	return t
}

// IOMMU adds a unit that remaps interrupts, or does not.
func (t Tree) IOMMU(remaps bool) Tree {
	chip := "PCI-MSI-0000:00:04.0"
	if remaps {
		chip = "IR-" + chip
	}
	return t.Dir("sys/class/iommu/dmar0").File("proc/interrupts", "  24:   0   0  "+chip+"    0-edge      eth0")
}

// MdevType is a kind of mediated device.
type MdevType struct {
	ID, Name  string
	Available int
}

// MdevParent adds a parent, which is on no bus unless its name is a PCI address.
func (t Tree) MdevParent(name string, types ...MdevType) Tree {
	dir := "sys/devices/virtual/" + name + "/" + name
	t.Link("sys/class/mdev_bus/"+name, "../../devices/virtual/"+name+"/"+name)
	for _, kind := range types {
		of := path.Join(dir, "mdev_supported_types", kind.ID)
		t.File(of+"/name", kind.Name).File(of+"/device_api", "vfio-pci").File(of+"/available_instances", strconv.Itoa(kind.Available))
	}
	return t
}

// Mdev adds an instance.
func (t Tree) Mdev(parent, kind, uuid string, group int) Tree {
	dir := "sys/devices/virtual/" + parent + "/" + parent + "/" + uuid
	t.Link("sys/bus/mdev/devices/"+uuid, "../../../devices/virtual/"+parent+"/"+parent+"/"+uuid)
	t.Link(dir+"/mdev_type", "../mdev_supported_types/"+kind)
	return t.Link(dir+"/iommu_group", "../../../../kernel/iommu_groups/"+strconv.Itoa(group))
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
