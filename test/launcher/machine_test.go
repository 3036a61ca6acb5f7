package launcher

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podvirt.dev/internal/vmstatus"
)

// machine is a VM and what its guest must see of it.
type machine struct {
	name        string
	annotations map[string]string
	limit       int               // limits.cpu in thousandths; 0: a whole CPU
	topology    [4]int            // sockets, dies of a socket, cores of a die, threads of a core
	model       string            // as /proc/cpuinfo calls it
	driver      string            // of the NIC
	see         map[string]string // command: pattern of its answer
}

// machines are rows of which each shows a topology, a CPU model and a NIC model at once (VM-020, VM-021, VM-090, NW-005).
func machines() []machine {
	cpu := func(topology, model, nic string) map[string]string {
		return map[string]string{"cpu-topology": topology, "cpu-model": model, "nic.default": "binding=masquerade,model=" + nic}
	}
	return []machine{
		{"limit of 1500m", cpu("-", "max", "virtio"), 1500, [4]int{1, 1, 2, 1}, "QEMU TCG CPU version", "virtio_net", map[string]string{
			"cat /sys/class/misc/hw_random/rng_current": `^virtio_rng\.0$`, // VM-092
			"dmesg | grep 'crng init done'":             `done`,
		}},
		{"4 cores", cpu("cores=4", "Nehalem", "e1000e"), 0, [4]int{1, 1, 4, 1}, "Intel Core i7 9xx (Nehalem Class Core i7)", "e1000e", nil},
		{"4 sockets", cpu("sockets=4", "Westmere", "e1000"), 0, [4]int{4, 1, 1, 1}, "Westmere E56xx/L56xx/X56xx (Nehalem-C)", "e1000", nil},
		{"2 threads", cpu("threads=2", "Penryn", "rtl8139"), 0, [4]int{1, 1, 1, 2}, "Intel Core 2 Duo P9xxx (Penryn Class Core 2)", "8139cp", nil},
		{"2 sockets of 2 cores", cpu("sockets=2,cores=2", "qemu64", "vmxnet3"), 0, [4]int{2, 1, 2, 1}, "QEMU Virtual CPU version", "vmxnet3", nil},
		{"2 sockets of 2 threads", cpu("sockets=2,threads=2", "core2duo", "pcnet"), 0, [4]int{2, 1, 1, 2}, "Intel(R) Core(TM)2 Duo CPU", "pcnet32", nil},
		{"2 cores of 2 threads", cpu("cores=2,threads=2", "Conroe", "ne2k_pci"), 0, [4]int{1, 1, 2, 2}, "Conroe/Merom Class Core 2", "ne2k-pci", nil},
		{"4 threads", cpu("threads=4", "Nehalem-v1", "igb"), 0, [4]int{1, 1, 1, 4}, "Nehalem", "igb", nil},
		{"1 of all", cpu("sockets=1,dies=1,clusters=1,cores=1,threads=1", "qemu64-v1", "virtio"), 0, [4]int{1, 1, 1, 1}, "QEMU Virtual CPU", "virtio_net", nil},
		{"3 cores", cpu("cores=3", "Opteron_G1", "virtio"), 0, [4]int{1, 1, 3, 1}, "AMD Opteron 240 (Gen 1 Class Opteron)", "virtio_net", nil},
		{"3 sockets", cpu("sockets=3", "Opteron_G2", "virtio"), 0, [4]int{3, 1, 1, 1}, "AMD Opteron 22xx (Gen 2 Class Opteron)", "virtio_net", nil},
		{"2 of 2 of 2", cpu("sockets=2,cores=2,threads=2", "kvm64", "virtio"), 0, [4]int{2, 1, 2, 2}, "Common KVM processor", "virtio_net", nil},
	}
}

// TestMachines boots each and asks the guest.
func TestMachines(t *testing.T) {
	t.Parallel()
	for _, m := range machines() {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			m.annotations["memory"] = "192Mi"
			if m.name == "1 of all" {
				m.annotations["tpm"] = "1.2"
			}
			guest := newPod // comes up sooner, and drives virtio
			if m.driver != "virtio_net" {
				guest = newHardwarePod
			}
			p := guest(t, m.annotations)
			p.spec.Tap, p.spec.Single = true, m.driver != "virtio_net"
			if m.limit > 0 {
				p.limitCPU(m.limit)
			}
			v := p.start()
			v.booted(1)
			wantCPU(t, v, m.annotations["cpu-model"])
			s := v.shell()
			if got := s.topology(); got != m.topology {
				t.Errorf("sockets, dies, cores, threads: %v; want %v", got, m.topology)
			}
			if model := s.ask("sed -n 's/^model name.*: //p' /proc/cpuinfo | sort -u"); !strings.Contains(model, m.model) {
				t.Errorf("CPU model %q; want %q", model, m.model)
			}
			if driver := s.ask("basename $(readlink /sys/class/net/eth0/device/driver)"); driver != m.driver {
				t.Errorf("driver of the NIC %q; want %q", driver, m.driver)
			}
			s.await("ifconfig eth0", "inet addr:"+strings.TrimSuffix(guestAddress, "/24")) // by DHCP, from the launcher
			s.await("ping -c 2 "+strings.TrimSuffix(podAddress, "/24"), "2 packets received")
			for command, pattern := range m.see {
				s.await(command, pattern)
			}
			if said := strings.Count(v.log.String(), "the container has no /dev/vhost-net"); said != 1 && m.driver == "virtio_net" { // DP-003
				t.Errorf("that packets go a slower way is said %d times; want once", said)
			}
			if m.name == "1 of all" {
				// VM-054: of version 1.2, and forgotten with the Pod.
				s.wants(map[string]string{"cat /sys/class/tpm/tpm0/tpm_version_major": `^1$`})
				if c := v.condition("StateEphemeral"); c["status"] != "True" {
					t.Errorf("condition %v", c)
				}
				nothingIsLost(t, v, s)
			}
		})
	}
}

// wantCPU compares the model of the status with what was asked for. What max stands for here is enough to ask for the same
// CPU by name: a VM that does is started.
func wantCPU(t *testing.T, v *vm, asked string) {
	t.Helper()
	var status vmstatus.Status
	if err := json.Unmarshal([]byte(v.ctl("status", "-o", "json")), &status); err != nil || status.CPU == nil {
		t.Fatalf("no CPU in the status: %v", err)
	}
	if asked != "max" {
		if status.CPU.Model != asked {
			t.Errorf("status says CPU model %q; want %q", status.CPU.Model, asked)
		}
		return
	}
	features := slices.Clone(status.CPU.Require)
	for _, name := range status.CPU.Disable {
		features = append(features, name+"=disable")
	}
	t.Logf("max is %s with %d features more and %d less", status.CPU.Model, len(status.CPU.Require), len(status.CPU.Disable))
	newPod(t, map[string]string{
		"start": "paused", "cpu-model": status.CPU.Model, "cpu-features": strings.Join(features, ","),
	}).start().paused()
}

// nothingIsLost: what the kernel says while the launcher stands still is on the console afterwards, whole. The kernel waits for
// its UART 10 ms at most (VM-140).
func nothingIsLost(t *testing.T, v *vm, s *shell) {
	t.Helper()
	const lines = 1000
	want := regexp.MustCompile(`kernel line (\d+)\.`)
	pipe, err := os.OpenFile(filepath.Join(v.spec.Mounts["/run/podvirt"], "serial0.out"), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	s.typeLine(`echo go''ing; sleep 1; for i in $(seq 1 ` + strconv.Itoa(lines) + `); do echo "<0>kernel line $i." >/dev/kmsg; done`)
	s.out.wait(t, `going`, 1)
	kill(t, v, "launcher", unix.SIGSTOP)
	waiting, since := 0, time.Now()
	v.eventually("the kernel says no more", func() bool {
		n, err := unix.IoctlGetInt(int(pipe.Fd()), unix.TIOCINQ)
		if err != nil {
			t.Fatal(err)
		}
		if n != waiting {
			waiting, since = n, time.Now()
		}
		return waiting > 0 && time.Since(since) > time.Second
	})
	kill(t, v, "launcher", unix.SIGCONT)
	v.says(`kernel line `+strconv.Itoa(lines)+`\.`, 1)
	seen := want.FindAllStringSubmatch(v.out.String(), -1)
	for i, match := range seen {
		if match[1] != strconv.Itoa(i+1) {
			t.Fatalf("line %d is %q", i+1, match[0])
		}
	}
	if len(seen) != lines {
		t.Errorf("%d of %d lines; %d bytes waited for the launcher", len(seen), lines, waiting)
	}
}

// TestCPUFeatures compares the flags of two guests: one with the model alone, one with every policy (VM-022, SC-031).
func TestCPUFeatures(t *testing.T) {
	t.Parallel()
	flags := func(features string) (map[string]bool, *shell) {
		v := newHardwarePod(t, map[string]string{"memory": "192Mi", "cpu-model": "qemu64", "cpu-features": features}).start()
		v.booted(1)
		s := v.shell()
		set := map[string]bool{}
		for flag := range strings.FieldsSeq(s.ask("sed -n 's/^flags.*: //p' /proc/cpuinfo | head -n 1")) {
			set[flag] = true
		}
		return set, s
	}
	plain, s := flags("svm=require") // of the model itself
	s.await("ls /dev/kvm", "^/dev/kvm$")
	changed, s := flags("svm=disable,aes,avx512f=optional,popcnt=optional,sse4.1=force,avx512bw=forbid")
	s.v.says(`can't insert '/modules/kvm_intel.ko'`, 1) // the last of the guest's drivers
	if answer := s.ask("ls /dev/kvm"); !strings.Contains(answer, "No such file") {
		t.Errorf("in a guest without svm ls /dev/kvm says %q", answer)
	}
	var diff []string
	for flag := range changed {
		if !plain[flag] {
			diff = append(diff, "+"+flag)
		}
	}
	for flag := range plain {
		if !changed[flag] {
			diff = append(diff, "-"+flag)
		}
	}
	slices.Sort(diff)
	if got := strings.Join(diff, " "); got != "+aes +popcnt +sse4_1 -svm" {
		t.Errorf("flags %s; want those that are asked for and can be had", got)
	}
}

// TestCannotRun: what this QEMU cannot give is refused by name, also where nobody asked before (VM-021, VM-022).
func TestCannotRun(t *testing.T) {
	t.Parallel()
	type annotations = map[string]string
	for _, row := range []struct {
		name    string
		asks    annotations
		code    int
		message string
	}{
		{"a model", annotations{"cpu-model": "Skylake-Server"}, 11, `^NodeLacks: the CPU lacks .*avx512f`},
		{"a feature", annotations{"cpu-model": "qemu64", "cpu-features": "avx512f"}, 11, `^NodeLacks: the CPU lacks avx512f$`},
		{"a forced feature", annotations{"cpu-model": "qemu64", "cpu-features": "avx512f=force"}, 13,
			`^StartFailed: podvirt\.dev/cpu-features: QEMU cannot give avx512f=force$`},
		{"a forbidden feature", annotations{"cpu-model": "qemu64", "cpu-features": "aes=forbid"}, 11, `^NodeLacks: the CPU has aes, which the VM forbids$`},
		{"dies", annotations{"cpu-topology": "dies=2"}, 11, `^NodeLacks: .*podvirt\.dev/cpu-topology: dies=2: not under emulation$`},
	} {
		t.Run(row.name, func(t *testing.T) { newPod(t, row.asks).start().wantEnd(row.code, row.message) })
	}
}

// limitCPU is a CPU limit in thousandths, as the kubelet projects it and as the cgroup of the container shows it.
func (p *pod) limitCPU(milli int) {
	p.t.Helper()
	group := p.volume("/sys/fs/cgroup")
	err := errors.Join(
		os.WriteFile(filepath.Join(p.spec.Mounts["/vm/pod"], "limits.cpu"), []byte(strconv.Itoa(milli)), 0o644),
		os.WriteFile(filepath.Join(group, "cpu.max"), []byte(strconv.Itoa(milli*100)+" 100000\n"), 0o644),
	)
	if err != nil {
		p.t.Fatal(err)
	}
}

// topology counts sockets, dies of a socket, cores of a die and threads of a core as the kernel understood them. Every
// socket has as many of each as the others, or the figures are none.
func (s *shell) topology() [4]int {
	s.v.t.Helper()
	text := s.ask("for t in /sys/devices/system/cpu/cpu[0-9]*/topology; do echo $(cat $t/physical_package_id $t/die_id $t/core_id); done")
	seen := [3]map[string]bool{{}, {}, {}}
	cpus := 0
	for line := range strings.Lines(text) {
		ids := strings.Fields(line)
		if len(ids) != len(seen) {
			s.v.t.Fatalf("the guest says of its CPUs %q", text)
		}
		cpus++
		for i := range seen {
			seen[i][fmt.Sprint(ids[:i+1])] = true
		}
	}
	sockets, dies, cores := len(seen[0]), len(seen[1]), len(seen[2])
	if dies%sockets+cores%dies+cpus%cores > 0 {
		return [4]int{}
	}
	return [4]int{sockets, dies / sockets, cores / dies, cpus / cores}
}

// TestMemory compares what the guest has with what was asked for: all that firmware calls RAM, less what BIOS and ACPI
// keep, and nothing more (VM-040).
func TestMemory(t *testing.T) {
	t.Parallel()
	const kib = 1 << 10
	for _, row := range []struct {
		memory string
		bytes  int64
	}{{"100M", 96 * mib}, {"1.5Gi", 1536 * mib}, {"8Gi", 8192 * mib}} {
		t.Run(row.memory, func(t *testing.T) {
			t.Parallel()
			v := newPod(t, map[string]string{"memory": row.memory}).start()
			v.booted(1)
			s := v.shell()
			// Memory: 1536K/2048K available (…, 512K reserved, …)
			found := regexp.MustCompile(`Memory: \d+K/(\d+)K available \(.* (\d+)K reserved`).FindStringSubmatch(s.ask("dmesg | grep Memory:"))
			if found == nil {
				t.Fatal("the kernel does not say how much memory there is")
			}
			present, reserved := number(t, found[1])*kib, number(t, found[2])*kib
			if present > row.bytes || present < row.bytes-mib {
				t.Errorf("%d bytes; want %d less what firmware keeps", present, row.bytes)
			}
			total := number(t, strings.Fields(s.ask("grep MemTotal /proc/meminfo"))[1]) * kib
			if total > present || total < present-reserved { // the kernel frees some of what it had reserved
				t.Errorf("MemTotal is %d bytes, and %d are reserved; want %d together", total, reserved, present)
			}
		})
	}
}

// TestLittleMemory: no kernel of today comes up in it, but QEMU has it (VM-040).
func TestLittleMemory(t *testing.T) {
	t.Parallel()
	v := newPod(t, map[string]string{"start": "paused", "memory": "64M"}).start()
	v.paused()
	if xml := v.ctl("xml"); !strings.Contains(xml, "<currentMemory unit='KiB'>63488</currentMemory>") { // 62 MiB
		t.Errorf("no 62 MiB:\n%s", xml)
	}
}

func number(t *testing.T, text string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
