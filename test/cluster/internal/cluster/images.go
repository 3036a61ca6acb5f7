package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"podvirt.dev/internal/atomicfile"
	"podvirt.dev/test/cluster/internal/supervise"
)

const containerdSocket = "run/containerd/containerd.sock"

// LoadImages imports OCI archives into the container runtime of every node. An archive that a node has already is skipped.
func (c *Cluster) LoadImages(ctx context.Context, archives []string) error {
	for _, m := range c.Layout.Machines()[1:] {
		record, alive, err := supervise.Alive(c.Layout, m.Name)
		if err != nil {
			return err
		}
		if !alive {
			return fmt.Errorf("%s does not run", m.Name)
		}
		for _, archive := range archives {
			if err := c.loadImage(ctx, m.Name, record, archive); err != nil {
				return fmt.Errorf("%s: importing %s: %w", m.Name, archive, err)
			}
		}
	}
	return nil
}

func (c *Cluster) loadImage(ctx context.Context, node string, record supervise.Record, archive string) error {
	info, err := os.Stat(archive)
	if err != nil {
		return err
	}
	// The stamp lies beside the images it speaks of, so that it goes when they do.
	stamp := filepath.Join(c.Layout.Machine(node), "var/lib/containerd", "podvirt-imported-"+filepath.Base(archive))
	want := fmt.Sprintf("%s %d %s\n", archive, info.Size(), info.ModTime().Format(time.RFC3339Nano))
	have, err := os.ReadFile(stamp)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if string(have) == want {
		return nil
	}
	fmt.Fprintf(c.Log, "%s: importing %s\n", node, filepath.Base(archive))
	socket := filepath.Join(supervise.ProcessDir(record), "root", containerdSocket)
	ctr := filepath.Join(c.Layout.Machine(node), "opt/podvirt-local/bin/ctr")
	out, err := exec.CommandContext(ctx, ctr, "--address", socket, "--namespace", "k8s.io", "images", "import", archive).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return atomicfile.Write(stamp, []byte(want), 0o644)
}

// CachedImages returns the archives that the image builder left in the cache.
func (c *Cluster) CachedImages() ([]string, error) {
	return filepath.Glob(filepath.Join(c.Layout.Images(), "*.tar"))
}
