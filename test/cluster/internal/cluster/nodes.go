package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"podvirt.dev/test/cluster/internal/layout"
	"podvirt.dev/test/cluster/internal/supervise"
)

const pollPause = 200 * time.Millisecond

// waitNodes waits until every node has registered, knows its Pod addresses and is Ready.
func (c *Cluster) waitNodes(ctx context.Context) error {
	client, err := c.Client()
	if err != nil {
		return err
	}
	for _, m := range c.Layout.Machines()[1:] {
		err := c.wait(ctx, "node "+m.Name+" Ready", func() error { return nodeReady(ctx, client, m) })
		if err != nil {
			return err
		}
	}
	return nil
}

func nodeReady(ctx context.Context, client kubernetes.Interface, m layout.Machine) error {
	node, err := client.CoreV1().Nodes().Get(ctx, m.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if node.Spec.PodCIDR == "" {
		node.Spec.PodCIDR, node.Spec.PodCIDRs = m.PodNet4, []string{m.PodNet4, m.PodNet6}
		if _, err := client.CoreV1().Nodes().Update(ctx, node, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
			return nil
		} else if condition.Type == corev1.NodeReady {
			return fmt.Errorf("not ready: %s", condition.Message)
		}
	}
	return errors.New("not ready yet")
}

// wait polls until check succeeds or the supervisor is gone. The last error says what was missing when the time ran out.
func (c *Cluster) wait(ctx context.Context, what string, check func() error) error {
	ticker := time.NewTicker(pollPause)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		if !c.supervised() {
			return fmt.Errorf("the supervisor ended: %s", c.supervisorLog())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, errors.Join(ctx.Err(), err))
		case <-ticker.C:
		}
	}
}

// Status prints what runs.
func (c *Cluster) Status(ctx context.Context, out io.Writer) error {
	names := []string{supervise.Supervisor}
	for _, m := range c.Layout.Machines() {
		names = append(names, m.Name)
	}
	for _, name := range names {
		record, alive, err := supervise.Alive(c.Layout, name)
		if err != nil {
			return err
		}
		state := "stopped"
		if alive {
			state = fmt.Sprintf("running, pid %d", record.PID)
		}
		fmt.Fprintf(out, "%-12s %s\n", name, state)
	}
	client, err := c.Client()
	if err != nil {
		return nil // no kubeconfig: no cluster
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, m := range c.Layout.Machines()[1:] {
		if err := nodeReady(ctx, client, m); err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
		fmt.Fprintf(out, "%-12s Ready, %s, Pods %s %s\n", m.Name, m.Address4, m.PodNet4, m.PodNet6)
	}
	return nil
}

func (c *Cluster) supervised() bool {
	_, alive, err := supervise.Alive(c.Layout, supervise.Supervisor)
	return alive && err == nil
}

// supervisorLog returns the last lines of the supervisor's log.
func (c *Cluster) supervisorLog() string {
	data, err := os.ReadFile(filepath.Join(c.Layout.State, "run", "supervisor.log"))
	if err != nil {
		return err.Error()
	}
	const tail = 2000
	return string(data[max(0, len(data)-tail):])
}
