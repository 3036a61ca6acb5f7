// Package hostdev finds the host devices that the container was given: device plugins name them in variables, and only
// those whose files are in the container count (devices.md 2.5). Options of podvirt.dev/device.NAME say how each appears.
package hostdev

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"podvirt.dev/api"
)

// ErrNotHere says that a variable names a device whose file the container does not have.
var ErrNotHere = errors.New("is not in this container")

// Kind says what a device is to libvirt.
type Kind string

// Kinds of host devices.
const (
	PCI  Kind = "pci"
	Mdev Kind = "mdev"
	Char Kind = "char"
)

// Device is one host device of the VM.
type Device struct {
	api.Device        // options; the name is made up where no annotation gives one
	Kind       Kind   `json:"kind"`
	ID         string `json:"id"` // PCI address, UUID, or path
}

// variables are the beginnings of those that name devices, and what they name.
func variables() map[string]Kind {
	return map[string]Kind{api.EnvPCI: PCI, api.EnvSRIOV: PCI, api.EnvMdev: Mdev, api.EnvChar: Char}
}

var (
	pciPattern  = regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)
	uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
)

// unit is a device as a variable names it.
type unit struct {
	kind Kind
	id   string
}

// Find returns the devices that environment names, sorted by resource and index, with the options of the VM's
// annotations. fsys is the container's root directory.
func Find(environment []string, options []api.Device, fsys fs.FS) ([]Device, error) {
	units, err := read(environment)
	if err != nil {
		return nil, err
	}
	named, err := assign(options, units)
	if err != nil {
		return nil, err
	}
	var devices []Device
	for _, suffix := range slices.Sorted(maps.Keys(units)) {
		for index, u := range units[suffix] {
			if err := here(fsys, u); err != nil {
				return nil, err
			}
			d := Device{Kind: u.kind, ID: u.id}
			if o, ok := named[suffix][index]; ok {
				d.Device = o
			} else {
				d.Name = madeUp(suffix, index)
			}
			devices = append(devices, d)
		}
	}
	return devices, nil
}

// read returns the units by the end of their variable, in the variable's order.
func read(environment []string) (map[string][]unit, error) {
	units := map[string][]unit{}
	var errs []error
	for _, variable := range slices.Sorted(slices.Values(environment)) {
		name, value, _ := strings.Cut(variable, "=")
		for prefix, kind := range variables() {
			suffix, ok := strings.CutPrefix(name, prefix)
			if !ok || prefix == api.EnvSRIOV && strings.HasSuffix(name, "_INFO") {
				continue
			}
			for id := range strings.SplitSeq(value, ",") {
				if id = strings.TrimSpace(id); id == "" {
					continue
				}
				if !valid(kind, id) {
					errs = append(errs, fmt.Errorf("variable %s: %.60q is not the name of a device", name, id))
					continue
				}
				units[suffix] = append(units[suffix], unit{kind, id})
			}
		}
	}
	return units, errors.Join(errs...)
}

func valid(kind Kind, id string) bool {
	switch kind {
	case PCI:
		return pciPattern.MatchString(id)
	case Mdev:
		return uuidPattern.MatchString(id)
	case Char:
		return strings.HasPrefix(id, "/dev/") && path.Clean(id) == id
	}
	return false
}

// assign gives the options of each annotation their unit: the index that is asked for, else the next free one.
func assign(options []api.Device, units map[string][]unit) (map[string]map[int]api.Device, error) {
	named := map[string]map[int]api.Device{}
	var errs api.Errors
	fail := func(o api.Device, format string, args ...any) {
		key := api.KeyDevice + o.Name
		errs = append(errs, api.Error{Key: key, Text: key + ": " + fmt.Sprintf(format, args...)})
	}
	ordered := slices.Clone(options)
	slices.SortStableFunc(ordered, func(a, b api.Device) int { return boolOrder(a.Index == nil, b.Index == nil) })
	for _, o := range ordered {
		suffix := api.EnvSuffix(o.Resource)
		count := len(units[suffix])
		if named[suffix] == nil {
			named[suffix] = map[int]api.Device{}
		}
		index := 0
		for o.Index == nil && index < count && taken(named[suffix], index) {
			index++
		}
		if o.Index != nil {
			index = *o.Index
		}
		switch {
		case count == 0:
			fail(o, "resource=%s: container vm does not request it", o.Resource)
		case index >= count && o.Index != nil:
			fail(o, "index=%d: %d units requested (%s)", index, count, numbers(count))
		case index >= count:
			fail(o, "resource=%s: %d units requested, and all have options", o.Resource, count)
		case taken(named[suffix], index):
			fail(o, "index=%d: also used by device.%s", index, named[suffix][index].Name)
		default:
			named[suffix][index] = o
		}
	}
	return named, errs.Join(nil).Err()
}

func taken(named map[int]api.Device, index int) bool {
	_, ok := named[index]
	return ok
}

func boolOrder(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func numbers(count int) string {
	list := make([]string, count)
	for i := range list {
		list[i] = fmt.Sprint(i)
	}
	return strings.Join(list, ", ")
}

// madeUp names a unit without options after its resource; no annotation can give such a name, for its underscore.
func madeUp(suffix string, index int) string {
	return fmt.Sprintf("%s_%d", strings.ToLower(strings.ReplaceAll(suffix, "_", "-")), index)
}

// here says whether the files of a device are in the container: what a variable alone says opens nothing.
func here(fsys fs.FS, u unit) error {
	files := []string{u.id}
	switch u.kind {
	case PCI:
		files = vfio(fsys, "sys/bus/pci/devices/"+u.id)
	case Mdev:
		files = vfio(fsys, "sys/bus/mdev/devices/"+u.id)
	case Char:
	}
	for _, file := range files {
		if _, err := fs.Stat(fsys, strings.TrimPrefix(file, "/")); err != nil {
			return fmt.Errorf("%s %w", u.id, ErrNotHere)
		}
	}
	return nil
}

// vfio returns the files by which VFIO opens a device.
func vfio(fsys fs.FS, dir string) []string {
	group, err := fs.ReadLink(fsys, dir+"/iommu_group")
	if err != nil {
		return []string{"dev/vfio/none"}
	}
	return []string{"dev/vfio/vfio", "dev/vfio/" + path.Base(group)}
}

// Needed returns how much memory VFIO locks for a guest: all of it, and what maps the devices, as limits.memory counts it.
func Needed(vm api.Machine, devices []Device) uint64 {
	if !slices.ContainsFunc(devices, func(d Device) bool { return d.Kind != Char }) {
		return 0
	}
	return uint64(vm.Memory.Guest+vm.Overhead) << 20
}

// CheckLocked says when a limit on locked memory, in bytes, is too low for the devices.
func CheckLocked(limit, needed uint64) error {
	if limit >= needed {
		return nil
	}
	return fmt.Errorf("locked memory %s, %s needed: device hook did not run", size(limit), size(needed))
}

func size(bytes uint64) string {
	if bytes < 1<<30 {
		return fmt.Sprintf("%d MiB", bytes>>20)
	}
	return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30))
}
