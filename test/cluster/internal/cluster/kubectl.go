package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"podvirt.dev/test/cluster/internal/plan"
)

// kubectl runs kubectl as administrator and returns what it printed.
func (c *Cluster) kubectl(ctx context.Context, program, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, append([]string{"--kubeconfig", c.Layout.Kubeconfig()}, args...)...)
	// The cluster is on this host, whatever the environment says about proxies.
	cmd.Env = append(os.Environ(), "HTTPS_PROXY=", "HTTP_PROXY=", "https_proxy=", "http_proxy=", "ALL_PROXY=", "all_proxy=")
	var out, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return out.String(), nil
}

// applyAddons is called again and again by every Up; it changes nothing when the objects are there.
func (c *Cluster) applyAddons(ctx context.Context, kubectl string) error {
	_, err := c.kubectl(ctx, kubectl, plan.Addons(c.Layout), "apply", "--server-side", "--force-conflicts", "-f", "-")
	return err
}
