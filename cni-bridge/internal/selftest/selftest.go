// Package selftest tries, in a network namespace that ends with it, everything a VM Pod will need from this node's
// kernel (NW-112): it is a whole ADD, CHECK and DEL of the real plugin.
package selftest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/containernetworking/cni/pkg/skel"
	"golang.org/x/sys/unix"

	"podvirt.dev/api"
	"podvirt.dev/cni-bridge/internal/netconf"
	"podvirt.dev/cni-bridge/internal/plugin"
	"podvirt.dev/internal/nl"
)

// IsolatedFlag makes the command the part of itself that runs among mounts of its own.
const IsolatedFlag = "isolated"

// Run returns nil when the node can give VMs a network, else what cannot be done. It starts this program again with
// [IsolatedFlag], since mounts can be changed for a whole process only, not for threads that Go made before.
func Run(ctx context.Context, program string, output io.Writer) error {
	child := exec.CommandContext(ctx, program, "selftest", "--"+IsolatedFlag)
	child.Stdout, child.Stderr = output, output
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if err := child.Run(); err != nil {
		return fmt.Errorf("this node cannot give VMs a network: %w", err)
	}
	return nil
}

// Isolated is Run's other half.
func Isolated(ctx context.Context) (err error) {
	if err := writableSysctls(); err != nil {
		return err
	}
	stateDir, err := os.MkdirTemp("", "podvirt-selftest-")
	if err != nil {
		return fmt.Errorf("selftest: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(stateDir)) }()
	result := make(chan error, 1)
	go func() {
		// The thread is not unlocked: Go ends it with the goroutine, and the namespace with it.
		runtime.LockOSThread()
		result <- attach(ctx, stateDir)
	}()
	return <-result
}

// attach runs on a thread of its own, which it takes away from the node's network.
func attach(ctx context.Context, stateDir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("making a scratch namespace: %w", err)
	}
	if err := scratchPod(); err != nil {
		return err
	}
	path := fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
	var out bytes.Buffer
	funcs := plugin.Plugin{Out: &out}.Funcs(ctx)
	add, err := arguments(stateDir, path, json.RawMessage(`{"cniVersion":"1.1.0","interfaces":[],"ips":[],"dns":{}}`))
	if err != nil {
		return err
	}
	if err := funcs.Add(add); err != nil {
		return fmt.Errorf("attaching a VM: %w", err)
	}
	check, err := arguments(stateDir, path, out.Bytes())
	if err != nil {
		return err
	}
	if err := errors.Join(funcs.Check(check), funcs.Del(check)); err != nil {
		return fmt.Errorf("checking and detaching a VM: %w", err)
	}
	return nil
}

// writableSysctls gives the process a /proc of its own: that of a container without privilege is read-only below sys.
func writableSysctls() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting a writable /proc: %w", err)
	}
	return nil
}

// scratchPod makes what a CNI leaves in a Pod: eth0, here a tap, with an address of each family.
func scratchPod() error {
	h, err := nl.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := nl.AddTap("eth0", nl.Tap{}); err != nil {
		return err
	}
	eth0, err := h.Link("eth0")
	if err != nil {
		return err
	}
	if err := h.Set(eth0.Index, nl.Changes{Up: true}); err != nil {
		return err
	}
	if err := h.AddAddress(eth0.Index, netip.MustParsePrefix("192.0.2.2/24")); err != nil {
		return err
	}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return nil // a kernel without IPv6 serves IPv4 Pods
	}
	return h.AddAddress(eth0.Index, netip.MustParsePrefix("2001:db8::2/64"))
}

func arguments(stateDir, netns string, previous json.RawMessage) (*skel.CmdArgs, error) {
	data, err := json.Marshal(map[string]any{
		"cniVersion": "1.1.0", "name": "selftest", "type": api.CNIType, "mode": netconf.ModePod, "stateDir": stateDir, "prevResult": previous,
		"runtimeConfig": map[string]any{netconf.Annotations: map[string]string{api.KeyVM: "selftest"}},
	})
	if err != nil {
		return nil, fmt.Errorf("encoding the configuration: %w", err)
	}
	return &skel.CmdArgs{
		ContainerID: "selftest", Netns: netns, IfName: "eth0", StdinData: data, Args: "K8S_POD_NAMESPACE=selftest;K8S_POD_NAME=selftest",
	}, nil
}
