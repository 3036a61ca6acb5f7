package launcher

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"podvirt.dev/internal/require"
)

// memoryGroup is the memory cgroup of a container, of either version of the kernel's interface (admin-guide/cgroup-v2.rst
// and cgroup-v1/memory.rst).
type memoryGroup struct {
	t   *testing.T
	dir string
	v2  bool
}

// limited puts the container into a memory cgroup of its own, which it sees as the kubelet lets it see it. A limit of 0
// bytes is none.
func (p *pod) limited(bytes int64) *memoryGroup {
	p.t.Helper()
	g := &memoryGroup{t: p.t}
	const v1, v2 = "/sys/fs/cgroup/memory", "/sys/fs/cgroup"
	mount := v1
	switch {
	case exists(v1 + "/memory.limit_in_bytes"):
		g.dir = filepath.Join(v1, filepath.Base(p.dir)+"-"+strconv.Itoa(os.Getpid()))
	case exists(v2 + "/cgroup.subtree_control"):
		g.v2, mount = true, v2
		g.dir = filepath.Join(v2, filepath.Base(p.dir)+"-"+strconv.Itoa(os.Getpid()))
	}
	require.Feature(p.t, g.dir != "", "a memory cgroup")
	if g.v2 {
		// Where the controller is there already, this fails for want of nothing.
		_ = os.WriteFile(v2+"/cgroup.subtree_control", []byte("+memory"), 0o644)
	}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(g.remove)
	if bytes > 0 {
		g.limit(bytes)
	}
	p.spec.Cgroup, p.spec.Mounts[mount] = g.dir, g.dir
	return g
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// remove waits until the last process has gone, which the kernel tells nobody.
func (g *memoryGroup) remove() {
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := os.Remove(g.dir)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			g.t.Errorf("left over: %v", err)
			return
		}
	}
}

func (g *memoryGroup) limit(bytes int64) {
	g.t.Helper()
	file := "memory.limit_in_bytes"
	if g.v2 {
		file = "memory.max"
	}
	if err := os.WriteFile(filepath.Join(g.dir, file), []byte(strconv.FormatInt(bytes, 10)), 0o644); err != nil {
		g.t.Fatal(err)
	}
}

// used is what counts against the limit and cannot be taken back at once, in bytes.
func (g *memoryGroup) used() int64 {
	if g.v2 {
		return g.number("memory.current") - g.field("memory.stat", "inactive_file")
	}
	return g.number("memory.usage_in_bytes") - g.field("memory.stat", "total_inactive_file")
}

// kills is how many processes the kernel has killed for want of memory.
func (g *memoryGroup) kills() int64 {
	if g.v2 {
		return g.field("memory.events", "oom_kill")
	}
	return g.field("memory.oom_control", "oom_kill")
}

func (g *memoryGroup) number(file string) int64 {
	g.t.Helper()
	raw, err := os.ReadFile(filepath.Join(g.dir, file))
	if err != nil {
		g.t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}

func (g *memoryGroup) field(file, name string) int64 {
	g.t.Helper()
	raw, err := os.ReadFile(filepath.Join(g.dir, file))
	if err != nil {
		g.t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				g.t.Fatal(err)
			}
			return n
		}
	}
	g.t.Fatalf("%s has no %s", file, name)
	return 0
}

// TestOutOfMemory: the kernel kills QEMU for the container's limit, the launcher lives to say so (VM-120), and before that
// the room that is left is told (VM-017).
func TestOutOfMemory(t *testing.T) {
	p := newPod(t, map[string]string{"memory": "512Mi"})
	group := p.limited(0)
	v := p.start()
	v.booted(1)
	s := v.login()
	const room = 24 << 20
	limit := (group.used() + room) &^ (1<<20 - 1)
	group.limit(limit)
	container, _ := v.stats()["Container"].(map[string]any)
	if headroom, ok := container["Headroom"].(float64); !ok || headroom <= 0 || headroom > 2*room {
		t.Errorf("launcher ctl stats says %v; want a headroom of about %d bytes", container, room)
	}
	s.typeLine("mkdir /tmp/m; mount -t tmpfs -o size=90% m /tmp/m; dd if=/dev/urandom of=/tmp/m/fill bs=1M count=350")
	v.wantEnd(22, `^OutOfMemory: QEMU was killed; limit `+strconv.FormatInt(limit>>20, 10)+`Mi, peak \d+Mi$`)
	if group.kills() == 0 {
		t.Error("the kernel has killed nobody")
	}
}
