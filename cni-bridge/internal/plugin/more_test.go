package plugin

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/plugins/pkg/ns"

	"podvirt.dev/cni-bridge/internal/world"
	"podvirt.dev/internal/nl"
)

// TestPodWithItsOwnUsers: the ids of a Pod with hostUsers: false cannot be named from outside, so the taps have no
// owner, and who has /dev/net/tun may open them.
func TestPodWithItsOwnUsers(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod(""))
	pod := child(t, envWait+"=1")
	stdin, err := pod.StdinPipe()
	must(t, err)
	pod.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: 100000, Size: 65536}}, GidMappings: []syscall.SysProcIDMap{{HostID: 100000, Size: 65536}},
	}
	must(t, pod.Start())
	defer func() { must(t, errors.Join(stdin.Close(), pod.Wait())) }()
	netns, err := ns.GetNS("/proc/" + strconv.Itoa(pod.Process.Pid) + "/ns/net")
	must(t, err)
	defer netns.Close()
	world.Do(t, a.Outside, func(h *nlHandle) { must(t, h.AddVeth("out1", "eth0", int(netns.Fd()))) })
	a.Pod = netns
	world.Do(t, netns, func(h *nlHandle) { must(t, h.Set(index(t, h, "eth0"), nl.Changes{Up: true})) })
	must(t, a.add(t))
	must(t, a.check(t))
	world.Do(t, netns, func(h *nlHandle) {
		for _, name := range []string{"tap0", "svc0"} {
			if link, err := h.Link(name); err != nil || link.Tap == nil || link.Tap.UID != nil || link.Tap.GID != nil {
				t.Errorf("%s: %+v, %v; want a tap without owner", name, link.Tap, err)
			}
		}
	})
	must(t, a.del(t))
}

// envRounds asks for more rounds than the test has time for: make soak-cni.
const envRounds = "PODVIRT_CNI_ROUNDS"

// TestManyAttachmentsLeaveNothing repeats ADD and DEL and compares what the process, the namespace and the kernel hold.
func TestManyAttachmentsLeaveNothing(t *testing.T) {
	rounds := fromEnv(t, envRounds, 50)
	a := newAttachment(t, world.Options{}, vmPod("ports=22+80-90"))
	var adds, dels []time.Duration
	var early kernelHolds
	before, files := world.Snapshot(t, a.Pod), 0
	for i := range rounds {
		if i == rounds/10 { // slabs and caches have been filled
			early = holds(t)
		}
		began := time.Now()
		must(t, a.add(t))
		added := time.Now()
		must(t, a.del(t))
		adds, dels = append(adds, added.Sub(began)), append(dels, time.Since(added))
		if i == 0 {
			files = openFiles(t)
		}
	}
	if after := world.Snapshot(t, a.Pod); withoutIndexes(before) != withoutIndexes(after) {
		t.Errorf("namespace before\n%s\nafter\n%s", before, after)
	}
	if now := openFiles(t); now > files {
		t.Errorf("%d open files; after the first round %d", now, files)
	}
	noJournal(t, a)
	notMore(t, rounds, early)
	slices.Sort(adds)
	slices.Sort(dels)
	t.Logf("ADD median %s, 99 %% %s; DEL median %s, 99 %% %s", adds[rounds/2], adds[rounds*99/100], dels[rounds/2], dels[rounds*99/100])
}

// kernelHolds is what one leak per round would fill: an attachment has two BPF programs. Both are figures of the machine,
// on which others work too.
type kernelHolds struct {
	programs int
	slab     int // KiB that the kernel cannot reclaim
}

// holdsPatience is how long what others hold may hide that an attachment leaves nothing.
const holdsPatience = 10 * time.Minute

// notMore wants the kernel to hold what it held early. What others take they give back, a leak stays.
func notMore(t *testing.T, rounds int, early kernelHolds) {
	t.Helper()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for deadline := time.Now().Add(holdsPatience); ; <-tick.C {
		late := holds(t)
		// In fewer rounds others fill more than a leak would.
		if late.programs <= early.programs+rounds/2 && (late.slab <= early.slab+64<<10 || rounds < 1000) {
			t.Logf("kernel: %+v after a tenth, %+v at the end", early, late)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("kernel: %+v after a tenth of the rounds, %+v at the end and %s later", early, late, holdsPatience)
		}
	}
}

func holds(t *testing.T) kernelHolds {
	t.Helper()
	var h kernelHolds
	for id := ebpf.ProgramID(0); ; h.programs++ {
		next, err := ebpf.ProgramGetNextID(id)
		if err != nil {
			break // the last one
		}
		id = next
	}
	data, err := os.ReadFile("/proc/meminfo")
	must(t, err)
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); fields[0] == "SUnreclaim:" {
			h.slab, err = strconv.Atoi(fields[1])
			must(t, err)
		}
	}
	return h
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

func withoutIndexes(snapshot string) string {
	var kept []string
	for line := range strings.Lines(snapshot) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[0] == "link" {
			line = strings.Join(append(fields[:1:1], fields[2:]...), " ")
		}
		kept = append(kept, line)
	}
	return strings.Join(kept, "")
}

// TestStrictReversePath: a node that sets rp_filter=1 passes it on to its Pods.
func TestStrictReversePath(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod(""))
	world.Do(t, a.Pod, func(*nlHandle) {
		for _, name := range []string{"all", "default", "eth0"} {
			must(t, os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/rp_filter", []byte("1"), 0o644))
		}
	})
	must(t, a.add(t))
	a.Boot(t)
	world.Listen(t, a.Guest, "10.0.2.2:80")
	world.Listen(t, a.Outside, world.Outside4+":80")
	for from, to := range map[ns.NetNS]string{a.Outside: world.Pod4, a.Pod: world.Pod4, a.Guest: world.Outside4} {
		if _, err := world.Ask(from, to+":80"); err != nil {
			t.Errorf("to %s: %v", to, err)
		}
	}
	if _, err := world.Ask(a.Guest, world.Pod4+":80"); err != nil {
		t.Errorf("guest to itself: %v", err)
	}
}

func TestLogFile(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod("ports=49152"))
	file := t.TempDir() + "/cni.log"
	a.extra = map[string]any{"logFile": file}
	if err := a.add(t); err == nil {
		t.Fatal("a reserved port was taken")
	}
	a.annotations = vmPod("")
	must(t, a.add(t))
	data, err := os.ReadFile(file)
	must(t, err)
	for _, want := range []string{`"verb":"ADD"`, "kept for the launcher", "K8S_POD_NAME=web-0", "Call done"} {
		if !strings.Contains(string(data), want) {
			t.Errorf("log file lacks %q:\n%s", want, data)
		}
	}
}
