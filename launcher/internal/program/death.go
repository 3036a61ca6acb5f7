package program

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/lifecycle"
)

// reapPatience is how long the launcher waits for the reaper's word on QEMU: both learn of the death at the same time.
const reapPatience = time.Second

// death finds out how QEMU ended that ended without being asked.
func death(ctx context.Context, pid int, before memoryEvents) lifecycle.Outcome {
	status, known := waitReaped(ctx, pid)
	now := readMemoryEvents()
	killed := known && status.Signaled() && status.Signal() == unix.SIGKILL
	switch {
	case now.oomKills > before.oomKills && (killed || !known):
		return lifecycle.Outcome{Reason: api.ReasonOutOfMemory, Text: fmt.Sprintf(
			"QEMU was killed; limit %s, peak %s", mebibytes(now.limit), mebibytes(now.peak))}
	case !known:
		return lifecycle.Outcome{Reason: api.ReasonHypervisorCrash, Text: "qemu died"}
	case status.Signaled():
		return lifecycle.Outcome{Reason: api.ReasonHypervisorCrash, Text: "qemu died of " + unix.SignalName(status.Signal())}
	default:
		return lifecycle.Outcome{
			Reason: api.ReasonHypervisorCrash, Text: fmt.Sprintf("qemu ended by itself with exit status %d", status.ExitStatus()),
		}
	}
}

func mebibytes(bytes int64) string {
	if bytes <= 0 {
		return "unknown"
	}
	return strconv.FormatInt(bytes>>20, 10) + "Mi"
}

func waitReaped(ctx context.Context, pid int) (unix.WaitStatus, bool) {
	ctx, cancel := context.WithTimeout(ctx, reapPatience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if status, ok := reaped(pid); ok || pid <= 0 {
			return status, ok
		}
		select {
		case <-ctx.Done():
			return 0, false
		case <-tick.C:
		}
	}
}

// reaped looks for the last line about a process in the reaper's file.
func reaped(pid int) (status unix.WaitStatus, found bool) {
	f, err := os.Open(reapedFile)
	if err != nil {
		return 0, false
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		who, how, ok := strings.Cut(lines.Text(), " ")
		n, err1 := strconv.Atoi(who)
		s, err2 := strconv.ParseUint(how, 10, 32)
		if ok && err1 == nil && err2 == nil && n == pid {
			status, found = unix.WaitStatus(s), true
		}
	}
	return status, found
}

// memoryEvents is what the container's own cgroup says about memory; zero where it says nothing. Amounts are bytes.
type memoryEvents struct{ oomKills, limit, peak int64 }

// readMemoryEvents reads cgroup v2 or, on nodes that have it still, v1 (kernel, admin-guide/cgroup-v2.rst and
// cgroup-v1/memory.rst).
func readMemoryEvents() memoryEvents {
	const v2, v1 = "/sys/fs/cgroup/", "/sys/fs/cgroup/memory/"
	if kills, ok := field(v2+"memory.events", "oom_kill"); ok {
		return memoryEvents{oomKills: kills, limit: number(v2 + "memory.max"), peak: number(v2 + "memory.peak")}
	}
	kills, _ := field(v1+"memory.oom_control", "oom_kill")
	return memoryEvents{
		oomKills: kills, limit: number(v1 + "memory.limit_in_bytes"), peak: number(v1 + "memory.max_usage_in_bytes"),
	}
}

func field(path, name string) (int64, bool) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(raw)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && key == name {
			n, err := strconv.ParseInt(value, 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

func number(path string) int64 {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	if err != nil {
		return 0 // "max"
	}
	return n
}
