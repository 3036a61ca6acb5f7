package dhcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"podvirt.dev/internal/nl"
	"podvirt.dev/internal/require"
)

// helperEnv makes TestServer the server of the service tap it names, in a process that is another user without
// capabilities.
const helperEnv = "PODVIRT_TEST_DHCP_TAP"

// configEnv names the configuration of that server.
const configEnv = "PODVIRT_TEST_DHCP_CONFIG"

func configs() map[string]Config {
	return map[string]Config{"": masquerade(), "routed": routed(), "second": second(), "beside": beside()}
}

func TestServer(t *testing.T) {
	name := os.Getenv(helperEnv)
	if name == "" {
		return // only the process of another test serves
	}
	ctx, stop := signal.NotifyContext(t.Context(), syscall.SIGTERM)
	defer stop()
	must(t, becomeLauncher())
	link, err := nl.OpenTap(name, 0)
	must(t, err)
	server, err := New(configs()[os.Getenv(configEnv)], link)
	must(t, err)
	fmt.Fprintln(os.Stdout, "ready")
	must(t, server.Run(ctx))
}

// becomeLauncher leaves the process as container vm is: a device node that everybody may open, as the device plugin
// makes it, and uid 107 without capabilities. The mount namespace is the process's own.
func becomeLauncher() error {
	const tun, node = "/dev/net/tun", "/tmp/tun"
	return errors.Join(
		unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
		unix.Mount("tmpfs", "/tmp", "tmpfs", 0, ""),
		unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))),
		os.Chmod(node, 0o666),
		unix.Mount(node, tun, "", unix.MS_BIND, ""),
		syscall.Setgroups(nil), syscall.Setgid(107), syscall.Setuid(107),
	)
}

// network is a Pod's namespace with tap0 and svc0 and a guest's namespace with eth0; frames between tap0 and the
// guest's eth0 are carried by the test, as QEMU does.
type network struct {
	pod, guest netns.NsHandle
}

func newNetwork(t *testing.T) network {
	t.Helper()
	require.Root(t)
	runtime.LockOSThread() // never unlocked: the thread, which changes its namespace, dies with the test
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netns.Set(before); _ = before.Close() })
	var n network
	for _, space := range []*netns.NsHandle{&n.pod, &n.guest} {
		if *space, err = netns.New(); err != nil {
			require.Feature(t, false, "network namespaces: "+err.Error())
		}
		t.Cleanup(func() { _ = space.Close() })
	}
	n.enter(t, n.pod)
	owner := uint32(107)
	tap := nl.Tap{UID: &owner, GID: &owner}
	for _, name := range []string{"tap0", "svc0"} {
		must(t, nl.AddTap(name, tap))
	}
	podEnd := openTap(t, "tap0")
	h := handle(t)
	guestTap, service := setUp(t, h, "tap0", gatewayMAC), setUp(t, h, "svc0", nil)
	for _, address := range []string{"10.0.2.1/24", "fd10:0:2::1/120"} { // fe80::ff:fe00:0 is the kernel's
		must(t, h.AddAddress(guestTap, netip.MustParsePrefix(address)))
	}
	redirect(t, h, guestTap, service)

	n.enter(t, n.guest)
	guestEnd := openTap(t, "eth0")
	setUp(t, handle(t), "eth0", guestMAC)
	go carry(podEnd, guestEnd)
	go carry(guestEnd, podEnd)
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (n network) enter(t *testing.T, space netns.NsHandle) {
	t.Helper()
	must(t, netns.Set(space))
}

func handle(t *testing.T) *nl.Handle {
	t.Helper()
	h, err := nl.Open()
	must(t, err)
	t.Cleanup(h.Close)
	return h
}

func openTap(t *testing.T, name string) *os.File {
	t.Helper()
	file, err := nl.OpenTap(name, 0)
	must(t, err)
	t.Cleanup(func() { _ = file.Close() })
	return file
}

func setUp(t *testing.T, h *nl.Handle, name string, mac net.HardwareAddr) int {
	t.Helper()
	link, err := h.Link(name)
	must(t, err)
	must(t, h.Set(link.Index, nl.Changes{MAC: mac, Up: true}))
	return link.Index
}

// redirect takes DHCPv4, DHCPv6 and router solicitations off the guest's tap, and sends what the server writes to the
// guest.
func redirect(t *testing.T, h *nl.Handle, guestTap, service int) {
	t.Helper()
	must(t, h.AddClsact(guestTap))
	must(t, h.AddClsact(service))
	udp4 := nl.Key{Offset: 8, Mask: 0x00ff0000, Value: 17 << 16}
	udp6 := nl.Key{Offset: 4, Mask: 0x0000ff00, Value: 17 << 8}
	icmp6 := nl.Key{Offset: 4, Mask: 0x0000ff00, Value: 58 << 8}
	for i, r := range []nl.Redirect{
		{From: guestTap, To: service, Protocol: unix.ETH_P_IP, Keys: []nl.Key{udp4, {Offset: 20, Mask: 0xffff, Value: portServer4}}},
		{From: guestTap, To: service, Protocol: unix.ETH_P_IPV6, Keys: []nl.Key{udp6, {Offset: 40, Mask: 0xffff, Value: portServer6}}},
		{From: guestTap, To: service, Protocol: unix.ETH_P_IPV6, Keys: []nl.Key{icmp6, {Offset: 40, Mask: 0xff000000, Value: 133 << 24}}},
		{From: service, To: guestTap, Protocol: unix.ETH_P_ALL},
	} {
		r.Priority = uint16(i + 1)
		must(t, h.AddRedirect(r))
	}
}

func carry(from, to *os.File) {
	buffer := make([]byte, 1<<16)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return // the test has closed it
		}
		_, _ = to.Write(buffer[:n]) // the other end may be down
	}
}

// serve runs the server in the Pod's namespace as uid 107 without any capability.
func (n network) serve(t *testing.T) {
	t.Helper()
	n.serveAs(t, "")
}

func (n network) serveAs(t *testing.T, config string) (pid int) {
	t.Helper()
	n.enter(t, n.pod)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestServer$")
	cmd.Env = append(os.Environ(), helperEnv+"=svc0", configEnv+"="+config)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() })
	ready := make([]byte, 5)
	if _, err := out.Read(ready); err != nil || string(ready) != "ready" {
		t.Fatalf("server: %q, %v", ready, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	must(t, err)
	if !strings.Contains(string(status), "CapEff:\t0000000000000000") {
		t.Fatalf("the server has capabilities:\n%s", status)
	}
	return cmd.Process.Pid
}

// script writes what a DHCP client's script is told into a file.
func script(t *testing.T) (program, told string) {
	t.Helper()
	directory := t.TempDir()
	program, told = filepath.Join(directory, "script"), filepath.Join(directory, "told")
	must(t, os.WriteFile(program, []byte("#!/bin/sh\necho \"event=$1\" >>"+told+"\nset >>"+told+"\n"), 0o755))
	return program, told
}

// runUntil runs a client that stays in the guest's namespace until its script was told something.
func (n network) runUntil(t *testing.T, told, something, name string, arguments ...string) {
	t.Helper()
	path, err := exec.LookPath(name)
	require.Feature(t, err == nil, name)
	n.enter(t, n.guest)
	var out bytes.Buffer
	cmd := exec.Command(path, arguments...)
	cmd.Env = clientEnv()
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", name, out.String())
		}
	})
	waitFor(t, name+" to tell "+something, func() bool {
		text, err := os.ReadFile(told)
		return err == nil && strings.Contains(string(text), something)
	})
}

// run runs a client in the guest's namespace.
func (n network) run(t *testing.T, name string, arguments ...string) {
	t.Helper()
	path, err := exec.LookPath(name)
	require.Feature(t, err == nil, name)
	n.enter(t, n.guest)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, arguments...)
	cmd.Env = clientEnv()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(arguments, " "), err, out)
	}
}

// clientEnv is all that a client, and so its script, finds in its environment beside what it is told.
func clientEnv() []string { return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"} }

func wantTold(t *testing.T, file string, wants ...string) {
	t.Helper()
	told, err := os.ReadFile(file)
	must(t, err)
	for _, want := range wants {
		if !strings.Contains(string(told), want) {
			t.Errorf("the client was not told %s:\n%s", want, told)
		}
	}
}

func TestUdhcpc(t *testing.T) {
	n := newNetwork(t)
	n.serve(t)
	program, told := script(t)
	n.run(t, "busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-s", program, "-O", "search", "-O", "mtu")
	wantTold(t, told, "event=bound", "ip='10.0.2.2'", "mask='24'", "router='10.0.2.1'", "dns='10.96.0.10'", "hostname='db1'",
		"search='shop.svc.cluster.local svc.cluster.local cluster.local'", "mtu='1450'", "lease='86313600'", "serverid='10.0.2.1'")
}

func TestUdhcpc6(t *testing.T) {
	n := newNetwork(t)
	if out, _ := exec.Command("busybox", "udhcpc6", "--help").CombinedOutput(); bytes.Contains(out, []byte("applet not found")) {
		t.Skip("this busybox has no udhcpc6; the tiny guest, whose busybox is newer, asks with it at level cluster")
	}
	n.serve(t)
	n.waitForLinkLocal(t)
	program, told := script(t)
	n.run(t, "busybox", "udhcpc6", "-i", "eth0", "-f", "-q", "-n", "-s", program)
	wantTold(t, told, "event=bound", "ipv6='fd10:0000:0002:0000:0000:0000:0000:0002'", "dns='fd00:0096:0000:0000:0000:0000:0000:000a'",
		"search='shop.svc.cluster.local svc.cluster.local cluster.local'")
}

func TestDhclient(t *testing.T) {
	n := newNetwork(t)
	n.serve(t)
	for _, row := range []struct {
		family string
		wants  []string
	}{
		{"-4", []string{"new_ip_address='10.0.2.2'", "new_subnet_mask='255.255.255.0'", "new_routers='10.0.2.1'",
			"new_interface_mtu='1450'"}},
		{"-6", []string{"new_ip6_address='fd10:0:2::2'", "new_dhcp6_name_servers='fd00:96::a'",
			"new_dhcp6_domain_search='shop.svc.cluster.local. svc.cluster.local. cluster.local.'"}},
	} {
		t.Run(row.family, func(t *testing.T) {
			if row.family == "-6" {
				n.waitForLinkLocal(t)
			}
			program, told := script(t)
			dir := t.TempDir()
			n.runUntil(t, told, row.wants[0], "dhclient", row.family, "-1", "-d", "-sf", program, "-cf", "/dev/null",
				"-lf", filepath.Join(dir, "leases"), "-pf", filepath.Join(dir, "pid"), "eth0")
			wantTold(t, told, row.wants...)
		})
	}
}

// waitForLinkLocal waits until the guest's link-local address is past duplicate address detection.
func (n network) waitForLinkLocal(t *testing.T) {
	t.Helper()
	n.enter(t, n.guest)
	h := handle(t)
	link, err := h.Link("eth0")
	must(t, err)
	waitFor(t, "a link-local address", func() bool {
		addresses, err := h.Addresses(link.Index)
		must(t, err)
		for _, a := range addresses {
			if a.Prefix.Addr().IsLinkLocalUnicast() && a.Prefix.Addr().Is6() && !a.Tentative {
				return true
			}
		}
		return false
	})
}

// TestKernelTakesAdvertisement has the guest's kernel solicit, verify the checksum, and install what it is told.
func TestKernelTakesAdvertisement(t *testing.T) {
	n := newNetwork(t)
	n.serve(t)
	n.enter(t, n.guest)
	h := handle(t)
	link, err := h.Link("eth0")
	must(t, err)
	waitFor(t, "the default route and the prefix of the advertisement", func() bool {
		routes, err := h.Routes()
		must(t, err)
		var router, prefix bool
		for _, r := range routes {
			router = router || r.Destination.Bits() == 0 && r.Gateway == netip.MustParseAddr("fe80::ff:fe00:0")
			prefix = prefix || r.Destination == netip.MustParsePrefix("fd10:0:2::/120") && !r.Gateway.IsValid()
		}
		return router && prefix
	})
	addresses, err := h.Addresses(link.Index)
	must(t, err)
	for _, a := range addresses {
		if a.Prefix.Addr().Is6() && !a.Prefix.Addr().IsLinkLocalUnicast() {
			t.Errorf("the guest made up %s from a prefix that is not autonomous", a.Prefix)
		}
	}
	mtu, err := os.ReadFile("/proc/thread-self/net/if_inet6") // proves which namespace /proc shows
	must(t, err)
	if !strings.Contains(string(mtu), "eth0") {
		t.Fatalf("not the guest's namespace:\n%s", mtu)
	}
}

func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(time.Minute)
	for !condition() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}
