package disks

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/domain"
)

// headSize is how much of a disk is looked at, in bytes: two blocks of 4 KiB.
const headSize = 8 << 10

// OtherBlocks returns a warning for each disk whose content was laid out for blocks of another size than the guest will
// see (VM-077): it finds no partition there. Only disks with option blocksize are looked at.
func (m Maker) OtherBlocks(ctx context.Context, list []domain.Disk) []string {
	var warnings []string
	for _, d := range list {
		logical := domain.LogicalBlockSize(d.Options)
		if d.Source == "" || logical == domain.DefaultBlockSize {
			continue
		}
		head, err := m.head(ctx, d)
		if err != nil {
			continue // a disk that cannot be read is QEMU's to refuse
		}
		if size := blockSizeOf(head); size != 0 && size != logical {
			warnings = append(warnings, fmt.Sprintf("%s%s: blocksize=%s: what is on the disk was laid out for blocks of %d bytes: the guest will not find it",
				api.KeyDisk, d.Options.Name, d.Options.BlockSize, size))
		}
	}
	return warnings
}

// head returns the first bytes of the disk, whatever its format.
func (m Maker) head(ctx context.Context, d domain.Disk) ([]byte, error) {
	path := filepath.Join(m.Scratch, d.Options.Name+".head")
	defer func() { _ = os.Remove(path) }()
	cmd := exec.CommandContext(ctx, m.QemuImg, "dd", "-U", "-f", d.Format, "-O", "raw", "bs="+strconv.Itoa(headSize), "count=1", "if="+d.Source, "of="+path)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, &CommandError{Args: cmd.Args, Stderr: string(bytes.TrimSpace(out)), Err: err}
	}
	return os.ReadFile(path)
}

// blockSizeOf returns the logical block size, in bytes, that the content of a disk is for; 0: it does not say. A GUID
// partition table has its header in block 1 (UEFI 2.10, 5.3.2); a boot sector of FAT or NTFS names the size at offset 11.
func blockSizeOf(head []byte) int {
	for _, size := range []int{512, 4096} {
		if len(head) >= size+8 && string(head[size:size+8]) == "EFI PART" {
			return size
		}
	}
	if len(head) >= 512 && (head[0] == 0xeb || head[0] == 0xe9) && head[510] == 0x55 && head[511] == 0xaa {
		size := int(binary.LittleEndian.Uint16(head[11:]))
		if size >= 512 && size <= 4096 && size&(size-1) == 0 {
			return size
		}
	}
	return 0
}
