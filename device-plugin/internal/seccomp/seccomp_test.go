package seccomp

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// allowed says whether a call with these arguments passes, by the rules of libseccomp: an allow rule whose arguments all match.
func allowed(p specs.LinuxSeccomp, name string, args ...uint64) bool {
	for _, rule := range p.Syscalls {
		if rule.Action != specs.ActAllow || !slices.Contains(rule.Names, name) {
			continue
		}
		if !slices.ContainsFunc(rule.Args, func(a specs.LinuxSeccompArg) bool { return !matches(a, args) }) {
			return true
		}
	}
	return false
}

func matches(a specs.LinuxSeccompArg, args []uint64) bool {
	if int(a.Index) >= len(args) {
		return false
	}
	switch v := args[a.Index]; a.Op {
	case specs.OpEqualTo:
		return v == a.Value
	case specs.OpLessThan:
		return v < a.Value
	case specs.OpMaskedEqual:
		return v&a.Value == a.ValueTwo
	}
	return false
}

func TestProfileIsTheDefaultAndALittleMore(t *testing.T) {
	file, err := File("/var/lib/kubelet/seccomp", "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if file.Path != "/var/lib/kubelet/seccomp/podvirt/launcher.json" {
		t.Errorf("path = %s", file.Path)
	}
	var ours profile
	if err := json.Unmarshal(file.Content, &ours); err != nil {
		t.Fatal(err)
	}
	var base specs.LinuxSeccomp
	if err := json.Unmarshal(runtimeDefault, &base); err != nil {
		t.Fatal(err)
	}
	if ours.Version != Version || ours.DefaultAction != specs.ActErrno {
		t.Errorf("version %d, default action %s", ours.Version, ours.DefaultAction)
	}
	const newUser, newNet, vsock, alg, inet = 0x10000000, 0x40000000, 40, 38, 2
	tests := map[string]struct {
		name          string
		args          []uint64
		byDefault, by bool
	}{
		"bind memory":          {"mbind", nil, false, true},
		"memory policy":        {"set_mempolicy", nil, false, true},
		"read memory policy":   {"get_mempolicy", nil, false, true},
		"post-copy":            {"userfaultfd", nil, false, true},
		"ring setup":           {"io_uring_setup", nil, false, true},
		"ring enter":           {"io_uring_enter", nil, false, true},
		"ring register":        {"io_uring_register", nil, false, true},
		"vsock":                {"socket", []uint64{vsock}, false, true},
		"inet":                 {"socket", []uint64{inet}, true, true},
		"kernel crypto":        {"socket", []uint64{alg}, false, false},
		"user namespace":       {"unshare", []uint64{newUser}, false, true},
		"network namespace":    {"unshare", []uint64{newNet}, false, false},
		"both namespaces":      {"unshare", []uint64{newUser | newNet}, false, false},
		"namespace by clone":   {"clone", []uint64{newUser}, false, false},
		"thread by clone":      {"clone", []uint64{0x3d0f00}, true, true},
		"mount":                {"mount", nil, false, false},
		"bpf":                  {"bpf", nil, false, false},
		"keyctl":               {"keyctl", nil, false, false},
		"module":               {"finit_module", nil, false, false},
		"move pages of others": {"move_pages", nil, false, false},
		"read":                 {"read", nil, true, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := allowed(base, tt.name, tt.args...); got != tt.byDefault {
				t.Errorf("default profile allows %v; want %v", got, tt.byDefault)
			}
			if got := allowed(ours.LinuxSeccomp, tt.name, tt.args...); got != tt.by {
				t.Errorf("our profile allows %v; want %v", got, tt.by)
			}
		})
	}
	for _, rule := range base.Syscalls {
		if !slices.ContainsFunc(ours.Syscalls, func(r specs.LinuxSyscall) bool {
			return slices.Equal(r.Names, rule.Names) && slices.Equal(r.Args, rule.Args)
		}) {
			t.Errorf("a rule of the default profile is missing: %v", rule)
		}
	}
}

func TestArchitectures(t *testing.T) {
	for goarch, want := range map[string]specs.Arch{"amd64": specs.ArchX86_64, "arm64": specs.ArchAARCH64, "s390x": specs.ArchS390X} {
		if got := architectures(goarch); len(got) == 0 || got[0] != want {
			t.Errorf("%s: %v; want %s first", goarch, got, want)
		}
	}
	if got := architectures("riscv64"); got != nil {
		t.Errorf("riscv64: %v; want the runtime's own", got)
	}
}
