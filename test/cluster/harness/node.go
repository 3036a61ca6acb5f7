package harness

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"podvirt.dev/test/cluster/internal/supervise"
)

// NodePID is the host's number of a node's first process. Everything on the node ends with it.
func (c *Cluster) NodePID(t testing.TB, node string) int {
	t.Helper()
	record, alive, err := supervise.Alive(c.local.Layout, node)
	if err != nil || !alive {
		t.Fatalf("node %s does not run: %v", node, err)
	}
	return record.PID
}

// NodePath is where the host sees a file of a node.
func (c *Cluster) NodePath(t testing.TB, node, path string) string {
	t.Helper()
	return filepath.Join("/proc", strconv.Itoa(c.NodePID(t, node)), "root", path)
}

// OnNode runs a program of the host in a node's namespaces and returns what it printed.
func (c *Cluster) OnNode(t testing.TB, node string, argv ...string) string {
	t.Helper()
	pid := strconv.Itoa(c.NodePID(t, node))
	cmd := exec.CommandContext(t.Context(), "nsenter", append([]string{"--target", pid, "--all", "--"}, argv...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("on %s: %s: %v: %s", node, strings.Join(argv, " "), err, stderr.String())
	}
	return stdout.String()
}

// onNodeAnyhow is OnNode for the end of a test, when its context is over.
func (c *Cluster) onNodeAnyhow(t testing.TB, node string, argv ...string) {
	pid := strconv.Itoa(c.NodePID(t, node))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), Short)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "nsenter", append([]string{"--target", pid, "--all", "--"}, argv...)...).CombinedOutput(); err != nil {
		t.Errorf("on %s: %s: %v: %s", node, strings.Join(argv, " "), err, out)
	}
}

// RestartNode kills a node with everything on it, as a power cut would, and waits until it is Ready again.
func (c *Cluster) RestartNode(t testing.TB, node string) {
	t.Helper()
	before, begin := c.NodePID(t, node), time.Now()
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatalf("killing node %s: %v", node, err)
	}
	Eventually(t, Medium, "node "+node+" Ready again", func(ctx context.Context) error {
		record, alive, err := supervise.Alive(c.local.Layout, node)
		if err != nil || !alive || record.PID == before {
			return errors.Join(err, errors.New("not started yet"))
		}
		object, err := c.Client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, condition := range object.Status.Conditions {
			// The heartbeat must be of the new kubelet.
			if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue && condition.LastHeartbeatTime.After(begin) {
				return nil
			}
		}
		return errors.New("not Ready yet")
	})
}
