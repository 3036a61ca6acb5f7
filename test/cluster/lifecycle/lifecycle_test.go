package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"podvirt.dev/internal/require"
	"podvirt.dev/test/cluster/internal/cluster"
	"podvirt.dev/test/cluster/internal/layout"
	"podvirt.dev/test/cluster/internal/plan"
	"podvirt.dev/test/cluster/internal/supervise"
)

// instance is not the one that people and other tests use.
const instance = "9"

// witness is the name of a file behind a loop device that a test makes on a node, as a storage driver would.
const witness = "podvirt-lifecycle-witness.img"

// own returns a cluster for this test alone, which is removed when the test ends.
func own(t *testing.T) *cluster.Cluster {
	t.Helper()
	require.Root(t)
	env := map[string]string{
		"PODVIRT_INSTANCE": instance, "PODVIRT_CACHE": os.Getenv("PODVIRT_CACHE"), "PODVIRT_STATE": "/var/lib/podvirt-lifecycle-test",
	}
	l, err := layout.FromEnv(func(name string) string { return env[name] })
	if err != nil {
		t.Fatal(err)
	}
	c := cluster.New(l, os.Stderr)
	if err := c.Down(t.Context(), true); err != nil {
		t.Fatalf("removing an earlier run: %v", err)
	}
	t.Cleanup(func() {
		if err := c.Down(context.WithoutCancel(t.Context()), true); err != nil {
			t.Errorf("down: %v", err)
		}
	})
	return c
}

func up(t *testing.T, c *cluster.Cluster) time.Duration {
	t.Helper()
	begin := time.Now()
	if err := c.Up(t.Context()); err != nil {
		t.Fatalf("up: %v", err)
	}
	return time.Since(begin)
}

func wantNothingLeft(t *testing.T, c *cluster.Cluster, known namespaces) {
	t.Helper()
	for _, trace := range traces(t, c.Layout, known) {
		t.Errorf("left behind: %s", trace)
	}
}

// addWitness makes a loop device on a node over a file in its pool, which nobody on the node will free.
func addWitness(t *testing.T, l layout.Layout) {
	t.Helper()
	record, alive, err := supervise.Alive(l, "node1")
	if err != nil || !alive {
		t.Fatalf("node1: %v", err)
	}
	script := fmt.Sprintf("truncate -s 16M %[1]s/%[2]s && losetup --find %[1]s/%[2]s", plan.PoolPath, witness)
	output(t, "nsenter", "--target", strconv.Itoa(record.PID), "--all", "--", "sh", "-c", script)
	if len(lines(t, "", output(t, "losetup", "--list", "--noheadings"), witness)) != 1 {
		t.Fatal("the loop device is not seen on the host")
	}
}

func TestDownLeavesNothing(t *testing.T) {
	c := own(t)
	before := output(t, "nft", "list", "ruleset") + output(t, "cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding")
	t.Logf("first up: %s", up(t, c))
	known := machineNamespaces(t, c.Layout)
	if len(traces(t, c.Layout, known)) == 0 {
		t.Fatal("a running cluster leaves no trace: this test sees nothing")
	}
	record, _, err := supervise.Alive(c.Layout, "node1")
	if err != nil {
		t.Fatal(err)
	}
	second := up(t, c)
	t.Logf("second up: %s", second)
	if again, _, err := supervise.Alive(c.Layout, "node1"); err != nil || again != record {
		t.Errorf("the second up did not reuse what runs: %v, then %v (%v)", record, again, err)
	}
	if second > 10*time.Second {
		t.Errorf("the second up took %s", second)
	}
	addWitness(t, c.Layout)
	for _, purge := range []bool{false, true, true} {
		if err := c.Down(t.Context(), purge); err != nil {
			t.Fatalf("down: %v", err)
		}
		wantNothingLeft(t, c, known)
	}
	if _, err := os.Stat(c.Layout.State); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("state directory: %v", err)
	}
	after := output(t, "nft", "list", "ruleset") + output(t, "cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding")
	if before != after {
		t.Errorf("the host's rules or parameters changed:\n%s\n%s", before, after)
	}
}

func TestKilledSupervisorTakesEverythingWithIt(t *testing.T) {
	c := own(t)
	up(t, c)
	addWitness(t, c.Layout)
	known := machineNamespaces(t, c.Layout)
	killSupervisor(t, c.Layout)
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for len(processesIn(t, known)) > 0 {
		select {
		case <-deadline.C:
			t.Fatalf("processes outlive the supervisor: %v", processesIn(t, known))
		case <-ticker.C:
		}
	}
	t.Run("up repairs", func(t *testing.T) {
		up(t, c)
		maps.Copy(known, machineNamespaces(t, c.Layout))
	})
	killSupervisor(t, c.Layout)
	if err := c.Down(t.Context(), true); err != nil {
		t.Fatalf("down: %v", err)
	}
	wantNothingLeft(t, c, known)
}

// TestKilledUp kills the command at many points of its way; what it left behind must never be in the way.
func TestKilledUp(t *testing.T) {
	c := own(t)
	program := filepath.Join(t.TempDir(), "local")
	output(t, "go", "build", "-o", program, "podvirt.dev/test/cluster/local")
	for _, after := range []time.Duration{100, 300, 700, 1500, 2500} {
		cmd := exec.CommandContext(t.Context(), program, "up")
		cmd.Env = append(os.Environ(), c.Layout.Env()...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-time.After(after * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
	}
	up(t, c)
	known := machineNamespaces(t, c.Layout)
	if err := c.Down(t.Context(), true); err != nil {
		t.Fatalf("down: %v", err)
	}
	wantNothingLeft(t, c, known)
}

func killSupervisor(t *testing.T, l layout.Layout) {
	t.Helper()
	record, alive, err := supervise.Alive(l, supervise.Supervisor)
	if err != nil || !alive {
		t.Fatalf("supervisor: %v", err)
	}
	if err := syscall.Kill(record.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}
