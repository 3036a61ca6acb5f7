// Package base discovers the devices that every node may have: the hypervisor's own device files and two rights that
// are no devices, locked memory and real-time priority (devices.md 2.1).
package base

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/cdi"
	"podvirt.dev/device-plugin/internal/device"
	"podvirt.dev/device-plugin/internal/hostfile"
)

// defaultUnits is the number of units of resources whose capacity cannot be configured.
const defaultUnits = 1000

// Stamp is the file below /run/podvirt that the CNI plugin touches when the runtime calls it (network.md 2.5).
const Stamp = "cni/called"

// Host is what discovery reads of a node.
type Host struct {
	Dev  fs.FS // the host's /dev
	Proc fs.FS // /proc
	Run  fs.FS // the host's /run/podvirt
	// Open opens a device file below /dev for reading and writing and closes it again, which makes the kernel load the
	// driver of a node that is there in advance. A nil Open tries nothing.
	Open func(name string) error
}

// Settings is what discovery takes from podvirt-config for this node.
type Settings struct {
	Units        map[string]int // by resource; where one is missing: 1000
	VsockCIDBase uint32         // context id of unit 0 of podvirt.dev/vhost-vsock
}

// KVM says whether guests run under KVM here. The zero value means that nobody knows yet.
type KVM struct {
	Known  bool
	Usable bool
	Why    string // why not, if it is known to be unusable
}

// kind is one row of devices.md 2.1.
type kind struct {
	resource string
	node     string   // device file below /dev
	hook     []string // arguments of the device hook
	// absent says why the resource has no units here, or ""; nil: only the device file decides.
	absent func(Host) string
}

func kinds() []kind {
	return []kind{
		{resource: api.ResourceKVM, node: "kvm"},
		{resource: api.ResourceTun, node: "net/tun", absent: noStamp},
		{resource: api.ResourceVhostNet, node: "vhost-net"},
		{resource: api.ResourceVhostVsock, node: "vhost-vsock"},
		{resource: api.ResourceUserfaultfd, node: "userfaultfd"},
		{resource: api.ResourceRealtime, hook: []string{"rtprio=1", "memlock=unlimited"}, absent: rtThrottled},
		{resource: api.ResourceMemlock, hook: []string{"memlock=unlimited"}},
	}
}

// Name returns the kind's part of CDI names and unit ids: podvirt.dev/vhost-net has vhost-net.
func (k kind) name() string { return strings.TrimPrefix(k.resource, api.Prefix) }

// CDIFiles returns the CDI specifications of all base devices, also of those that this node does not have: a
// specification nobody names costs nothing, and a device may come later.
func CDIFiles(dir, hook string) ([]hostfile.File, error) {
	var files []hostfile.File
	for _, k := range kinds() {
		edit := cdi.Edit{Hook: k.hook}
		if k.node != "" {
			edit.Nodes = []string{path.Join("/dev", k.node)}
		}
		file, err := cdi.File(dir, hook, k.name(), map[string]cdi.Edit{cdi.Any: edit})
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

// Scan returns what the node offers now. A resource of which nothing can be said yet is left out, so that a plugin that
// has just started never takes away what its predecessor offered.
func Scan(host Host, settings Settings, kvm KVM) []device.Resource {
	var resources []device.Resource
	for _, k := range kinds() {
		if k.resource == api.ResourceKVM && !kvm.Known {
			continue
		}
		r := device.Resource{Name: k.resource, Note: k.missing(host, kvm)}
		if r.Note == "" {
			r.Units = k.units(settings)
		}
		resources = append(resources, r)
	}
	return resources
}

// missing says why there are no units, or "".
func (k kind) missing(host Host, kvm KVM) string {
	if k.resource == api.ResourceKVM && !kvm.Usable {
		return kvm.Why
	}
	if k.node != "" {
		if why := noNode(host, k.node); why != "" {
			return why
		}
	}
	if k.absent != nil {
		return k.absent(host)
	}
	return ""
}

func (k kind) units(settings Settings) []device.Unit {
	n, ok := settings.Units[k.resource]
	if !ok {
		n = defaultUnits
	}
	grant := device.Grant{CDI: []string{cdi.Name(k.name(), cdi.Any)}}
	units := make([]device.Unit, n)
	for i := range units {
		units[i] = device.Unit{ID: k.name() + "-" + strconv.Itoa(i), Grant: grant}
		if k.resource == api.ResourceVhostVsock {
			cid := strconv.FormatUint(uint64(settings.VsockCIDBase)+uint64(i), 10)
			units[i].Grant.Env = map[string]string{api.EnvVsockCID: cid}
		}
	}
	return units
}

// noNode says why a device file cannot be given out, or "". A node that is there without a driver is opened, so that
// the kernel loads the module. Being forbidden to open it says nothing about the driver: the device cgroup of our own
// container forbids it, and then the first VM's open loads the module.
func noNode(host Host, name string) string {
	info, err := fs.Stat(host.Dev, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("/dev/%s is missing", name)
	case err != nil:
		return fmt.Sprintf("/dev/%s: %v", name, err)
	case info.Mode()&fs.ModeCharDevice == 0:
		return fmt.Sprintf("/dev/%s is not a character device", name)
	case host.Open == nil:
		return ""
	}
	if noDriver(host.Open(name)) {
		return fmt.Sprintf("/dev/%s has no driver", name)
	}
	return ""
}

func noDriver(err error) bool {
	return slices.ContainsFunc([]error{syscall.ENODEV, syscall.ENXIO, fs.ErrNotExist}, func(e error) bool { return errors.Is(err, e) })
}

// noStamp says that the runtime has not called our CNI plugin since boot, or "".
func noStamp(host Host) string {
	info, err := fs.Stat(host.Run, Stamp)
	if err != nil {
		return "the container runtime has not called the CNI plugin on this node"
	}
	boot, err := bootTime(host.Proc)
	if err != nil {
		return fmt.Sprintf("time of boot unknown: %v", err)
	}
	if info.ModTime().Before(boot) {
		return "the container runtime has not called the CNI plugin since boot"
	}
	return ""
}

// bootTime reads the line "btime" of /proc/stat: seconds since the epoch, cut off, so a file of the same second counts as newer.
func bootTime(proc fs.FS) (time.Time, error) {
	stat, err := fs.ReadFile(proc, "stat")
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(string(stat)) {
		if value, ok := strings.CutPrefix(line, "btime "); ok {
			seconds, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return time.Unix(seconds, 0), err
		}
	}
	return time.Time{}, errors.New("/proc/stat has no line btime")
}

// rtThrottled says that the kernel takes the CPU from real-time threads, or "".
func rtThrottled(host Host) string {
	const name = "sys/kernel/sched_rt_runtime_us"
	value, err := fs.ReadFile(host.Proc, name)
	if err != nil {
		return fmt.Sprintf("/proc/%s: %v", name, err)
	}
	if v := strings.TrimSpace(string(value)); v != "-1" {
		return fmt.Sprintf("kernel.sched_rt_runtime_us is %s, not -1", v)
	}
	return ""
}
