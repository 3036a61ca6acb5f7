package plan

import (
	"context"
	"fmt"
	"os"
	"os/exec"
)

// PoolPath is where a node's storage pool is mounted.
const PoolPath = "/var/lib/podvirt/pools/default"

const poolSize = 64 << 30 // sparse

// makePool makes the image file of the storage pool, once.
func makePool(ctx context.Context, path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Truncate(poolSize); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := formatXFS(ctx, path+".tmp"); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// formatXFS makes a file system with reflinks, which make clones and snapshots instant.
func formatXFS(ctx context.Context, path string) error {
	out, err := exec.CommandContext(ctx, "mkfs.xfs", "-q", "-m", "reflink=1", "-L", "podvirt-pool", path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.xfs: %w: %s", err, out)
	}
	return nil
}
