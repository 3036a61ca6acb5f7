// Package launcher tests the built launcher against QEMU and libvirt of its image, without Kubernetes: each VM runs in
// namespaces of its own over the image's root file system, as uid 107 without any capability, on a Pod made of files.
// The guest is the tiny one, under emulation.
package launcher

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"podvirt.dev/internal/nicalias"
	"podvirt.dev/internal/nl"
)

// userID is uid and gid of every launcher.
const userID = 107

// containerEnv marks the process that becomes the container; it holds the containerSpec.
const containerEnv = "PODVIRT_TEST_CONTAINER"

// containerSpec is one container.
type containerSpec struct {
	Root   string            // directory that becomes /
	Mounts map[string]string // path in the container: directory or file on the machine
	Argv   []string
	// Devices are made anew at each path, as the device of the machine that is named, as a container runtime does.
	Devices  map[string]string
	ReadOnly bool   // the root file system, as in a VM Pod; else /tmp can be written
	Cgroup   string // directory of the memory cgroup that everything of the container is in; empty: the test's own
	Tap      bool   // the network of a masqueraded NIC, as the CNI plugin leaves it, without NAT; of DHCP, version 4 alone
	Single   bool   // the tap has one queue, as for every model but virtio
	Held     bool   // the container's first process has a queue of the tap open
	NoTun    bool   // there is no /dev/net/tun
	Host     bool   // the network is the machine's own
	CPUs     []int  // those that the container may use, as the kubelet's CPU manager gives them; empty: all
}

// confine keeps this thread, which becomes the container's first process, on some CPUs; none: on all.
func confine(cpus []int) error {
	if len(cpus) == 0 {
		return nil
	}
	runtime.LockOSThread() // it stays this thread until it executes the container's program
	var set unix.CPUSet
	for _, cpu := range cpus {
		set.Set(cpu)
	}
	return unix.SchedSetaffinity(0, &set)
}

// enter makes this process, which has its own mount, PID and network namespace, the first one of the container. It
// returns only with an error.
func enter(text string) error {
	var spec containerSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return err
	}
	if spec.Cgroup != "" {
		if err := os.WriteFile(filepath.Join(spec.Cgroup, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return err
		}
	}
	if err := confine(spec.CPUs); err != nil {
		return err
	}
	if err := makeNetwork(spec); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if err := mountAll(spec); err != nil {
		return err
	}
	if err := os.Chdir(spec.Root); err != nil {
		return err
	}
	if err := makeRoot(); err != nil {
		return err
	}
	if err := dropRights(); err != nil {
		return err
	}
	env := []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin"}
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "PODVIRT_STOPPING=") {
			env = append(env, e)
		}
	}
	return unix.Exec(spec.Argv[0], spec.Argv, env)
}

// makeRoot makes the working directory the root. From the first root file system of a kernel nobody can pivot.
func makeRoot() error {
	err := unix.PivotRoot(".", ".")
	switch {
	case errors.Is(err, unix.EINVAL):
		return errors.Join(unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."))
	case err != nil:
		return fmt.Errorf("pivot_root: %w", err)
	}
	return unix.Unmount(".", unix.MNT_DETACH)
}

// The guest's address and that of the Pod's end.
const (
	guestAddress = "10.0.2.2/24"
	podAddress   = "10.0.2.1/24"
	guestMAC     = "02:00:00:00:00:01"
	guestMTU     = 1450
)

// makeNetwork makes the network that is asked for.
func makeNetwork(spec containerSpec) error {
	if !spec.Tap {
		return nil
	}
	if err := makeTaps(!spec.Single); err != nil || !spec.Held {
		return err
	}
	return hold("tap0")
}

// makeTaps makes eth0, tap0 and svc0 (network.md 2.8).
func makeTaps(multiQueue bool) error {
	h, err := nl.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	mac, err := net.ParseMAC(guestMAC)
	if err != nil {
		return err
	}
	alias, err := nicalias.NIC{
		Name: "default", Interface: "eth0", Binding: "masquerade", MAC: mac, Guest4: netip.MustParsePrefix(guestAddress),
		MultiQueue: multiQueue, PortBase: 49152,
	}.Encode()
	if err != nil {
		return err
	}
	uid := uint32(userID)
	return errors.Join(
		h.AddBridge("eth0"), // any interface will do
		nl.AddTap("tap0", nl.Tap{UID: &uid, MultiQueue: multiQueue}),
		nl.AddTap("svc0", nl.Tap{UID: &uid}),
		set(h, "tap0", nl.Changes{Alias: alias, MTU: guestMTU, Up: true}),
		set(h, "svc0", nl.Changes{Alias: nicalias.Service(), Up: true}),
		address(h, "tap0", podAddress),
		redirectDHCP(h),
	)
}

// redirectDHCP hands what the guest sends to port 67 to the launcher, and what the launcher writes to the guest.
func redirectDHCP(h *nl.Handle) error {
	tap, err := h.Link("tap0")
	if err != nil {
		return err
	}
	service, err := h.Link("svc0")
	if err != nil {
		return err
	}
	server := nl.Key{Offset: 20, Mask: 0xffff, Value: 67}
	return errors.Join(
		h.AddClsact(tap.Index), h.AddClsact(service.Index),
		h.AddRedirect(nl.Redirect{From: tap.Index, To: service.Index, Protocol: unix.ETH_P_IP, Priority: 1, Keys: []nl.Key{server}}),
		h.AddRedirect(nl.Redirect{From: service.Index, To: tap.Index, Protocol: unix.ETH_P_ALL, Priority: 1}),
	)
}

// hold opens a queue of a tap that stays open in what this process becomes.
func hold(tap string) error {
	queue, err := nl.OpenTap(tap, unix.IFF_MULTI_QUEUE)
	if err != nil {
		return err
	}
	_, err = unix.Dup(int(queue.Fd())) // without O_CLOEXEC
	return err
}

func set(h *nl.Handle, name string, c nl.Changes) error {
	link, err := h.Link(name)
	if err != nil {
		return err
	}
	return h.Set(link.Index, c)
}

func address(h *nl.Handle, name, prefix string) error {
	link, err := h.Link(name)
	if err != nil {
		return err
	}
	return h.AddAddress(link.Index, netip.MustParsePrefix(prefix))
}

func mountAll(spec containerSpec) error {
	root := spec.Root
	steps := []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount(root, root, "", unix.MS_BIND|unix.MS_REC, "") },
		func() error { return unix.Mount("proc", root+"/proc", "proc", 0, "") },
		func() error { return unix.Mount("/sys", root+"/sys", "", unix.MS_BIND|unix.MS_REC, "") },
		func() error { return unix.Mount("dev", root+"/dev", "tmpfs", 0, "mode=755") },
		func() error {
			if spec.ReadOnly {
				return unix.Mount("", root, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
			}
			return unix.Mount("tmp", root+"/tmp", "tmpfs", 0, "mode=1777")
		},
		func() error { return makeDevices(root+"/dev", !spec.NoTun) },
		func() error { return unix.Mount("vm", root+"/vm", "tmpfs", 0, "mode=755") },
	}
	for _, s := range steps {
		if err := s(); err != nil {
			return err
		}
	}
	targets := make([]string, 0, len(spec.Mounts))
	for target := range spec.Mounts {
		targets = append(targets, target)
	}
	slices.Sort(targets)
	for _, target := range targets {
		if err := bind(spec.Mounts[target], filepath.Join(root, target)); err != nil {
			return fmt.Errorf("mounting %s: %w", target, err)
		}
	}
	for target, source := range spec.Devices {
		if err := makeDevice(filepath.Join(root, target), source); err != nil {
			return fmt.Errorf("device %s: %w", target, err)
		}
	}
	return nil
}

func makeDevice(target, source string) error {
	var st unix.Stat_t
	if err := unix.Stat(source, &st); err != nil {
		return err
	}
	return errors.Join(
		os.MkdirAll(filepath.Dir(target), 0o755), unix.Mknod(target, st.Mode&unix.S_IFMT|0o660, int(st.Rdev)), os.Chown(target, userID, userID),
	)
}

// bind mounts a file or directory; the target is made in the file systems of memory that mountAll has mounted.
func bind(source, target string) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else {
		err = errors.Join(os.MkdirAll(filepath.Dir(target), 0o755), os.WriteFile(target, nil, 0o666))
	}
	if err != nil {
		return err
	}
	return unix.Mount(source, target, "", unix.MS_BIND, "")
}

func makeDevices(dev string, withTun bool) error {
	for _, d := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err := bind("/dev/"+d, filepath.Join(dev, d)); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(dev, "shm"), 0o777|os.ModeSticky); err != nil || !withTun {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dev, "net"), 0o755); err != nil {
		return err
	}
	tun := filepath.Join(dev, "net/tun") // the container's own node, and its user's, as CDI makes it
	return errors.Join(unix.Mknod(tun, unix.S_IFCHR|0o660, int(unix.Mkdev(10, 200))), os.Chown(tun, userID, userID))
}

// dropRights leaves what container vm has under the restricted Pod Security Standard.
func dropRights() error {
	for c := range uintptr(unix.CAP_LAST_CAP + 1) {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(userID), syscall.Setuid(userID)); err != nil {
		return err
	}
	// A change of user takes this back: the container dies with the test.
	return unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
}
