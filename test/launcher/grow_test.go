package launcher

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"podvirt.dev/internal/require"
)

// TestDisksGrow: a running guest sees the new size of a file and of a device within two seconds, on virtio and on SCSI,
// also when another launcher than the one that started it looks after it (storage.md ST-024).
func TestDisksGrow(t *testing.T) {
	p := newPod(t, map[string]string{"disk.filed": "bus=scsi"})
	file := growable(t, filepath.Join(p.volume("/vm/disks/filed"), "disk.img"))
	backing := growable(t, filepath.Join(t.TempDir(), "device.img"))
	out, err := exec.Command("losetup", "--find", "--show", backing).CombinedOutput()
	require.Feature(t, err == nil, "loop devices")
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", device).Run() })
	node := filepath.Join(t.TempDir(), "node")
	if out, err := exec.Command("cp", "--archive", device, node).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Chown(node, userID, userID); err != nil {
		t.Fatal(err)
	}
	p.spec.Mounts["/vm/disks/device"] = node
	v := p.start()
	v.booted(1)
	s := v.login()
	s.typeLine("sizes() { for d in /sys/block/sd? /sys/block/vd?; do echo size $(cat $d/size).; done; }")
	s.typeLine("watch() { until sizes | grep -q \" $1[.]\"; do usleep 100000; done; echo seen-$1-''now; }")

	grow := func(what string, sectors string, do func() error) {
		t.Helper()
		begin := time.Now()
		if err := do(); err != nil {
			t.Fatal(err)
		}
		s.typeLine("watch " + sectors)
		s.out.wait(t, "seen-"+sectors+"-now", 1)
		t.Logf("%s: the guest saw it after %v", what, time.Since(begin))
	}
	device96 := func() error {
		return errors.Join(os.Truncate(backing, 96<<20), exec.Command("losetup", "--set-capacity", device).Run())
	}
	grow("file", "163840", func() error { return os.Truncate(file, 80<<20) })
	grow("device", "196608", device96)
	qemu := hostPID(t, v, "qemu-system-x86")
	kill(t, v, "launcher", syscall.SIGKILL)
	v.eventually("the launcher is back", func() bool {
		_, _, code := v.inside(nil, "/usr/bin/launcher", "ctl", "probe", "state", "running")
		return code == 0
	})
	s = v.login()
	s.typeLine("watch 262144")
	if err := os.Truncate(file, 128<<20); err != nil {
		t.Fatal(err)
	}
	s.out.wait(t, "seen-262144-now", 1)
	if hostPID(t, v, "qemu-system-x86") != qemu {
		t.Error("QEMU was started anew")
	}
}

// growable makes a disk of 64 MiB of the launcher's user.
func growable(t *testing.T, name string) string {
	t.Helper()
	if err := errors.Join(os.WriteFile(name, nil, 0o660), os.Truncate(name, 64<<20), os.Chown(name, userID, userID)); err != nil {
		t.Fatal(err)
	}
	return name
}
