package facts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/api"
	"podvirt.dev/internal/cli"
	"podvirt.dev/internal/require"
	"podvirt.dev/internal/sysfs"
)

const boot = "0b7f5f3e-7d0c-4b3e-9a43-6a5a2f1f9b11"

// machine is a host with a stable TSC, two cells, and all firmware files.
func machine(more ...string) fstest.MapFS {
	m := fstest.MapFS{}
	pairs := append([]string{
		"proc/sys/kernel/random/boot_id", boot,
		"proc/sys/kernel/osrelease", "6.12.48-amd64",
		"proc/sys/kernel/sched_rt_runtime_us", "950000",
		"proc/cpuinfo", "vendor_id\t: AuthenticAMD\nmicrocode\t: 0x1\nflags\t: svm\naddress sizes\t: 48 bits physical, 48 bits virtual",
		"sys/devices/system/clocksource/clocksource0/available_clocksource", "tsc acpi_pm",
		"sys/devices/system/cpu/online", "0-3",
		"sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0-1",
		"sys/devices/system/node/online", "0-1",
		"sys/devices/system/node/node0/cpulist", "0-3",
		"sys/devices/system/node/node0/meminfo", "Node 0 MemTotal: 1024 kB",
		"sys/devices/system/node/node0/distance", "10 21",
		"sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", "8",
		"sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages", "5",
		"sys/devices/system/node/node1/cpulist", "",
		"sys/devices/system/node/node1/meminfo", "Node 1 MemTotal: 2048 kB",
		"sys/devices/system/node/node1/distance", "21 10",
		"sys/fs/cgroup/misc.capacity", "sev 494\nsev_es 15",
		"usr/share/seabios/bios-256k.bin", "", "usr/share/OVMF/OVMF_CODE_4M.fd", "", "usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "",
	}, more...)
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1] + "\n")}
	}
	return m
}

// Cut from what libvirt 11.3 with QEMU 10.0 said on an AMD EPYC; the members of SEV and Hyper-V from their documentation.
const (
	hostXML = `<capabilities><host><cpu><arch>x86_64</arch><model>EPYC</model><vendor>AMD</vendor>
<counter name='tsc' frequency='2596126000' scaling='no'/></cpu></host>
<guest><os_type>hvm</os_type><arch name='i686'><machine maxCpus='1'>none</machine></arch></guest>
<guest><os_type>hvm</os_type><arch name='x86_64'><machine maxCpus='255'>pc-i440fx-10.0</machine>
<machine canonical='pc-i440fx-10.0' maxCpus='255'>pc</machine><machine maxCpus='4096'>pc-q35-10.0</machine>
<machine canonical='pc-q35-10.0' maxCpus='4096'>q35</machine><machine maxCpus='288'>microvm</machine></arch></guest></capabilities>`
	domainXML = `<domainCapabilities><path>/usr/bin/qemu-system-x86_64</path><domain>kvm</domain><machine>pc-q35-10.0</machine>
<arch>x86_64</arch><vcpu max='4096'/><cpu><mode name='host-passthrough' supported='yes'/>
<mode name='host-model' supported='yes'><model fallback='forbid'>EPYC</model><vendor>AMD</vendor>
<feature policy='require' name='x2apic'/><feature policy='require' name='hypervisor'/><feature policy='disable' name='xsavec'/></mode>
<mode name='custom' supported='yes'><model usable='yes' vendor='unknown'>qemu64</model>
<model usable='no' vendor='Intel'>Icelake-Server</model>
<model usable='yes' vendor='AMD'>Opteron_G1-v1</model><model usable='unknown'>odd</model></mode></cpu>
<features><sev supported='yes'><cbitpos>51</cbitpos><reducedPhysBits>1</reducedPhysBits><maxGuests>494</maxGuests>
<maxESGuests>15</maxESGuests></sev>
<hyperv supported='yes'><enum name='features'><value>vendor_id</value><value>spinlocks</value>
<value>emsr_bitmap</value></enum></hyperv>
<launchSecurity supported='yes'><enum name='sectype'><value>sev</value><value>sev-snp</value></enum></launchSecurity>
</features></domainCapabilities>`
	cpuXML = `<cpu mode='custom' match='exact'><model fallback='forbid'>EPYC</model><feature policy='require' name='sse2'/>
<feature policy='require' name='aes'/><feature policy='disable' name='xsavec'/><feature policy='require' name='x2apic'/></cpu>`
)

// hypervisor answers with the texts above; fail names the call that fails.
type hypervisor struct{ fail string }

func (h hypervisor) say(call, text string) (string, error) {
	if h.fail == call {
		return "", errors.New(call + ": internal error")
	}
	return text, nil
}

func (h hypervisor) Version() (library, qemu uint32, err error) {
	_, err = h.say("version", "")
	return 11003000, 10000002, err
}
func (h hypervisor) Capabilities() (string, error) { return h.say("capabilities", hostXML) }
func (h hypervisor) DomainCapabilities(arch, machine, accelerator string) (string, error) {
	return h.say("domain", domainXML)
}
func (h hypervisor) ExpandCPU(arch, machine, accelerator, cpu string) (string, error) {
	if machine != "pc-q35-10.0" || !strings.Contains(cpu, `<feature policy="disable" name="xsavec"`) {
		return "", fmt.Errorf("expand %s of %s", cpu, machine)
	}
	return h.say("expand", cpuXML)
}
func (hypervisor) Close() error { return nil }

// emulator is a program in QEMU's place that does what a QEMU on some node does.
func emulator(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

const (
	lists = "case \"$*\" in *'-device help') printf 'name \"igb\", bus PCI\\n" +
		"name \"e1000\", bus PCI, alias \"e1000-82540em\"\\nname \"pcnet\", bus ISA\\n'; exit;; esac; "
	lives  = lists + "printf RPLSCIT; exit 33\n"
	silent = "printf R; exec sleep 60\n"
	aborts = "echo warning: old >&2; case \"$*\" in *'-cpu host'*) echo 'kvm_buf_set_msrs: Assertion failed.' >&2; exit 134;; esac; " + lives
)

func collector(t *testing.T, fsys fstest.MapFS, script string, h hypervisor) Collector {
	t.Helper()
	kvm := filepath.Join(t.TempDir(), "kvm")
	if err := os.WriteFile(kvm, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return Collector{
		Root: fsys, Wanted: []api.Accelerator{api.AcceleratorKVM, api.AcceleratorTCG}, Launcher: "sha256:6c1d",
		Prober: Prober{QEMU: emulator(t, script), Dir: t.TempDir(), Patience: 30 * time.Second, Root: fsys, KVM: kvm},
		Open:   func(context.Context) (Hypervisor, error) { return h, nil },
		Now:    func() time.Time { return time.Date(2026, 11, 20, 6, 42, 11, 999, time.UTC) },
	}
}

func TestCPU(t *testing.T) {
	require.Feature(t, runtime.GOARCH == "amd64", "an x86 machine")
	got, err := collector(t, machine(), lives, hypervisor{}).CPU(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := api.CPUFacts{
		V: 1, Boot: boot, Observed: time.Date(2026, 11, 20, 6, 42, 11, 0, time.UTC), Launcher: "sha256:6c1d",
		QEMU: "10.0.2", Libvirt: "11.3.0", Kernel: "6.12.48-amd64", Arch: "amd64", Accelerator: api.AcceleratorKVM,
		Vendor: "AMD", Model: "EPYC", Adds: []string{"hypervisor", "x2apic"}, Removes: []string{"xsavec"},
		Models: []string{"Opteron_G1-v1", "qemu64"}, Features: []string{"aes", "sse2", "x2apic"}, PhysBits: 48, MaxVCPUs: 4096,
		TSC: &api.TSC{Hz: 2596126000}, HyperV: []string{"emsr-bitmap", "spinlocks", "vendor-id"},
		Security: map[string]api.Security{"sev": {Guests: 494}, "sev-es": {Guests: 15}, "sev-snp": {Guests: 15}},
		Machines: []string{"microvm", "pc-i440fx-10.0", "pc-q35-10.0"}, NICs: []string{"e1000", "igb"}, Firmware: []string{"bios", "uefi", "uefi-secure-boot"},
		Problems: []string{},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want,+got)\n%s", diff)
	}
	text, err := got.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := api.DecodeCPUFacts(text); err != nil || !cmp.Equal(want, again) {
		t.Errorf("what is written cannot be read: %v\n%s", err, cmp.Diff(want, again))
	}
}

func TestProblems(t *testing.T) {
	require.Feature(t, runtime.GOARCH == "amd64", "an x86 machine")
	withoutKVM := func(c *Collector) { c.Prober.KVM = "/nonexistent/kvm" }
	hasty := func(c *Collector) { c.Prober.Patience = 2500 * time.Millisecond }
	only := func(a api.Accelerator) func(*Collector) {
		return func(c *Collector) { c.Wanted = []api.Accelerator{a} }
	}
	tcgLives := "case \"$*\" in *'-accel kvm'*) " + strings.TrimSpace(silent) + ";; esac; " + lives
	rows := []struct {
		name    string
		fs      fstest.MapFS
		script  string
		h       hypervisor
		change  func(*Collector)
		want    api.Accelerator
		problem string
	}{
		{"KVM hangs", machine(), tcgLives, hypervisor{}, hasty, api.AcceleratorTCG, "kvm: no sign of life after 2.5 s"},
		{"KVM aborts with the host's CPU", machine(), aborts, hypervisor{}, nil, api.AcceleratorTCG,
			"kvm: -cpu host: QEMU aborted: kvm_buf_set_msrs: Assertion failed."},
		{"no device, no virtualization", machine("proc/cpuinfo", "flags\t: sse2"), lives, hypervisor{}, withoutKVM, api.AcceleratorTCG,
			"kvm: /nonexistent/kvm is missing: the CPU has no vmx or svm; it is switched off in the firmware, or this is a VM without nesting"},
		{"no device, half the modules", machine("sys/module/kvm/x", ""), lives, hypervisor{}, withoutKVM, api.AcceleratorTCG,
			"kvm: /nonexistent/kvm is missing: module kvm is loaded, kvm_intel or kvm_amd is not"},
		{"no device, no modules", machine(), lives, hypervisor{}, withoutKVM, api.AcceleratorTCG,
			"kvm: /nonexistent/kvm is missing: load the module kvm_intel or kvm_amd"},
		{"only KVM asked for", machine(), silent, hypervisor{}, func(c *Collector) { hasty(c); only(api.AcceleratorKVM)(c) }, api.AcceleratorNone,
			"kvm: no sign of life after 2.5 s"},
		{"an early end", machine(), "exit 0\n", hypervisor{}, only(api.AcceleratorTCG), api.AcceleratorNone,
			"tcg: QEMU aborted: it ended before the guest"},
		{"the right end without the words", machine(), "exit 33\n", hypervisor{}, only(api.AcceleratorTCG), api.AcceleratorNone,
			"tcg: QEMU aborted: exit status 33"},
		{"libvirt fails", machine(), lives, hypervisor{fail: "domain"}, nil, api.AcceleratorNone, "libvirt: domain: internal error"},
		{"libvirt does not expand", machine(), lives, hypervisor{fail: "expand"}, nil, api.AcceleratorNone,
			"libvirt: features of EPYC: expand: internal error"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			c := collector(t, row.fs, row.script, row.h)
			if row.change != nil {
				row.change(&c)
			}
			got, err := c.CPU(t.Context())
			if err != nil || got.Accelerator != row.want || len(got.Problems) != 1 || got.Problems[0] != row.problem {
				t.Errorf("accelerator %s, problems %q, %v\nwant %s, %q", got.Accelerator, got.Problems, err, row.want, row.problem)
			}
			if none := got.Accelerator == api.AcceleratorNone; none != (len(got.Models) == 0) {
				t.Errorf("%d models with accelerator %s", len(got.Models), got.Accelerator)
			}
		})
	}
	t.Run("not openable", func(t *testing.T) {
		if os.Getuid() == 0 { // root may open everything: ask again as somebody else
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestProblems$/^not_openable$")
			cmd.Dir = "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("as nobody: %v\n%s", err, out)
			}
			return
		}
		c := collector(t, machine(), lives, hypervisor{})
		if err := os.Chmod(c.Prober.KVM, 0); err != nil {
			t.Fatal(err)
		}
		want := "kvm: " + c.Prober.KVM + fmt.Sprintf(" cannot be opened by uid %d: permission denied", os.Getuid())
		if got, err := c.CPU(t.Context()); err != nil || len(got.Problems) != 1 || got.Problems[0] != want {
			t.Errorf("problems %q, %v; want %q", got.Problems, err, want)
		}
	})
	many := bound([]string{strings.Repeat("ä", 500), "2", "3", "4", "5", "6", "7", "8", "9"})
	if len(many) != api.MaxProblems || len(many[0]) > api.MaxProblem {
		t.Errorf("%d problems, the first of %d bytes", len(many), len(many[0]))
	}
}

func TestUnstableTSC(t *testing.T) {
	require.Feature(t, runtime.GOARCH == "amd64", "an x86 machine")
	fsys := machine("sys/devices/system/clocksource/clocksource0/available_clocksource", "hpet acpi_pm",
		"proc/sys/kernel/sched_rt_runtime_us", "-1")
	delete(fsys, "usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
	got, err := collector(t, fsys, lives, hypervisor{}).CPU(t.Context())
	if err != nil || got.TSC != nil || !got.Realtime || len(got.Firmware) != 2 {
		t.Errorf("TSC %v, realtime %v, firmware %v, %v; want none, true and no secure boot", got.TSC, got.Realtime, got.Firmware, err)
	}
}

func TestNUMA(t *testing.T) {
	got, err := collector(t, machine(), lives, hypervisor{}).NUMA()
	if err != nil {
		t.Fatal(err)
	}
	want := api.NUMAFacts{V: 1, Boot: boot, Observed: time.Date(2026, 11, 20, 6, 42, 11, 0, time.UTC), ThreadsPerCore: 2, Cells: []api.Cell{
		{CPUs: "0-3", Memory: 1 << 20, Hugepages: map[string]api.Pages{"2Mi": {Total: 8, Free: 5}}, Distances: []int{10, 21}},
		{ID: 1, Memory: 2 << 20, Hugepages: map[string]api.Pages{}, Distances: []int{21, 10}},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want,+got)\n%s", diff)
	}
}

// TestProbeGuest runs the probe guest under the machine's QEMU: emulation must bring it to its end.
func TestProbeGuest(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	require.Feature(t, err == nil, "qemu-system-x86_64")
	host, err := sysfs.Host("/")
	if err != nil {
		t.Fatal(err)
	}
	prober := Prober{QEMU: qemu, Dir: t.TempDir(), Root: host}
	got, problems := prober.Accelerator(t.Context(), []api.Accelerator{api.AcceleratorTCG})
	if got != api.AcceleratorTCG || len(problems) > 0 {
		t.Errorf("accelerator %s, %q; want tcg", got, problems)
	}
	left, err := os.ReadDir(prober.Dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestRealKVM: whatever /dev/kvm of the machine is good for, the verdict comes in time and says why.
func TestRealKVM(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	require.Feature(t, err == nil, "qemu-system-x86_64")
	host, err := sysfs.Host("/")
	if err != nil {
		t.Fatal(err)
	}
	prober := Prober{QEMU: qemu, Dir: t.TempDir(), Root: host, Patience: 3 * time.Second}
	started := time.Now()
	got, problems := prober.Accelerator(t.Context(), []api.Accelerator{api.AcceleratorKVM})
	t.Logf("%s in %v: %q", got, time.Since(started), problems)
	if took := time.Since(started); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	if (got == api.AcceleratorKVM) != (len(problems) == 0) {
		t.Errorf("accelerator %s with problems %q", got, problems)
	}
}

// TestProbeGuestIsWhatItsSourceSays assembles the source again.
func TestProbeGuestIsWhatItsSourceSays(t *testing.T) {
	nasm, err := exec.LookPath("nasm")
	require.Feature(t, err == nil, "nasm")
	out := filepath.Join(t.TempDir(), "probe.bin")
	if text, err := exec.Command(nasm, "-f", "bin", "-o", out, "guest/probe.asm").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	fresh, err := os.ReadFile(out)
	if err != nil || !bytes.Equal(fresh, probeGuest) {
		t.Errorf("guest/probe.bin is not guest/probe.asm assembled (%v): assemble it again", err)
	}
}

func TestCommand(t *testing.T) {
	require.Feature(t, runtime.GOARCH == "amd64", "an x86 machine")
	p := Program{
		Root: "/", QEMU: emulator(t, lives), Scratch: t.TempDir(),
		Open: func(context.Context) (Hypervisor, error) { return hypervisor{}, nil },
	}
	dead := p
	dead.QEMU = emulator(t, "exit 1\n")
	rows := []struct {
		name    string
		program Program
		args    string
		code    int
		lines   int
		has     string // in the output, or in the complaint
	}{
		{"both", p, "--virt-type tcg", 0, 2, `"accelerator":"tcg"`},
		{"CPU", p, "--virt-type tcg --only cpu --launcher-digest sha256:1", 0, 1, `"launcher":"sha256:1"`},
		{"NUMA", p, "--only numa", 0, 1, `"cells":[`},
		{"text", p, "--virt-type tcg -o text --only cpu", 0, 25, "models       Opteron_G1-v1 qemu64\n"},
		{"no accelerator", dead, "--virt-type tcg --only cpu", 1, 1, `"accelerator":"none"`},
		{"unknown flag", p, "--verbose", 2, 0, "--verbose"},
		{"unknown accelerator", p, "--virt-type xen", 2, 0, "not one of kvm, tcg"},
		{"unknown part", p, "--only gpu", 2, 0, "not one of cpu, numa"},
		{"unknown form", p, "-o yaml", 2, 0, "not one of json, text"},
		{"watch without directory", p, "--watch", 2, 0, "go together"},
		{"argument", p, "now", 2, 0, `unexpected argument "now"`},
		{"timeout", p, "--timeout 0s", 2, 0, "not positive"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			var out, complaint bytes.Buffer
			code := row.program.Run(t.Context(), strings.Fields(row.args), cli.Streams{Out: &out, Err: &complaint})
			if lines := strings.Count(out.String(), "\n"); code != row.code || lines != row.lines {
				t.Errorf("exit %d with %d lines, want %d with %d\n%s%s", code, lines, row.code, row.lines, out.String(), complaint.String())
			}
			if !strings.Contains(out.String()+complaint.String(), row.has) {
				t.Errorf("no %q in:\n%s%s", row.has, out.String(), complaint.String())
			}
		})
	}
	failing := p
	failing.Prepare = func(...string) error { return os.ErrPermission }
	if code := failing.Run(t.Context(), nil, cli.Streams{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}}); code != 1 {
		t.Errorf("exit %d of a process that cannot become another user, want 1", code)
	}
}
