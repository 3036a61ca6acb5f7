package launcher

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podvirt.dev/internal/require"
)

// twoCPUs are two of the machine's.
func twoCPUs(t *testing.T) []int {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	var cpus []int
	for cpu := 0; cpu < len(set)*64 && len(cpus) < 2; cpu++ {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	require.Feature(t, len(cpus) == 2, "two CPUs")
	return cpus
}

// TestDedicatedCPUs: of the two CPUs that the container has the vCPU gets one and QEMU's other threads the other, the IO
// thread among them (VM-024, SC-051, SC-052).
func TestDedicatedCPUs(t *testing.T) {
	cpus := twoCPUs(t)
	p := newPod(t, map[string]string{"cpu-dedicated": "true", "emulator-thread": "isolated", "console": "attach"})
	p.limitCPU(2000)
	p.spec.CPUs = cpus
	v := p.start()
	v.booted(1)
	qemu := hostPID(t, v, "qemu-system-x86")
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", qemu))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, task := range tasks {
		name, err1 := os.ReadFile(filepath.Join(task, "comm"))
		status, err2 := os.ReadFile(filepath.Join(task, "status"))
		if err1 != nil || err2 != nil {
			continue // it has ended
		}
		want, kind := cpus[1], "other"
		if strings.HasPrefix(string(name), "CPU ") {
			want, kind = cpus[0], "vCPU"
		} else if strings.HasPrefix(string(name), "IO ") {
			kind = "IO"
		}
		seen[kind]++
		if m := regexp.MustCompile(`Cpus_allowed_list:\t(.*)`).FindSubmatch(status); m == nil || string(m[1]) != strconv.Itoa(want) {
			t.Errorf("thread %q: CPUs %s; want %d", strings.TrimSpace(string(name)), m, want)
		}
	}
	if seen["vCPU"] != 1 || seen["IO"] == 0 || seen["other"] == 0 {
		t.Errorf("threads: %v; want one vCPU, and IO threads and others", seen)
	}
	if got := v.shell().ask("nproc"); got != "1" {
		t.Errorf("the guest has %s CPUs; want 1", got)
	}
}

// TestSharedInsteadOfDedicated: without the static CPU manager the container may use all CPUs, and must not pretend that
// they are its own (VM-024).
func TestSharedInsteadOfDedicated(t *testing.T) {
	p := newPod(t, map[string]string{"cpu-dedicated": "true"})
	p.limitCPU(1000)
	p.spec.CPUs = twoCPUs(t)
	p.start().wantEnd(11, `^NodeLacks: podvirt.dev/cpu-dedicated: "true": the node gave 2 shared CPUs instead of 1 exclusive ones: `+
		`its kubelet has no static CPU manager$`)
}
