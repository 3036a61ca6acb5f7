package disks

import (
	"encoding/binary"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/api"
	"podvirt.dev/internal/require"
	"podvirt.dev/launcher/internal/domain"
)

// TestOtherBlocks runs the real qemu-img on images of both formats (VM-077).
func TestOtherBlocks(t *testing.T) {
	tool, err := exec.LookPath("qemu-img")
	require.Feature(t, err == nil, "qemu-img")
	gpt := func(at int) []byte {
		head := make([]byte, 1<<20)
		copy(head[at:], "EFI PART")
		return head
	}
	fat := make([]byte, 1<<20)
	fat[0], fat[510], fat[511] = 0xeb, 0x55, 0xaa
	binary.LittleEndian.PutUint16(fat[11:], 512)
	told := func(size string) []string {
		return []string{"podvirt.dev/disk.x: blocksize=" + size + ": what is on the disk was laid out for blocks of 512 bytes: the guest will not find it"}
	}
	for _, row := range []struct {
		name      string
		content   []byte
		blockSize string
		qcow2     bool
		want      []string
	}{
		{"nothing asked", gpt(512), "", false, nil},
		{"512 bytes of physical 4 KiB", gpt(512), "512/4096", false, nil},
		{"a table for 512 bytes", gpt(512), "4096", false, told("4096")},
		{"the same in qcow2", gpt(512), "4096/4096", true, told("4096/4096")},
		{"a table for 4 KiB", gpt(4096), "4096", false, nil},
		{"FAT for 512 bytes", fat, "4096", false, told("4096")},
		{"blank", make([]byte, 1<<20), "4096", false, nil},
		{"shorter than a block", []byte("x"), "4096", false, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			d := domain.Disk{Options: api.Disk{Name: "x", BlockSize: row.blockSize}, Source: filepath.Join(dir, "disk"), Format: "raw"}
			put(t, d.Source, row.content, 0o644)
			if row.qcow2 {
				image := filepath.Join(dir, "disk.qcow2")
				if out, err := exec.Command(tool, "convert", "-c", "-O", "qcow2", d.Source, image).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				d.Source, d.Format = image, "qcow2"
			}
			got := Maker{Scratch: dir, QemuImg: tool}.OtherBlocks(t.Context(), []domain.Disk{d})
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("warnings (-want,+got):\n%s", diff)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "*.head")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
