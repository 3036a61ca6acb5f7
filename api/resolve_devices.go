package api

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// KnownPaths are the directories of container vm (vm.md 2.4); those that end in a slash hold one entry each.
func KnownPaths() []string {
	return []string{
		PathDisks, PathCDROMs, PathCloudInit, PathIgnition, PathSysprep, PathConfig, PathShares, PathState, PathStateTemplate,
		PathSSHKeys, PathPasswords, PathPod, PathKernel, PathACPI, PathLaunch, PathCredentials, PathDumps, PathHotplug, PathScratch,
	}
}

// LaterPaths are those that this version does not honour.
func LaterPaths() []string {
	return []string{
		PathIgnition, PathSysprep, PathConfig, PathShares, PathStateTemplate, PathPasswords, PathLaunch,
		PathCredentials, PathDumps, PathHotplug,
	}
}

// paths checks every mount point and notes the simple ones.
func (r *resolver) paths() {
	for _, path := range r.pod.Paths {
		if path.Path == PathRun || !strings.HasPrefix(path.Path, PathRoot+"/") {
			continue
		}
		known := knownPath(path.Path)
		switch {
		case known == "":
			r.errs = append(r.errs, Error{Key: path.Path, Text: path.Path + ": unknown path" + suffix(nearestPath(path.Path))})
			continue
		case slices.Contains(LaterPaths(), known):
			r.errs = append(r.errs, Error{Key: path.Path, Text: path.Path + ": " + NotYet})
		}
		r.notePath(known, strings.TrimPrefix(path.Path, known))
	}
	slices.Sort(r.m.SSHUsers)
	slices.Sort(r.m.Passwords)
}

func (r *resolver) notePath(known, name string) {
	switch known {
	case PathCloudInit:
		r.m.Seed = true
	case PathState:
		r.m.State = true
	case PathSSHKeys:
		r.m.SSHUsers = append(r.m.SSHUsers, name)
	case PathPasswords:
		r.m.Passwords = append(r.m.Passwords, name)
	}
}

// knownPath returns the entry of KnownPaths that the path belongs to, or "".
func knownPath(path string) string {
	for _, known := range KnownPaths() {
		if !strings.HasSuffix(known, "/") {
			if path == known {
				return known
			}
			continue
		}
		name, below := strings.CutPrefix(path, known)
		if below && name != "" && !strings.Contains(name, "/") {
			return known
		}
	}
	return ""
}

// nearestPath returns the path a user probably meant: /vm/disks/root for /vm/disk/root.
func nearestPath(path string) string {
	directory, name := path, ""
	if parts := strings.SplitN(strings.TrimPrefix(path, PathRoot+"/"), "/", 2); len(parts) == 2 {
		directory, name = PathRoot+"/"+parts[0]+"/", parts[1]
	}
	near := Nearest(directory, KnownPaths())
	if strings.HasSuffix(near, "/") && name != "" {
		return near + name
	}
	return near
}

// disks makes the list of disks and CD-ROMs that exist: by path, or by an annotation with empty= or type=cdrom.
func (r *resolver) disks() {
	written := map[string]Disk{}
	for _, d := range r.m.Disks {
		written[d.Name] = d
	}
	found := map[string]Path{}
	claims := map[string]string{}
	var disks []Disk
	for _, path := range r.pod.Paths {
		d, ok := r.diskAt(path, written, found)
		if !ok {
			continue
		}
		if first, twice := claims[path.Claim]; twice && path.Claim != "" {
			r.errs = append(r.errs, Error{Key: path.Path, Text: fmt.Sprintf("%s: claim %s is also at %s", path.Path, path.Claim, first)})
		}
		claims[path.Claim] = path.Path
		disks = append(disks, d)
	}
	for _, d := range r.m.Disks {
		if _, exists := found[d.Name]; exists {
			continue
		}
		if d.Empty == 0 && d.Type != DiskTypeCDROM {
			r.fail("disk."+d.Name, noSuchDisk(d.Name, found))
			continue
		}
		disks = append(disks, d)
	}
	for i := range disks {
		r.completeDisk(&disks[i])
	}
	slices.SortFunc(disks, compareDisks)
	r.m.Disks = disks
}

// diskAt returns the disk at a path, or false where the path is none.
func (r *resolver) diskAt(path Path, written map[string]Disk, found map[string]Path) (Disk, bool) {
	kind := DiskTypeDisk
	name, isDisk := strings.CutPrefix(path.Path, PathDisks)
	if !isDisk {
		var isCDROM bool
		if name, isCDROM = strings.CutPrefix(path.Path, PathCDROMs); !isCDROM {
			return Disk{}, false
		}
		kind = DiskTypeCDROM
	}
	if name == "" || strings.Contains(name, "/") {
		return Disk{}, false
	}
	if wrong := deviceNameWrong("disk", name); wrong != "" {
		r.errs = append(r.errs, Error{Key: path.Path, Text: path.Path + ": " + wrong})
		return Disk{}, false
	}
	if other, twice := found[name]; twice {
		r.errs = append(r.errs, Error{Key: path.Path, Text: fmt.Sprintf("%s: disk %s is also at %s", path.Path, name, other.Path)})
		return Disk{}, false
	}
	found[name] = path
	d := written[name]
	if d.Name == "" {
		d.Name = name
	}
	if d.Empty > 0 {
		r.fail("disk."+name, fmt.Sprintf("%sdisk.%s: empty and a volume at %s exclude each other", Prefix, name, path.Path))
	}
	d.Path, d.Source = path.Path, path.Source
	if d.Type == "" {
		d.Type = kind
	}
	if path.ReadOnly && d.ReadOnly == nil && d.Overlay == "" && path.Source != SourceImage {
		yes := true
		d.ReadOnly = &yes
	}
	return d, true
}

// noSuchDisk is what an annotation is told whose disk does not exist; the disks that are mounted are listed, root first.
func noSuchDisk(name string, found map[string]Path) string {
	names := slices.SortedFunc(maps.Keys(found), func(a, b string) int {
		return cmp.Or(compareBool(a != RootDisk, b != RootDisk), strings.Compare(a, b))
	})
	list := strings.Join(names, ", ")
	if list == "" {
		list = "none is mounted below /vm/disks or /vm/cdroms"
	}
	return fmt.Sprintf("%sdisk.%s: no such disk: %s%s", Prefix, name, list, nearestSuffix(name, names))
}

// compareDisks orders disks before CD-ROMs, root first, then by name: the order without boot numbers (VM-056).
func compareDisks(a, b Disk) int {
	return cmp.Or(
		compareBool(a.Type == DiskTypeCDROM, b.Type == DiskTypeCDROM),
		compareBool(a.Name != RootDisk, b.Name != RootDisk),
		strings.Compare(a.Name, b.Name))
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

// completeDisk fills in the defaults of vm.md 2.3 and checks what needs them.
func (r *resolver) completeDisk(d *Disk) {
	key, no := "disk."+d.Name, false
	cdrom := d.Type == DiskTypeCDROM
	if d.Type == "" {
		d.Type = DiskTypeDisk
	}
	if cdrom && d.ReadOnly == nil {
		d.ReadOnly = orTrue(nil)
	}
	if d.ReadOnly == nil {
		d.ReadOnly = &no
	}
	r.diskBus(key, d)
	r.diskSerial(key, d)
	completeLayers(d)
	if d.Cache == "unsafe" && d.Empty == 0 && d.Overlay == OverlayOff && d.Source != SourceUnknown {
		r.optionValue(key, "cache", d.Cache, "only with overlay or empty")
	}
	d.Discard = orWord(d.Discard, "unmap")
	d.DetectZeroes = orWord(d.DetectZeroes, "off")
	d.Error = orWord(d.Error, "stop")
	d.IOThread = orWord(d.IOThread, "shared")
	r.diskQueues(key, d)
	r.emptyDisk(key, d)
}

func (r *resolver) diskSerial(key string, d *Disk) {
	if limit := serialLimit(d.Bus, d.Type); d.Serial == "" {
		d.Serial = DefaultSerial(d.Name, limit)
	} else if len(d.Serial) > limit && r.values[key] != nil && r.values[key].options["bus"] == "" {
		r.optionValue(key, "serial", d.Serial, fmt.Sprintf("%d characters, %s allows %d", len(d.Serial), d.Bus, limit))
	}
}

// completeLayers says what lies below the guest's disk: an overlay over images, raw content in claims.
func completeLayers(d *Disk) {
	if d.Overlay == "" {
		d.Overlay = OverlayOff
		if d.Source == SourceImage && d.Type != DiskTypeCDROM {
			d.Overlay = OverlayOn
		}
	}
	if d.Format == "" && d.Source != SourceImage && d.Empty == 0 {
		d.Format = "raw"
	}
}

func (r *resolver) diskBus(key string, d *Disk) {
	cdrom := d.Type == DiskTypeCDROM
	switch {
	case d.Bus == "virtio" && cdrom && r.values[key].options["type"] == "":
		r.optionValue(key, "bus", d.Bus, "there is no virtio CD-ROM; sata, scsi, usb")
	case d.Bus == "nvme" && cdrom && r.values[key].options["type"] == "":
		r.optionValue(key, "bus", d.Bus, "there is no NVMe CD-ROM; sata, scsi, usb")
	case d.Bus != "":
	case cdrom && strings.HasPrefix(r.m.Machine, "virt"):
		d.Bus = "scsi"
	case cdrom:
		d.Bus = "sata"
	default:
		d.Bus = "virtio"
	}
}

func (r *resolver) diskQueues(key string, d *Disk) {
	switch {
	case d.Queues > r.m.VCPUs:
		r.optionValue(key, "queues", fmt.Sprint(d.Queues), fmt.Sprintf("%d vCPUs", r.m.VCPUs))
	case d.Queues == 0 && d.Bus == "virtio":
		d.Queues = min(r.m.VCPUs, 8)
	}
}

// emptyDisk wants room in /vm/scratch for a throw-away disk.
func (r *resolver) emptyDisk(key string, d *Disk) {
	if d.Empty == 0 {
		return
	}
	i := slices.IndexFunc(r.pod.Paths, func(path Path) bool { return path.Path == PathScratch })
	switch {
	case i < 0:
		return // admission adds /vm/scratch; without it the launcher says what is missing
	case r.pod.Paths[i].Size > 0 && d.Empty > r.pod.Paths[i].Size:
		r.optionValue(key, "empty", r.values[key].options["empty"], "/vm/scratch has "+showBytes(r.pod.Paths[i].Size))
	}
}

// nics makes sure that the pod network has an entry and fills in defaults that do not need the node.
func (r *resolver) nics() {
	m := &r.m
	if !slices.ContainsFunc(m.NICs, func(n NIC) bool { return n.Name == PodNetwork }) && r.pod.Annotations[KeyNIC+PodNetwork] == "" {
		m.NICs = append([]NIC{{Name: PodNetwork}}, m.NICs...)
	}
	for i := range m.NICs {
		n := &m.NICs[i]
		if n.Binding == "" {
			n.Binding = r.defaultBinding(n.Name)
		}
		n.Model = orWord(n.Model, "virtio")
		if n.Queues == 0 && n.Model == "virtio" {
			n.Queues = min(m.VCPUs, 16)
		}
		n.Link = orWord(n.Link, "up")
		n.Vhost = orWord(n.Vhost, "auto")
	}
	slices.SortFunc(m.NICs, func(a, b NIC) int {
		return cmp.Or(compareBool(a.Name != PodNetwork, b.Name != PodNetwork), strings.Compare(a.Name, b.Name))
	})
}

func (r *resolver) defaultBinding(nic string) Binding {
	binding, otherwise := r.config.Network.SecondaryBinding, BindingWire
	if nic == PodNetwork {
		binding, otherwise = r.config.Network.DefaultBinding, BindingMasquerade
	}
	return Binding(orWord(string(binding), string(otherwise)))
}

// bootOrder lists the devices that firmware tries: the numbered ones; without any, disk.root, the other disks, the
// CD-ROMs (VM-056).
func (r *resolver) bootOrder() []BootDevice {
	type numbered struct {
		n int
		d BootDevice
	}
	var all []numbered
	for _, d := range r.m.Disks {
		all = append(all, numbered{d.Boot, BootDevice{"disk", d.Name}})
	}
	for _, n := range r.m.NICs {
		all = append(all, numbered{n.Boot, BootDevice{"nic", n.Name}})
	}
	for _, d := range r.m.Devices {
		all = append(all, numbered{d.Boot, BootDevice{"device", d.Name}})
	}
	explicit := slices.DeleteFunc(slices.Clone(all), func(x numbered) bool { return x.n == 0 })
	if len(explicit) == 0 {
		var order []BootDevice
		for _, d := range r.m.Disks {
			order = append(order, BootDevice{"disk", d.Name})
		}
		return order
	}
	slices.SortStableFunc(explicit, func(a, b numbered) int { return cmp.Compare(a.n, b.n) })
	order := make([]BootDevice, len(explicit))
	for i, x := range explicit {
		order[i] = x.d
	}
	for _, x := range all {
		if x.n == 0 && x.d.Kind == "disk" {
			r.warn(x.d, NoBootNumber)
		}
	}
	r.warnOneHardDisk(order)
	return order
}

func (r *resolver) warn(d BootDevice, text string) {
	r.m.Warnings = append(r.m.Warnings, Prefix+d.String()+": "+text)
}

// warnOneHardDisk tells of numbered disks that BIOS leaves out: SeaBIOS puts one entry for all hard disks into its boot
// order, which stands for the first of them (src/boot.c, add_bev).
func (r *resolver) warnOneHardDisk(order []BootDevice) {
	if r.m.Firmware.Kind != FirmwareBIOS {
		return
	}
	var first string
	for _, d := range order {
		hard := d.Kind == "disk" && !slices.ContainsFunc(r.m.Disks, func(x Disk) bool { return x.Name == d.Name && x.Type == DiskTypeCDROM })
		switch {
		case !hard:
		case first == "":
			first = d.String()
		default:
			r.warn(d, OneHardDisk(first))
		}
	}
}
