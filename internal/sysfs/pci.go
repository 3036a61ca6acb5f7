package sysfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	pciDir    = "sys/bus/pci/devices"
	pciDriver = "sys/bus/pci/drivers"
	groupsDir = "sys/kernel/iommu_groups"
	iommuDir  = "sys/class/iommu"
)

// maxAttribute bounds one attribute of a device, in bytes: the kernel gives at most a page (Documentation/filesystems/sysfs.rst).
const maxAttribute = 4096

// maxDevices bounds the entries that are read of one directory.
const maxDevices = 1 << 16

// None stands for no IOMMU group, no NUMA cell and no number of a virtual function.
const None = -1

// PCIDevice is one PCI function.
type PCIDevice struct {
	Address              string // 0000:3b:02.1
	Vendor, Device       uint16
	SubVendor, SubDevice uint16
	Class                uint32   // 24 bits: base class, subclass, interface
	Driver               string   // "": none is bound
	Group                int      // IOMMU group, or None
	Cell                 int      // NUMA cell, or None; that of the physical function where a virtual one has none
	PF                   string   // address of the physical function of a virtual one, or ""
	VF                   int      // number among the virtual functions of PF, or None
	VFs                  []string // addresses of the virtual functions, by number
	TotalVFs             int      // what the hardware can have; 0: no SR-IOV
	Resettable           bool     // the kernel knows a way to reset the function
	BootVGA              bool     // firmware shows its picture there
	Interfaces           []string // names of network interfaces
	Blocks               []string // names of block devices
	VFIODevice           string   // name of its file below /dev/vfio/devices, or ""
	Err                  error    // why the device could not be read whole
}

// Bridge says whether the function is a bridge, which no guest gets and which may share a group with anything.
func (d PCIDevice) Bridge() bool { return d.Class>>16 == 0x06 }

var addressPattern = regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

// PCIDevices returns every PCI function, sorted by address. One that cannot be read is among them, with its Err.
func PCIDevices(fsys FS) ([]PCIDevice, error) {
	names, err := entries(fsys, pciDir)
	if err != nil {
		return nil, err
	}
	byDevice, err := classDevices(fsys)
	if err != nil {
		return nil, err
	}
	devices := make([]PCIDevice, 0, len(names))
	for _, name := range names {
		if !addressPattern.MatchString(name) {
			continue
		}
		d := readPCI(fsys, name)
		d.Interfaces, d.Blocks = byDevice.interfaces[name], byDevice.blocks[name]
		devices = append(devices, d)
	}
	numberVFs(devices)
	return devices, nil
}

func readPCI(fsys FS, address string) PCIDevice {
	d := PCIDevice{Address: address, VF: None}
	r := attributes{fsys: fsys, dir: path.Join(pciDir, address)}
	d.Vendor, d.Device = uint16(r.hex("vendor", 16)), uint16(r.hex("device", 16))
	d.SubVendor, d.SubDevice = uint16(r.hex("subsystem_vendor", 16)), uint16(r.hex("subsystem_device", 16))
	d.Class = uint32(r.hex("class", 24))
	d.Driver = r.link("driver")
	d.Group = r.numberOfLink("iommu_group")
	d.Cell = r.number("numa_node", None)
	d.PF = r.link("physfn")
	d.TotalVFs = r.number("sriov_totalvfs", 0)
	for i := range r.number("sriov_numvfs", 0) {
		vf := r.link("virtfn" + strconv.Itoa(i))
		if vf == "" {
			break // they are being made, or the number is none
		}
		d.VFs = append(d.VFs, vf)
	}
	_, err := fs.Stat(fsys, path.Join(r.dir, "reset"))
	d.Resettable = err == nil
	d.BootVGA = r.number("boot_vga", 0) == 1
	if names, err := entries(fsys, path.Join(r.dir, "vfio-dev")); err == nil && len(names) == 1 {
		d.VFIODevice = names[0]
	}
	d.Err = errors.Join(r.errs...)
	return d
}

// numberVFs tells virtual functions their number, and their cell where only the physical function has one.
func numberVFs(devices []PCIDevice) {
	byAddress := make(map[string]int, len(devices))
	for i, d := range devices {
		byAddress[d.Address] = i
	}
	for i := range devices {
		pf, ok := byAddress[devices[i].PF]
		if !ok {
			continue
		}
		devices[i].VF = slices.Index(devices[pf].VFs, devices[i].Address)
		if devices[i].Cell == None {
			devices[i].Cell = devices[pf].Cell
		}
	}
}

// IOMMU says whether an IOMMU works, and whether it remaps interrupts: a device behind it cannot forge them then
// (Documentation/core-api/irq/irq-domain.rst; the names of the interrupt chips begin with IR-).
func IOMMU(fsys FS) (works, remaps bool) {
	units, _ := entries(fsys, iommuDir) // absent: no IOMMU
	groups, _ := entries(fsys, groupsDir)
	interrupts, _ := Text(fsys, "proc/interrupts")
	return len(units) > 0 && len(groups) > 0, strings.Contains(interrupts, " IR-")
}

// Carrier says whether a network interface is up and has a link. The kernel refuses to say it of one that is down.
func Carrier(fsys FS, name string) bool {
	text, err := attribute(fsys, path.Join("sys/class/net", name, "carrier"))
	return err == nil && text == "1"
}

// HasDriver says whether a PCI driver is loaded.
func HasDriver(fsys FS, name string) bool {
	_, err := fs.Stat(fsys, path.Join(pciDriver, name))
	return err == nil
}

// classes are network interfaces and block devices by the address of the PCI function they sit on.
type classes struct{ interfaces, blocks map[string][]string }

func classDevices(fsys FS) (classes, error) {
	c := classes{interfaces: map[string][]string{}, blocks: map[string][]string{}}
	for dir, by := range map[string]map[string][]string{"sys/class/net": c.interfaces, "sys/block": c.blocks} {
		names, err := entries(fsys, dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return c, err
		}
		for _, name := range names {
			target, err := fsys.ReadLink(path.Join(dir, name))
			if err != nil {
				continue // gone, or no link: it sits on no PCI function
			}
			for _, address := range functionsOf(fsys, target) {
				by[address] = append(by[address], name)
			}
		}
	}
	return c, nil
}

// functionsOf returns the PCI functions that the target of a link in /sys/class sits on: the last one in the path, or,
// for an NVMe namespace with several controllers, those of all controllers.
func functionsOf(fsys FS, target string) []string {
	parts := strings.Split(target, "/")
	for i, part := range slices.Backward(parts) {
		if addressPattern.MatchString(part) {
			return []string{part}
		}
		if !strings.HasPrefix(part, "nvme-subsys") || i == 0 || parts[i-1] != "nvme-subsystem" {
			continue
		}
		dir := path.Join("sys/class/nvme-subsystem", part)
		controllers, _ := entries(fsys, dir) // what is not there has no function
		var found []string
		for _, controller := range controllers {
			if link, err := fsys.ReadLink(path.Join(dir, controller)); err == nil && link != target {
				found = append(found, functionsOf(fsys, link)...)
			}
		}
		return found
	}
	return nil
}

// entries returns the names in a directory, sorted.
func entries(fsys FS, dir string) ([]string, error) {
	list, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	if len(list) > maxDevices {
		return nil, fmt.Errorf("%s: %w: %d entries", dir, ErrFormat, len(list))
	}
	names := make([]string, len(list))
	for i, entry := range list {
		names[i] = entry.Name()
	}
	return names, nil
}

// attributes reads attributes of one device and collects what is wrong with them.
type attributes struct {
	fsys FS
	dir  string
	errs []error
}

// text returns an attribute; false when it is not there or could not be read, which is noted.
func (r *attributes) text(name string) (string, bool) {
	text, err := attribute(r.fsys, path.Join(r.dir, name))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			r.errs = append(r.errs, err)
		}
		return "", false
	}
	return text, true
}

// hex returns an attribute that must be there: 0x and digits.
func (r *attributes) hex(name string, bits int) uint64 {
	text, ok := r.text(name)
	n, err := strconv.ParseUint(strings.TrimPrefix(text, "0x"), 16, bits)
	if !ok || err != nil {
		r.errs = append(r.errs, fmt.Errorf("%s: %w: %.40q", path.Join(r.dir, name), ErrFormat, text))
		return 0
	}
	return n
}

// number returns an attribute that may be missing.
func (r *attributes) number(name string, otherwise int) int {
	text, ok := r.text(name)
	if !ok {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		r.errs = append(r.errs, fmt.Errorf("%s: %w: %.40q", path.Join(r.dir, name), ErrFormat, text))
		return otherwise
	}
	return n
}

// link returns the last part of what a link names, or "" where there is none.
func (r *attributes) link(name string) string {
	target, err := r.fsys.ReadLink(path.Join(r.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		r.errs = append(r.errs, err)
		return ""
	}
	return path.Base(target)
}

func (r *attributes) numberOfLink(name string) int {
	base := r.link(name)
	if base == "" {
		return None
	}
	n, err := strconv.Atoi(base)
	if err != nil {
		r.errs = append(r.errs, fmt.Errorf("%s: %w: %.40q", path.Join(r.dir, name), ErrFormat, base))
		return None
	}
	return n
}

// attribute returns one attribute without blanks around it.
func attribute(fsys fs.FS, name string) (string, error) {
	text, err := textUpTo(fsys, name, maxAttribute+1)
	if err == nil && len(text) > maxAttribute {
		err = fmt.Errorf("%s: %w: more than %d bytes", name, ErrFormat, maxAttribute)
	}
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(text), nil
}
