package sysfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
)

const (
	mdevBus     = "sys/class/mdev_bus"
	mdevDevices = "sys/bus/mdev/devices"
)

// MdevType is a kind of mediated device that a parent can make (Documentation/driver-api/vfio-mediated-device.rst).
type MdevType struct {
	ID        string // nvidia-231
	Name      string // what the vendor calls it; "" where it does not
	API       string // vfio-pci, …
	Available int    // how many more can be made now
}

// MdevParent is a device that mediated devices are made of.
type MdevParent struct {
	Name      string // 0000:3b:00.0, or the name of a device that is on no PCI bus
	Path      string // its directory
	Cell      int    // NUMA cell, or None
	Types     []MdevType
	Instances []Mdev
	Err       error // why it could not be read whole
}

// Mdev is one mediated device.
type Mdev struct {
	UUID       string
	Type       string // id of its type
	Group      int    // IOMMU group, or None
	VFIODevice string // name of its file below /dev/vfio/devices, or ""
}

// MdevParents returns every parent, sorted by name, with what can be made of it and what was.
func MdevParents(fsys FS) ([]MdevParent, error) {
	names, err := entries(fsys, mdevBus)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	instances, err := mdevs(fsys)
	if err != nil {
		return nil, err
	}
	parents := make([]MdevParent, 0, len(names))
	for _, name := range names {
		r := attributes{fsys: fsys, dir: path.Join(mdevBus, name)}
		p := MdevParent{Name: name, Path: r.dir, Cell: r.number("numa_node", None), Instances: instances[name]}
		p.Types = r.mdevTypes()
		p.Err = errors.Join(r.errs...)
		parents = append(parents, p)
	}
	return parents, nil
}

func (r *attributes) mdevTypes() []MdevType {
	const dir = "mdev_supported_types"
	ids, err := entries(r.fsys, path.Join(r.dir, dir))
	if err != nil {
		r.errs = append(r.errs, err)
		return nil
	}
	types := make([]MdevType, 0, len(ids))
	for _, id := range ids {
		t := MdevType{ID: id, Available: r.number(path.Join(dir, id, "available_instances"), 0)}
		t.Name, _ = r.text(path.Join(dir, id, "name"))
		t.API, _ = r.text(path.Join(dir, id, "device_api"))
		if t.Available < 0 || t.Available > maxListed {
			r.errs = append(r.errs, fmt.Errorf("%s: %w: %d available instances", path.Join(r.dir, dir, id), ErrFormat, t.Available))
			t.Available = 0
		}
		types = append(types, t)
	}
	return types
}

// mdevs returns all mediated devices by the name of their parent, each list sorted by UUID.
func mdevs(fsys FS) (map[string][]Mdev, error) {
	byParent := map[string][]Mdev{}
	ids, err := entries(fsys, mdevDevices)
	if errors.Is(err, fs.ErrNotExist) {
		return byParent, nil
	}
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		target, err := fsys.ReadLink(path.Join(mdevDevices, id))
		if err != nil {
			continue // gone meanwhile
		}
		r := attributes{fsys: fsys, dir: path.Join(mdevDevices, id)}
		m := Mdev{UUID: id, Type: r.link("mdev_type"), Group: r.numberOfLink("iommu_group")}
		if names, err := entries(fsys, path.Join(r.dir, "vfio-dev")); err == nil && len(names) == 1 {
			m.VFIODevice = names[0]
		}
		parent := path.Base(path.Dir(target))
		byParent[parent] = append(byParent[parent], m)
	}
	return byParent, nil
}
