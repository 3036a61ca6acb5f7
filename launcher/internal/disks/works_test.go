package disks

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"podvirt.dev/internal/require"
	"podvirt.dev/launcher/internal/domain"
)

// TestWorks: a file, a file that is gone, and one on a file system that is full and then is not (VM-079).
func TestWorks(t *testing.T) {
	require.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("full", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	disk := domain.Disk{Source: filepath.Join(dir, "disk.img")}
	if Works(disk) {
		t.Error("a file that is not there works")
	}
	if err := os.WriteFile(disk.Source, make([]byte, 3<<19), 0o600); err != nil {
		t.Fatal(err)
	}
	if Works(disk) {
		t.Error("a full file system works")
	}
	if err := unix.Mount("full", dir, "tmpfs", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	if !Works(disk) {
		t.Error("with room again it does not work")
	}
}
