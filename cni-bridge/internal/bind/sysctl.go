package bind

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"podvirt.dev/cni-bridge/internal/fault"
	"podvirt.dev/cni-bridge/internal/journal"
)

// procSys is the tree of kernel settings; what is below net/ belongs to the namespace of the thread that opens it.
const procSys = "/proc/sys"

// sysctls returns the settings of the namespace that a masqueraded NIC needs, with their values now.
//   - IPv4 forwards by the setting of the receiving interface, IPv6 by the one of all (net/ipv6/ip6_output.c). Turning the
//     latter on makes interfaces forget routes learned by router advertisement unless accept_ra is 2.
//   - Redirects would tell the guest to go around the gateway when it calls its own pod IP.
func sysctls(nic NIC) ([]journal.Sysctl, error) {
	type setting struct{ path, value string }
	var wanted []setting
	if nic.V4.On() {
		wanted = append(wanted,
			setting{"net/ipv4/conf/" + nic.Interface + "/forwarding", "1"},
			setting{"net/ipv4/conf/all/send_redirects", "0"})
	}
	if nic.V6.On() {
		path := "net/ipv6/conf/" + nic.Interface + "/accept_ra"
		now, err := read(path)
		if err != nil {
			return nil, fault.Wrap(fault.Kernel, "sysctls", err)
		}
		if now == "1" {
			wanted = append(wanted, setting{path, "2"})
		}
		wanted = append(wanted, setting{"net/ipv6/conf/all/forwarding", "1"})
	}
	out := make([]journal.Sysctl, 0, len(wanted))
	for _, w := range wanted {
		now, err := read(w.path)
		if err != nil {
			return nil, fault.Wrap(fault.Kernel, "sysctls", err)
		}
		out = append(out, journal.Sysctl{Path: w.path, Before: now, After: w.value})
	}
	return out, nil
}

// quiet keeps the Pod's stack from taking anything from the guest that configures it, and without IPv6 from being
// reachable by it at all. The settings go with the tap.
func quiet(name string, ipv6 bool) error {
	v4, v6 := "net/ipv4/conf/"+name+"/", "net/ipv6/conf/"+name+"/"
	values := [][2]string{
		{v4 + "forwarding", "1"}, {v4 + "accept_redirects", "0"}, {v4 + "send_redirects", "0"},
		{v6 + "accept_ra", "0"}, {v6 + "accept_redirects", "0"}, {v6 + "addr_gen_mode", "1"},
	}
	if !ipv6 {
		values = append(values, [2]string{v6 + "disable_ipv6", "1"})
	}
	for _, v := range values {
		err := write(v[0], v[1])
		if !ipv6 && errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func set(settings []journal.Sysctl) error {
	for _, s := range settings {
		if s.Before == s.After {
			continue
		}
		if err := write(s.Path, s.After); err != nil {
			return err
		}
	}
	return nil
}

// restore puts values back in reverse order; a setting whose interface is gone needs nothing.
func restore(settings []journal.Sysctl) error {
	var errs []error
	for _, s := range slices.Backward(settings) {
		if s.Before == s.After {
			continue
		}
		if err := write(s.Path, s.Before); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func read(path string) (string, error) {
	data, err := os.ReadFile(filepath.Join(procSys, path))
	if err != nil {
		return "", fmt.Errorf("sysctl: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

func write(path, value string) error {
	if err := os.WriteFile(filepath.Join(procSys, path), []byte(value), 0o644); err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	return nil
}
