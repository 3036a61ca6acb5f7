package launcher

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// stressEnv is for how long each mix of TestOverhead runs, such as 20s; make test-overhead sets it.
const stressEnv = "PODVIRT_STRESS"

// minHeadroom is the room that a VM must always have in its cgroup (VM-017), in bytes.
const minHeadroom = 4 << 20

// mix is one VM and what it is made to do.
type mix struct {
	annotations map[string]string
	memory      int // MiB of the guest
	disks       int // data disks, written full
	tap         bool
	probes      bool
}

func mixes() map[string]mix {
	cores := func(n string) map[string]string { return map[string]string{"cpu-topology": "cores=" + n} }
	return map[string]mix{
		"memory":                   {memory: 256},
		"much memory":              {memory: 1024},
		"two vCPUs":                {memory: 256, annotations: cores("2")},
		"four vCPUs":               {memory: 256, annotations: cores("4")},
		"disk":                     {memory: 256, disks: 1},
		"four disks":               {memory: 256, disks: 4},
		"disk with page cache":     {memory: 256, disks: 1, annotations: map[string]string{"disk.data0": "cache=writeback"}},
		"NIC":                      {memory: 256, tap: true},
		"NIC with queues":          {memory: 256, tap: true, annotations: cores("2")},
		"probes":                   {memory: 256, probes: true},
		"video":                    {memory: 256, annotations: map[string]string{"video": "vga"}},
		"disks, NIC, vCPUs, probe": {memory: 512, disks: 2, tap: true, probes: true, annotations: cores("2")},
	}
}

// TestOverhead runs each mix in a cgroup with exactly the limit that is accounted for it: no process is killed, and there
// is room left at all times (VM-017, N2, N6). It prints the least room and the proportional set size of all processes.
func TestOverhead(t *testing.T) {
	duration := stress(t, "make test-overhead")
	for name, m := range mixes() {
		t.Run(name, func(t *testing.T) { m.run(t, duration) })
	}
}

func (m mix) run(t *testing.T, duration time.Duration) {
	annotations := map[string]string{"memory": strconv.Itoa(m.memory) + "Mi"}
	maps.Copy(annotations, m.annotations)
	if m.tap {
		annotations["nic.default"] = "binding=masquerade"
	}
	p := newPod(t, annotations)
	p.spec.Tap = m.tap
	for i := range m.disks {
		p.blankDisk(fmt.Sprintf("data%d", i), 128<<20)
	}
	group := p.limited(0)
	v := p.start()
	v.answers()
	s := v.state()
	accounted := (int64(s["memoryMiB"].(float64)) + int64(s["overheadMiB"].(float64))) << 20
	group.limit(accounted)
	v.booted(1)

	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	if m.probes {
		go v.probeOn(ctx, group)
	}
	m.load(v.login())
	least := group.watch(ctx)
	v.ctl("probe", "state", "running")
	if kills := group.kills(); kills > 0 || least < minHeadroom {
		t.Errorf("%d processes were killed, the least room was %d KiB; want none and %d", kills, least>>10, minHeadroom>>10)
	}
	t.Logf("accounted %d MiB, least room %.1f MiB, PSS at the end %.1f MiB", accounted>>20, float64(least)/(1<<20), v.pss())
}

// blankDisk mounts a claim with a disk of this size in bytes.
func (p *pod) blankDisk(name string, size int64) {
	p.t.Helper()
	disk := filepath.Join(p.volume("/vm/disks/"+name), "disk.img")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, size), os.Chown(disk, userID, userID)); err != nil {
		p.t.Fatal(err)
	}
}

// load keeps the guest busy: all its memory is written, its disks are written full, its vCPUs never rest.
func (m mix) load(s *session) {
	script := "n=$(($(sed -n 's/^MemAvailable: *\\([0-9]*\\).*/\\1/p' /proc/meminfo)/1024-24)); mkdir -p /tmp/m; " +
		"mount -t tmpfs -o size=${n}m m /tmp/m; (while :; do dd if=/dev/urandom of=/tmp/m/f bs=1M count=$n conv=notrunc; done) >/dev/null 2>&1 & " +
		"for c in $(seq $(nproc)); do (while :; do :; done) & done; "
	for i := range m.disks {
		device := "/dev/vd" + string(rune('b'+i))
		script += "(while :; do dd if=/dev/zero of=" + device + " bs=1M; done) >/dev/null 2>&1 & "
	}
	if m.tap {
		script += "ifconfig eth0 10.0.2.2 netmask 255.255.255.0; (while :; do ping -q -c 1000 -i 0 -s 1400 10.0.2.1; done) >/dev/null 2>&1 & "
	}
	s.typeLine(script)
}

// probeOn runs one probe process after the other in the container's cgroup, as the kubelet does.
func (v *vm) probeOn(ctx context.Context, group *memoryGroup) {
	for ctx.Err() == nil {
		cmd := exec.CommandContext(ctx, "sh", "-c", `echo $$ >"$1"/cgroup.procs; exec nsenter -t "$2" -m -p -n -r -S 107 -G 107 -- `+
			`/usr/bin/launcher probe state running`, "sh", group.dir, strconv.Itoa(v.cmd.Process.Pid))
		_ = cmd.Run() // what it costs counts, not what it says
	}
}

// watch returns the least room below the limit until ctx ends, in bytes.
func (g *memoryGroup) watch(ctx context.Context) int64 {
	limit := g.number(map[bool]string{true: "memory.max", false: "memory.limit_in_bytes"}[g.v2])
	least := limit
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return least
		case <-tick.C:
			least = min(least, limit-g.used())
		}
	}
}

// pss is the proportional set size of all processes of the container, in MiB.
func (v *vm) pss() float64 {
	v.t.Helper()
	total := 0.0
	for _, status := range processes(v.t, v) {
		pid := regexp.MustCompile(`(?m)^Pid:\s*(\d+)`).FindStringSubmatch(status)
		raw, err := os.ReadFile("/proc/" + pid[1] + "/smaps_rollup")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(raw)) {
			if value, ok := strings.CutPrefix(line, "Pss:"); ok {
				kib, err := strconv.Atoi(strings.Fields(value)[0])
				if err != nil {
					v.t.Fatal(err)
				}
				total += float64(kib) / 1024
			}
		}
	}
	return total
}

// TestProbeCost: what fifty probes a second cost the launcher by HTTP, which starts no process, with a guest whose agent
// answers (VM-176, N18): the share of a core, and the memory that the launcher has more meanwhile.
func TestProbeCost(t *testing.T) {
	duration := stress(t, "make bench-probes")
	p := newPod(t, map[string]string{"memory": "512Mi", "shutdown": "acpi,timeout=1s"})
	image := filepath.Join(p.spec.Mounts["/vm/disks/root"], "disk")
	if err := os.Remove(filepath.Join(image, "tiny.qcow2")); err != nil {
		t.Fatal(err)
	}
	copyFile(t, filepath.Join(filepath.Dir(p.world.tiny), "guest-debian.qcow2"), filepath.Join(image, "debian.qcow2"))
	v := p.start()
	v.loopback()
	v.eventually("a guest agent", func() bool {
		_, _, code := v.inside(nil, "/usr/bin/launcher", "ctl", "probe", "agent")
		return code == 0
	})
	for _, path := range []string{"/probe/state?is=running", "/probe/agent"} {
		t.Run(path, func(t *testing.T) {
			launcher := hostPID(t, v, "launcher")
			cpu, memory := v.idle(launcher, duration/4), anonymous(t, launcher)
			before := processTime(t, launcher)
			began := time.Now()
			answered, most := v.askOften(path, duration, launcher)
			took := time.Since(began).Seconds()
			used := (processTime(t, launcher) - before).Seconds() / took
			t.Logf("%.1f probes a second: %.1f %% of a core (idle %.1f %%), %.1f MiB more (of %.1f)",
				float64(answered)/took, 100*used, 100*cpu, most-memory, memory)
			if used-cpu > 0.05 || most-memory > 16 {
				t.Errorf("want at most 5 %% of a core and 16 MiB more")
			}
		})
	}
}

// stress is for how long a measurement runs; without PODVIRT_STRESS there is none.
func stress(t *testing.T, target string) time.Duration {
	t.Helper()
	text := os.Getenv(stressEnv)
	if text == "" {
		t.Skip(target + " runs this")
	}
	duration, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return duration
}

// idle is the share of a core that a process takes by itself.
func (v *vm) idle(pid int, during time.Duration) float64 {
	v.t.Helper()
	before := processTime(v.t, pid)
	<-time.After(during)
	return (processTime(v.t, pid) - before).Seconds() / during.Seconds()
}

// askOften asks fifty times a second, over one connection, and returns how often it was answered, which is every time, and
// the most memory that the process had meanwhile, in MiB.
func (v *vm) askOften(path string, during time.Duration, pid int) (answered int, most float64) {
	v.t.Helper()
	const perSecond = 50
	n := int(during.Seconds() * perSecond)
	cmd := exec.Command("nsenter", "-t", strconv.Itoa(v.cmd.Process.Pid), "-n", "--", "curl", "--silent", "--rate", strconv.Itoa(perSecond)+"/s",
		"--output", "/dev/null", "--write-out", "%{http_code}\\n", "http://127.0.0.1:49155"+path+"#[1-"+strconv.Itoa(n)+"]")
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			most = max(most, anonymous(v.t, pid))
		case err := <-done:
			if answered = strings.Count(out.String(), "200\n"); err != nil || answered != n {
				v.t.Errorf("%d of %d probes were answered: %v", answered, n, err)
			}
			return answered, most
		}
	}
}

// loopback switches on the interface that curl uses.
func (v *vm) loopback() {
	v.t.Helper()
	out, err := exec.Command("nsenter", "-t", strconv.Itoa(v.cmd.Process.Pid), "-n", "ip", "link", "set", "lo", "up").CombinedOutput()
	if err != nil {
		v.t.Fatalf("%v: %s", err, out)
	}
}

// anonymous is the memory that a process has of its own, in MiB.
func anonymous(t *testing.T, pid int) float64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^Pss_Anon: +(\d+) kB`).FindStringSubmatch(string(raw))
	if found == nil {
		t.Fatalf("no Pss_Anon: %s", raw)
	}
	kib, err := strconv.Atoi(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return float64(kib) / 1024
}

// processTime is how long a process has run, with the kernel's resolution of 10 ms (proc_pid_stat(5)).
func processTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	return ranFor(t, string(raw))
}

// ranFor is user and system time of a stat file.
func ranFor(t *testing.T, stat string) time.Duration {
	t.Helper()
	const user, system, ticks = 14 - 3, 15 - 3, 100 // the rest begins with field 3
	_, rest, _ := strings.Cut(stat, ") ")
	fields := strings.Fields(rest)
	u, err1 := strconv.Atoi(fields[user])
	s, err2 := strconv.Atoi(fields[system])
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u+s) * time.Second / ticks
}
