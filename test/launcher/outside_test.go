package launcher

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/internal/require"
)

// get asks the launcher's port inside the container's network namespace and returns the answer, headers first.
func (v *vm) get(path string) string {
	v.t.Helper()
	curl, err := exec.LookPath("curl")
	require.Feature(v.t, err == nil, "curl")
	out, err := exec.Command("nsenter", "-t", strconv.Itoa(v.cmd.Process.Pid), "-n", "--", curl, "-s", "-i", "--max-time", "20",
		"http://127.0.0.1:49155"+path).CombinedOutput()
	if err != nil {
		v.t.Fatalf("GET %s: %v\n%s", path, err, out)
	}
	return string(out)
}

func (v *vm) wantAnswer(path, status, text string) {
	v.t.Helper()
	answer := v.get(path)
	if first, _, _ := strings.Cut(answer, "\n"); !strings.Contains(first, " "+status+" ") || !strings.Contains(answer, text) {
		v.t.Errorf("GET %s:\n%s\nwant status %s and %q", path, answer, status, text)
	}
}

// TestPort: metrics, status and probes of a VM without a guest agent, and the rule that a VM which is meant to stand
// still passes its probes (VM-176, VM-178).
func TestPort(t *testing.T) {
	v := newPod(t, nil).start()
	v.booted(1)
	pid := strconv.Itoa(v.cmd.Process.Pid)
	if out, err := exec.Command("nsenter", "-t", pid, "-n", "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	v.wantAnswer("/metrics", "200", "podvirt_vm_state{name=\"db1\",namespace=\"shop\",state=\"running\"} 1\n")
	v.wantAnswer("/metrics", "200", "kubevirt_vmi_storage_iops_read_total{name=\"db1\",namespace=\"shop\",drive=\"root\"} ")
	v.wantAnswer("/metrics", "200", "podvirt_vm_start_seconds{name=\"db1\",namespace=\"shop\",step=\"define\"} ")
	v.wantAnswer("/status", "200", `{"type":"podvirt.dev/GuestRunning","status":"True","reason":"Running","message":"emulated without KVM`)
	v.wantAnswer("/probe/state?is=running", "200", "ok")
	v.wantAnswer("/probe/agent", "503", "probe failed: ")
	v.wantAnswer("/probe/exec", "400", "not offered over HTTP")

	for _, row := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"state", "running"}, 0, ""},
		{[]string{"state", "paused"}, 1, "the VM is running"},
		{[]string{"agent"}, 1, "probe failed"},
		{[]string{"agent", "--initial-delay", "1h"}, 0, ""},
		{[]string{"exec", "--", "true"}, 1, "probe failed"},
		{[]string{"fs", "/", "--min-free", "lots"}, 2, "neither a share nor a quantity"},
		{[]string{"agnet"}, 2, "probe agnet"},
	} {
		_, complaint, code := v.inside(nil, append([]string{"/usr/bin/launcher", "probe"}, row.args...)...)
		if code != row.code || !strings.Contains(complaint, row.says) {
			t.Errorf("launcher probe %v: exit %d, %q; want %d, %q", row.args, code, complaint, row.code, row.says)
		}
	}
	v.ctl("pause")
	v.wantAnswer("/probe/agent", "200", "ok")
	v.wantAnswer("/status", "200", `{"type":"podvirt.dev/Paused","status":"True","reason":"User"}`)
	v.wantAnswer("/metrics", "200", "state=\"paused\"} 1\n")
}

// TestMetricsOff: with metrics=off nothing listens.
func TestMetricsOff(t *testing.T) {
	v := newPod(t, map[string]string{"metrics": "off"}).start()
	v.booted(1)
	listening, err := exec.Command("nsenter", "-t", strconv.Itoa(v.cmd.Process.Pid), "-n", "ss", "-ltnH").CombinedOutput()
	if err != nil || len(bytes.TrimSpace(listening)) > 0 {
		t.Errorf("somebody listens: %v\n%s", err, listening)
	}
}

// TestNodeFacts asks libvirt and QEMU of the image, as uid 107, and compares with libvirt's own words (SC-001, SC-009).
func TestNodeFacts(t *testing.T) {
	p := newPod(t, nil)
	p.spec.Argv = []string{"/usr/bin/reaper", "/usr/bin/launcher", "node-facts", "--virt-type", "tcg", "--timeout", "60s"}
	v := p.start()
	if code, _ := v.wait(); code != 0 {
		t.Fatalf("exit %d: %s", code, v.log)
	}
	lines := strings.Split(strings.TrimSpace(v.out.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines:\n%s", len(lines), v.out)
	}
	cpu, err := api.DecodeCPUFacts(lines[0])
	if err != nil {
		t.Fatal(err)
	}
	wantTCG(t, cpu)
	numa, err := api.DecodeNUMAFacts(lines[1])
	if err != nil || len(numa.Cells) == 0 || numa.Cells[0].Memory == 0 || numa.Boot != cpu.Boot {
		t.Errorf("cells: %v, %s", err, lines[1])
	}
}

// wantTCG checks what every QEMU 10 offers under emulation.
func wantTCG(t *testing.T, cpu api.CPUFacts) {
	t.Helper()
	for what, holds := range map[string]bool{
		"accelerator": cpu.Accelerator == api.AcceleratorTCG && len(cpu.Problems) == 0, "QEMU": strings.HasPrefix(cpu.QEMU, "10."),
		"host model": cpu.Model != "", "models": slices.Contains(cpu.Models, "qemu64") && slices.IsSorted(cpu.Models),
		"features": slices.Contains(cpu.Features, "sse2") && slices.IsSorted(cpu.Features), "vCPUs": cpu.MaxVCPUs >= 255,
		"machines": slices.Contains(cpu.Machines, "pc-q35-10.0") && !slices.Contains(cpu.Machines, "q35") && slices.IsSorted(cpu.Machines),
		"firmware": slices.Contains(cpu.Firmware, "uefi-secure-boot"),
		"time":     time.Since(cpu.Observed) >= 0 && time.Since(cpu.Observed) < time.Hour,
	} {
		if !holds {
			t.Errorf("%s of %+v", what, cpu)
		}
	}
}

// TestFeaturesStart starts VMs with features that the facts list, all of them at once, and with twenty that they do not,
// one by one: the first must start, the others be refused (SC-002).
func TestFeaturesStart(t *testing.T) {
	p := newPod(t, nil)
	p.spec.Argv = []string{"/usr/bin/reaper", "/usr/bin/launcher", "node-facts", "--virt-type", "tcg", "--only", "cpu"}
	v := p.start()
	if code, _ := v.wait(); code != 0 {
		t.Fatalf("exit %d: %s", code, v.log)
	}
	var facts struct {
		Model    string
		Features []string
	}
	if err := json.Unmarshal([]byte(v.out.String()), &facts); err != nil {
		t.Fatal(err)
	}
	vm := newPod(t, map[string]string{"cpu-model": "qemu64", "cpu-features": strings.Join(facts.Features, ",")}).start()
	vm.booted(1)
	vm.ctl("poweroff")
	absent := slices.DeleteFunc(absentFeatures(), func(s string) bool { return slices.Contains(facts.Features, s) })
	if len(absent) < 20 {
		t.Fatalf("only %v are not listed; want 20", absent)
	}
	for _, feature := range absent[:20] {
		t.Run(feature, func(t *testing.T) {
			t.Parallel()
			newPod(t, map[string]string{"cpu-model": "qemu64", "cpu-features": feature}).start().wantEnd(11, feature)
		})
	}
}

// absentFeatures are what neither QEMU nor an older CPU has.
func absentFeatures() []string {
	return []string{
		"3dnow", "amx-bf16", "amx-int8", "amx-tile", "avx-ifma", "avx-vnni", "avx512-bf16", "avx512-fp16", "avx512-vpopcntdq", "avx512bitalg",
		"avx512bw", "avx512cd", "avx512dq", "avx512er", "avx512f", "avx512ifma", "avx512pf", "avx512vbmi", "avx512vl", "avx512vnni", "fma4",
		"hle", "rtm", "tbm", "vmx", "xop",
	}
}
