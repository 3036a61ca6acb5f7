package launcher

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestKernel boots kernel and initramfs of the volume at /vm/kernel, without firmware's help and without a disk (VM-058).
func TestKernel(t *testing.T) {
	p := newPod(t, map[string]string{
		"kernel": "path=boot/vmlinuz,initrd=boot/initrd", "kernel-args": "console=ttyS0,115200 panic=-1 podvirt.mark=yes",
	})
	delete(p.spec.Mounts, "/vm/disks/root")
	boot := filepath.Join(p.volume("/vm/kernel"), "boot")
	takeOut(t, p.world.tiny, boot, "vmlinuz", "initrd")
	v := p.start()
	v.booted(1)
	s := v.login()
	s.typeLine("cat /proc/cmdline; ls /sys/block")
	s.out.wait(t, "podvirt.mark=yes", 1)
	s.quit()

	t.Run("no such file", func(t *testing.T) {
		p := newPod(t, map[string]string{"kernel": "path=vmlinuz"})
		volume := p.volume("/vm/kernel")
		if err := os.WriteFile(filepath.Join(volume, "vmlinuz-6.12"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		p.start().wantEnd(12, `^VolumeProblem: /vm/kernel/vmlinuz: no such file; found: vmlinuz-6\.12$`)
	})
	t.Run("a link that leaves the volume", func(t *testing.T) {
		p := newPod(t, map[string]string{"kernel": "path=vmlinuz"})
		if err := os.Symlink("/etc/passwd", filepath.Join(p.volume("/vm/kernel"), "vmlinuz")); err != nil {
			t.Fatal(err)
		}
		p.start().wantEnd(12, `^VolumeProblem: /vm/kernel/vmlinuz: path escapes from parent; found: nothing$`)
	})
}

// takeOut copies files from the EFI system partition of a disk, which begins at 2 MiB.
func takeOut(t *testing.T, disk, to string, names ...string) {
	t.Helper()
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(t.TempDir(), "raw")
	run := func(argv ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	run("qemu-img", "convert", "-O", "raw", disk, raw)
	for _, name := range names {
		run("mcopy", "-i", raw+"@@2M", "::"+name, filepath.Join(to, name))
		if err := os.Chmod(filepath.Join(to, name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
