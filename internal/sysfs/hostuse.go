package sysfs

import (
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// HostUse returns why the host itself needs a PCI function, by address: it carries the default route, is part of a
// bridge or bond, holds a mounted file system or swap space, or shows the console. Processes are seen by /proc of the
// host.
func HostUse(fsys FS, devices []PCIDevice) map[string]string {
	routes, mounted := routeInterfaces(fsys), usedNumbers(fsys)
	use := map[string]string{}
	for _, d := range devices {
		for _, name := range d.Interfaces {
			if routes[name] {
				use[d.Address] = "default route by " + name
			} else if master, err := fsys.ReadLink(path.Join("sys/class/net", name, "master")); err == nil {
				use[d.Address] = name + " is part of " + path.Base(master)
			}
		}
		for _, name := range d.Blocks {
			if why := blockUse(fsys, name, mounted); why != "" {
				use[d.Address] = why
			}
		}
		if _, err := fs.Stat(fsys, path.Join(pciDir, d.Address, "graphics")); err == nil && d.BootVGA {
			use[d.Address] = "console"
		}
	}
	return use
}

// blockUse says why a disk or one of its partitions is in use, or "".
func blockUse(fsys FS, disk string, used map[string]string) string {
	dirs := []string{path.Join("sys/block", disk)}
	names, _ := entries(fsys, dirs[0]) // a disk that is gone is not in use
	for _, name := range names {
		if strings.HasPrefix(name, disk) {
			dirs = append(dirs, path.Join(dirs[0], name))
		}
	}
	for _, dir := range dirs {
		if number, err := attribute(fsys, path.Join(dir, "dev")); err == nil && used[number] != "" {
			return used[number]
		}
		if holders, _ := entries(fsys, path.Join(dir, "holders")); len(holders) > 0 {
			return path.Base(dir) + " is part of " + holders[0]
		}
	}
	return ""
}

// usedNumbers returns what block devices are used for, by MAJOR:MINOR.
func usedNumbers(fsys FS) map[string]string {
	used := map[string]string{}
	mounts, _ := Text(fsys, "proc/1/mountinfo") // proc(5); absent where /proc is not the host's
	for line := range strings.Lines(mounts) {
		if fields := strings.Fields(line); len(fields) > 4 {
			used[fields[2]] = "mounted at " + fields[4]
		}
	}
	swaps, _ := Text(fsys, "proc/swaps")
	for line := range strings.Lines(swaps) {
		name, isFile := strings.CutPrefix(strings.Fields(line + " -")[0], "/dev/")
		if !isFile {
			continue
		}
		number, err := attribute(fsys, path.Join("sys/class/block", name, "dev"))
		if err == nil {
			used[number] = "swap"
		}
	}
	return used
}

// routeInterfaces returns the interfaces of default routes (Linux, net/ipv4/fib_trie.c and net/ipv6/route.c write them).
func routeInterfaces(fsys FS) map[string]bool {
	found := map[string]bool{}
	v4, _ := Text(fsys, "proc/1/net/route")
	for line := range strings.Lines(v4) {
		if f := strings.Fields(line); len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" {
			found[f[0]] = true
		}
	}
	v6, _ := Text(fsys, "proc/1/net/ipv6_route")
	for line := range strings.Lines(v6) {
		f := strings.Fields(line)
		if len(f) > 9 && strings.Trim(f[0], "0") == "" && f[1] == "00" && f[9] != "lo" && slices.ContainsFunc(f[8:9], isUp) {
			found[f[9]] = true
		}
	}
	return found
}

// isUp says whether the flags of an IPv6 route hold RTF_UP.
func isUp(flags string) bool {
	n, err := strconv.ParseUint(flags, 16, 32)
	return err == nil && n&1 != 0
}
