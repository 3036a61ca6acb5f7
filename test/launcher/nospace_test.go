package launcher

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// fullDisk attaches a disk of 32 MiB on a file system of 3 MiB, and returns what gives the file system enough room.
func fullDisk(t *testing.T, p *pod, name string) func() {
	t.Helper()
	dir := p.volume("/vm/disks/" + name)
	if err := unix.Mount("full", dir, "tmpfs", 0, "mode=755,size=3m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	path := filepath.Join(dir, "disk.img")
	if err := errors.Join(os.WriteFile(path, nil, 0o660), os.Truncate(path, 32*mib), os.Chown(path, userID, userID)); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Mount("full", dir, "tmpfs", unix.MS_REMOUNT, "mode=755,size=64m"); err != nil {
			t.Error(err)
		}
	}
}

// wantMended: a guest that writes more than its disk's volume holds stands still, and goes on by itself when there is room; nothing
// is lost (VM-079).
func wantMended(t *testing.T, v *vm, s *shell, grow func()) {
	t.Helper()
	const pattern = "yes podvirt | head -c 4194304"
	s.typeLine(pattern + " | dd of=/dev/vda bs=1M oflag=direct iflag=fullblock 2>/dev/null; echo writ''ten")
	v.eventually("paused for want of space", func() bool {
		state := v.state()
		return state["state"] == "paused" && state["reason"] == "no-space"
	})
	if c := v.condition("DiskError"); c["status"] != "True" {
		t.Errorf("condition %v", c)
	}
	grow()
	s.out.wait(t, `written`, 1)
	v.eventually("not paused", func() bool { return v.condition("Paused")["status"] == "False" })
	line := []byte("podvirt\n")
	whole := sha256.New()
	for range 4 * mib / len(line) {
		whole.Write(line)
	}
	s.wants(map[string]string{"echo 3 >/proc/sys/vm/drop_caches; head -c 4194304 /dev/vda | sha256sum": fmt.Sprintf(`^%x `, whole.Sum(nil))})
}
