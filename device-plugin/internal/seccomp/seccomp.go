// Package seccomp makes the profile podvirt/launcher.json for VM Pods that need what the runtime's default profile
// blocks (vm.md 2.12): binding memory to a NUMA cell, post-copy, io_uring, AF_VSOCK, and passt's user namespace.
package seccomp

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/hostfile"
)

//go:generate sh -c "go -C ../../../test/programs/containerd run ./seccomp > default.json"

// runtimeDefault is containerd's default profile for a process without capabilities, as of the release that
// test/programs/containerd names. It was taken on amd64; names that an architecture does not have are ignored there.
//
//go:embed default.json
var runtimeDefault []byte

// Version stands inside the file. It is raised whenever the content changes, and a profile is only ever widened as long
// as VMs of an older version may run.
const Version = 1

// profile is the file: what the runtime reads, and the version, which it ignores.
type profile struct {
	specs.LinuxSeccomp
	Version int `json:"podvirtVersion"`
}

// File returns the profile as a file below the kubelet's seccomp directory, for one architecture in Go's spelling.
func File(dir, goarch string) (hostfile.File, error) {
	p := profile{Version: Version}
	if err := json.Unmarshal(runtimeDefault, &p.LinuxSeccomp); err != nil {
		return hostfile.File{}, fmt.Errorf("seccomp profile: %w", err)
	}
	p.Architectures = architectures(goarch)
	p.Syscalls = append(p.Syscalls, additions()...)
	content, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		return hostfile.File{}, fmt.Errorf("seccomp profile: %w", err)
	}
	path := filepath.Join(dir, filepath.FromSlash(api.LocalhostProfile))
	return hostfile.File{Path: path, Content: append(content, '\n'), Mode: 0o644}, nil
}

func additions() []specs.LinuxSyscall {
	allow := func(args []specs.LinuxSeccompArg, names ...string) specs.LinuxSyscall {
		return specs.LinuxSyscall{Names: names, Action: specs.ActAllow, Args: args}
	}
	first := func(value uint64) []specs.LinuxSeccompArg {
		return []specs.LinuxSeccompArg{{Index: 0, Value: value, Op: specs.OpEqualTo}}
	}
	return []specs.LinuxSyscall{
		allow(nil, "mbind", "set_mempolicy", "get_mempolicy"),
		allow(nil, "userfaultfd"),
		allow(nil, "io_uring_setup", "io_uring_enter", "io_uring_register"),
		allow(first(unix.AF_VSOCK), "socket"),
		allow(first(unix.CLONE_NEWUSER), "unshare"),
		// What the default profile has on other architectures than the one it was taken on.
		allow(nil, "arm_fadvise64_64", "arm_sync_file_range", "sync_file_range2", "breakpoint", "cacheflush", "set_tls"),
	}
}

func architectures(goarch string) []specs.Arch {
	switch goarch {
	case "amd64":
		return []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	case "arm64":
		return []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	case "s390x":
		return []specs.Arch{specs.ArchS390X, specs.ArchS390}
	}
	return nil // the runtime takes its own
}
