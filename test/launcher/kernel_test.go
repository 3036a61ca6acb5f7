package launcher

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestKernel boots kernel and initramfs of the volume at /vm/kernel, without firmware's help (VM-058). The guest drives its disk by
// virtio 0.9 (VM-074), and has the ACPI tables of the user, byte by byte, and a generation ID (VM-064).
func TestKernel(t *testing.T) {
	p := newPod(t, map[string]string{
		"kernel":      "path=boot/vmlinuz,initrd=boot/initrd",
		"kernel-args": "console=ttyS0,115200 panic=-1 podvirt.mark=yes virtio_pci.force_legacy=1",
		"virtio":      "transitional", "genid": "c7f3a6b1-6d1b-4a57-9c2d-0c9b3f0f5f01",
	})
	delete(p.spec.Mounts, "/vm/disks/root")
	grow := fullDisk(t, p, "data")
	tables := p.volume("/vm/acpi")
	slic, msdm := writeTable(t, tables, "slic", 374), writeTable(t, tables, "msdm", 85)
	boot := filepath.Join(p.volume("/vm/kernel"), "boot")
	takeOut(t, p.world.tiny, boot, "vmlinuz", "initrd")
	v := p.start()
	v.booted(1)
	s := v.shell()
	s.wants(map[string]string{
		"cat /proc/cmdline": `podvirt\.mark=yes`,
		"cat /sys/block/vda/serial /sys/block/vda/device/../device": `^data\s*0x1001$`,
		"cat /proc/ioports": `virtio-pci-legacy`,
		"cd /sys/firmware/acpi/tables; sha256sum SLIC MSDM": `(?s)^` + slic + `  SLIC\s+` + msdm + `  MSDM$`,
		"ls /sys/bus/*/drivers/vmgenid":                     `QEMUVGID`,
	})
	if xml := v.ctl("xml"); !strings.Contains(xml, "<genid>c7f3a6b1-6d1b-4a57-9c2d-0c9b3f0f5f01</genid>") {
		t.Errorf("no such generation ID:\n%s", xml)
	}
	wantMended(t, v, s, grow)
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

// writeTable writes an ACPI table of that many bytes, and returns its checksum.
func writeTable(t *testing.T, dir, kind string, size int) string {
	t.Helper()
	table := make([]byte, size)
	copy(table, strings.ToUpper(kind))
	binary.LittleEndian.PutUint32(table[4:], uint32(size))
	copy(table[10:], "ACME  OEMTABLE")
	for i := 36; i < size; i++ {
		table[i] = byte(i)
	}
	for i, b := range table {
		if i != 9 {
			table[9] -= b
		}
	}
	if err := os.WriteFile(filepath.Join(dir, kind), table, 0o644); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(table))
}

// takeOut copies files from the EFI system partition of a disk, which begins at 2 MiB.
func takeOut(t *testing.T, disk, to string, names ...string) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	run := func(argv ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	run("qemu-img", "convert", "-O", "raw", disk, raw)
	for _, name := range names {
		target := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			t.Fatal(err)
		}
		run("mcopy", "-i", raw+"@@2M", "::"+name, target)
		if err := os.Chmod(target, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
