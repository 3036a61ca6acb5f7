package launcher

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"libvirt.org/go/libvirtxml"

	"podvirt.dev/api"
)

// TestKVM runs VMs under a KVM that works, in one machine.
func TestKVM(t *testing.T) {
	usableKVM(t)
	t.Run("unusable", unusableKVM)
	modprobe(t, "kvm_amd")
	t.Run("not the user's", notTheUsers)
	facts := kvmFacts(t)
	if t.Failed() {
		return
	}
	t.Run("host model", func(t *testing.T) { hostModelVM(t, facts) })
	t.Run("features", func(t *testing.T) { featuresVM(t, facts) })
	t.Run("named model", namedModelVM)
	t.Run("host passthrough", passthroughVM)
}

// TestKVMFacts takes facts on whatever CPU the machine has (SC-001).
func TestKVMFacts(t *testing.T) {
	usableKVM(t)
	modprobe(t, "kvm_amd")
	facts := kvmFacts(t)
	asked, _, _ := strings.Cut(os.Getenv("PODVIRT_VM_CPU"), ",")
	if asked != "" && !slices.Contains(facts.Models, asked) {
		t.Errorf("%s is not among the models of a machine that is one", asked)
	}
}

// unusableKVM: each lack has its own words (SC-004).
func unusableKVM(t *testing.T) {
	for _, row := range []struct{ module, want string }{
		{"", "kvm: /dev/kvm is missing: load the module kvm_intel or kvm_amd"},
		{"kvm", "kvm: /dev/kvm is missing: module kvm is loaded, kvm_intel or kvm_amd is not"},
	} {
		if row.module != "" {
			modprobe(t, row.module)
		}
		facts, _ := cpuFacts(t, newPod(t, nil), "--virt-type kvm", "")
		wantProblem(t, facts, row.want)
	}
}

func wantProblem(t *testing.T, facts api.CPUFacts, want string) {
	t.Helper()
	if facts.Accelerator != api.AcceleratorNone || !slices.Equal(facts.Problems, []string{want}) || len(facts.Models) > 0 {
		t.Errorf("accelerator %s, problems %q, models %v; want %q", facts.Accelerator, facts.Problems, facts.Models, want)
	}
}

// notTheUsers: the device as the kernel makes it (SC-004).
func notTheUsers(t *testing.T) {
	p := newPod(t, nil)
	p.spec.Mounts["/dev/kvm"] = "/dev/kvm"
	facts, _ := cpuFacts(t, p, "--virt-type kvm", "")
	wantProblem(t, facts, "kvm: /dev/kvm cannot be opened by uid 107: permission denied")
}

// askKVM has QEMU say which models it knows, and what each of them lacks under KVM here.
const askKVM = `printf '%s\n' '{"execute":"qmp_capabilities"}' '{"execute":"query-cpu-definitions"}' '{"execute":"quit"}' |
  qemu-system-x86_64 -machine none -accel kvm -nodefaults -display none -qmp stdio
`

// kvmFacts takes the facts: the models are those that QEMU can give under KVM, without libvirt in between, and of the
// features by which processors differ those are listed that the machine has (SC-001, SC-002, SC-004, VM-030).
func kvmFacts(t *testing.T) api.CPUFacts {
	t.Helper()
	facts, said := cpuFacts(t, newKVMPod(t, map[string]string{}), "", askKVM)
	if facts.Accelerator != api.AcceleratorKVM || len(facts.Problems) > 0 {
		t.Errorf("accelerator %s, problems %q", facts.Accelerator, facts.Problems)
	}
	var want []string
	for model, ok := range usableModels(t, said) {
		if ok && !slices.Contains([]string{"base", "host", "max"}, model) {
			want = append(want, model)
		}
	}
	slices.Sort(want)
	if !slices.Equal(facts.Models, want) {
		t.Errorf("models %v; want QEMU's %v", facts.Models, want)
	}
	t.Logf("model %s, adds %v, removes %v\nmodels %v\nfeatures %v", facts.Model, facts.Adds, facts.Removes, facts.Models, facts.Features)
	for feature, has := range machineFlags(t) {
		if listed := slices.Contains(facts.Features, feature); listed != has {
			t.Errorf("feature %s is listed: %v; the machine has it: %v", feature, listed, has)
		}
	}
	return facts
}

// machineFlags says of features by which processors differ, in libvirt's words, which the machine has.
func machineFlags(t *testing.T) map[string]bool {
	t.Helper()
	_, line, _ := strings.Cut(cpuInfo(t), "\nflags")
	line, _, _ = strings.Cut(line, "\n")
	has := strings.Fields(line)
	flags := map[string]bool{}
	for feature, flag := range map[string]string{
		"sse4.1": "sse4_1", "popcnt": "popcnt", "aes": "aes", "avx2": "avx2", "bmi2": "bmi2", "sse4a": "sse4a", "abm": "abm", "avx512f": "avx512f",
	} {
		flags[feature] = slices.Contains(has, flag)
	}
	return flags
}

// hostModelVM: a VM that asks for nothing gets KVM and the CPU that the facts name, nothing that runs guests, and a NIC whose
// packets go through the kernel (SC-003, SC-028, VM-021, VM-022, VM-030, DP-003).
func hostModelVM(t *testing.T, facts api.CPUFacts) {
	p := newKVMPod(t, map[string]string{"nic.default": "binding=masquerade"})
	p.spec.Tap = true
	p.spec.Devices["/dev/vhost-net"] = "/dev/vhost-net"
	p.bootScript()
	v := p.start()
	said := v.end()
	if !strings.Contains(said, "kvm: none") || strings.Contains(said, " svm ") || !strings.Contains(said, " hypervisor ") {
		t.Errorf("want a guest with a hypervisor and without svm and /dev/kvm:\n%s", said)
	}
	if cpu := regexp.MustCompile(`model: .*` + facts.Model); !cpu.MatchString(said) {
		t.Errorf("the guest's CPU is not %s", facts.Model)
	}
	var live libvirtxml.Domain
	if err := live.Unmarshal(v.ctl("xml")); err != nil {
		t.Fatal(err)
	}
	if live.Type != "kvm" || live.CPU == nil || live.CPU.Model == nil || live.CPU.Model.Value != facts.Model {
		t.Fatalf("domain of type %s with CPU %+v; want kvm and %s", live.Type, live.CPU, facts.Model)
	}
	wantCPUOfFacts(t, live.CPU.Features, facts)
	if accelerator := v.state()["accelerator"]; accelerator != "kvm" {
		t.Errorf("accelerator of the status: %v", accelerator)
	}
	if !vhostThread(t) || strings.Contains(v.log.String(), "/dev/vhost-net") {
		t.Errorf("no thread vhost-PID:\n%s", v.log)
	}
}

// wantCPUOfFacts compares what a VM with the host's model has besides it with the facts.
func wantCPUOfFacts(t *testing.T, features []libvirtxml.DomainCPUFeature, facts api.CPUFacts) {
	t.Helper()
	var adds, removes []string
	for _, feature := range features {
		if feature.Policy == "disable" {
			removes = append(removes, feature.Name)
		} else {
			adds = append(adds, feature.Name)
		}
	}
	if diff := cmp.Diff(givenUnasked(facts.Adds), givenUnasked(adds)); diff != "" {
		t.Errorf("what the CPU adds, (-facts,+VM)\n%s", diff)
	}
	if diff := cmp.Diff(givenUnasked(facts.Removes), givenUnasked(removes)); diff != "" {
		t.Errorf("what the CPU removes, (-facts,+VM)\n%s", diff)
	}
	if !slices.Contains(removes, "svm") {
		t.Error("svm is not removed")
	}
}

// givenUnasked sorts features and leaves out those that a VM has only when it asks for svm, and topoext, which QEMU adds by itself.
func givenUnasked(features []string) []string {
	nested := []string{"svm", "npt", "flushbyasid", "vmcb-clean", "vgif", "svme-addr-chk", "topoext"}
	return slices.Sorted(func(yield func(string) bool) {
		for _, name := range features {
			if !slices.Contains(nested, name) && !yield(name) {
				return
			}
		}
	})
}

// vhostThread looks for a thread that carries packets (linux: drivers/vhost/vhost.c vhost_worker_create).
func vhostThread(t *testing.T) bool {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*/comm")
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(names, func(name string) bool {
		text, _ := os.ReadFile(name) // a thread may have ended
		return strings.HasPrefix(string(text), "vhost-")
	})
}

// featuresVM: a VM that requires every listed feature starts, one that requires others is told each of them (SC-002).
func featuresVM(t *testing.T, facts api.CPUFacts) {
	t.Run("all", func(t *testing.T) {
		p := newKVMPod(t, map[string]string{"cpu-model": "qemu64", "cpu-features": strings.Join(facts.Features, ",")})
		p.bootScript()
		p.start().end()
	})
	others := slices.DeleteFunc(absentFeatures(), func(s string) bool { return slices.Contains(facts.Features, s) })
	if len(others) < 20 {
		t.Fatalf("only %v are not listed; want 20", others)
	}
	t.Run("others", func(t *testing.T) {
		v := newKVMPod(t, map[string]string{"cpu-model": "qemu64", "cpu-features": strings.Join(others, ",")}).start()
		code, message := v.wait()
		for _, name := range others {
			if code != 11 || !strings.Contains(message, name) {
				t.Errorf("exit %d, %q; want 11 and %s", code, message, name)
			}
		}
	})
}

// namedModelVM: another CPU on two dies, with features of every policy (SC-026, VM-020 to VM-022). The guest does not
// see the dies: under KVM every model has the vendor of the machine, here AMD, and CPUID leaf 0x1f is empty then.
func namedModelVM(t *testing.T) {
	p := newKVMPod(t, map[string]string{
		"cpu-model": "Nehalem", "cpu-topology": "sockets=1,dies=2,cores=2,threads=1",
		"cpu-features": "aes=force,popcnt=disable,avx512f=optional,pclmuldq=optional,amx-tile=forbid",
	})
	p.limitCPU(4000)
	p.bootScript()
	v := p.start()
	said := v.end()
	if live := v.ctl("xml"); !strings.Contains(live, "dies='2'") && !strings.Contains(live, `dies="2"`) {
		t.Errorf("no dies in:\n%s", live)
	}
	for _, want := range []string{
		"model: Intel Core i7 9xx (Nehalem Class Core i7)", " aes ", " pclmulqdq ", " hypervisor ",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("the guest does not say %q", want)
		}
	}
	for _, word := range []string{" popcnt ", " avx512f ", " svm "} {
		if strings.Contains(said, word) {
			t.Errorf("the guest has%s", word)
		}
	}
	if cpus := strings.Count(said, "cpu: "); cpus != 4 {
		t.Errorf("%d CPUs; want 4", cpus)
	}
}

// passthroughVM has the CPU of the machine, and runs a guest of its own by svm (SC-030, VM-022).
func passthroughVM(t *testing.T) {
	p := newKVMPod(t, map[string]string{"cpu-model": "host-passthrough", "cpu-features": "svm"})
	p.bootScript()
	said := p.start().end()
	_, model, _ := strings.Cut(cpuInfo(t), "model name\t: ")
	model, _, _ = strings.Cut(model, "\n")
	for _, want := range []string{"model: " + model, " svm ", "kvm: /dev/kvm", fmt.Sprintf(innermostSays, 7)} {
		if !strings.Contains(said, want) {
			t.Errorf("the guest does not say %q", want)
		}
	}
}
