package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"podvirt.dev/images/internal/run"
)

// grubModules is where Debian's grub-pc-bin and grub-efi-amd64-bin put GRUB's parts.
const grubModules = "/usr/lib/grub"

// grub makes an image of GRUB's core whose built-in configuration boots the disk's kernel at once, without a menu.
func (d Disk) grub(ctx context.Context, work, target, platform string, modules ...string) error {
	config := filepath.Join(work, "grub-"+platform+".cfg")
	if err := os.WriteFile(config, []byte(d.script()), 0o600); err != nil {
		return err
	}
	args := []string{"-O", platform, "-d", filepath.Join(grubModules, platform), "-o", target, "-p", "/grub", "-c", config}
	return run.Command(ctx, "grub-mkimage", append(args, modules...)...)
}

// script boots the disk's kernel.
func (d Disk) script() string {
	return fmt.Sprintf("search.fs_label %s root\nlinux ($root)%s %s\ninitrd ($root)%s\nboot\n",
		d.Loader.Label, d.Loader.Kernel, d.Loader.Options, d.Loader.Initrd)
}

// Offsets in GRUB's boot sector (GRUB, include/grub/i386/pc/boot.h) and in the first sector of its core image, at whose
// end the list of the core's further sectors is kept (grub-core/boot/i386/pc/diskboot.S).
const (
	bootBPBEnd       = 0x5a  // what is before belongs to the boot sector's BIOS parameter block
	bootKernelSector = 0x5c  // sector of the core image, 64 bits
	bootDriveCheck   = 0x66  // a jump that is taken on floppies only; hard disks have two no-ops here
	bootPartitions   = 0x1b8 // disk signature, partition table and the sector's own signature end the sector
	coreBlocklist    = sector - 12
)

// bios writes GRUB where a BIOS finds it: its boot sector beside the protective partition table, its core image in the
// BIOS boot partition. It does what grub-bios-setup does, which works on devices only and needs root.
func (d Disk) bios(ctx context.Context, work, raw string) error {
	corePath := filepath.Join(work, "core.img")
	err := d.grub(ctx, work, corePath, "i386-pc", "biosdisk", "part_gpt", "fat", "linux", "search_label", "boot")
	if err != nil {
		return err
	}
	boot, err := os.ReadFile(filepath.Join(grubModules, "i386-pc", "boot.img"))
	if err != nil {
		return err
	}
	core, err := os.ReadFile(corePath)
	if err != nil {
		return err
	}
	if len(boot) != sector || len(core) < sector || len(core) > coreSize*sector {
		return fmt.Errorf("boot.img has %d bytes, core.img %d: not the GRUB that is known here", len(boot), len(core))
	}
	binary.LittleEndian.PutUint64(boot[bootKernelSector:], coreStart)
	copy(boot[bootDriveCheck:], []byte{0x90, 0x90})
	binary.LittleEndian.PutUint64(core[coreBlocklist:], coreStart+1)
	return writeBoot(raw, boot, core)
}

func writeBoot(raw string, boot, core []byte) (err error) {
	f, err := os.OpenFile(raw, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	mbr := make([]byte, sector)
	if _, err := f.ReadAt(mbr, 0); err != nil {
		return err
	}
	copy(mbr[:3], boot[:3])
	copy(mbr[bootBPBEnd:bootPartitions], boot[bootBPBEnd:bootPartitions])
	if _, err := f.WriteAt(mbr, 0); err != nil {
		return err
	}
	_, err = f.WriteAt(core, coreStart*sector)
	return err
}
