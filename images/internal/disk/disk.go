// Package disk makes bootable disk images without root rights, loop devices or mounts. A disk has a GUID partition table
// with GRUB for BIOS, an EFI system partition with GRUB for UEFI, and a root file system, and boots by either firmware.
package disk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"podvirt.dev/images/internal/run"
)

// Layout of every disk, in sectors of 512 bytes: GRUB's core at 1 MiB, the EFI system partition at 2 MiB, the rest after it.
const (
	sector    = 512
	mebibyte  = 1 << 20
	coreStart = mebibyte / sector
	coreSize  = mebibyte / sector
	espStart  = coreStart + coreSize
)

// Disk describes a disk image.
type Disk struct {
	Size    int64             // bytes, a multiple of 1 MiB
	ESPSize int64             // bytes, a multiple of 1 MiB
	ESP     map[string]string // files of the EFI system partition by their path in it; values are files on this machine
	Root    string            // directory that becomes the root partition, or empty for none
	Label   string            // of the root partition's file system
	Loader  Loader
	Signed  *Signed // nil: GRUB made here, which firmware with Secure Boot refuses
}

// Signed are the loaders of a distribution that firmware with Secure Boot starts: shim, which is signed by Microsoft, and
// the GRUB that shim trusts and that reads EFI/debian/grub.cfg.
type Signed struct{ Shim, GRUB string }

// Loader says what GRUB starts.
type Loader struct {
	Label   string // of the EFI system partition, where kernel and initramfs are; at most 11 capital letters
	Kernel  string // path there
	Initrd  string // path there
	Options string // kernel command line
}

// Write makes a qcow2 image of the disk.
func (d Disk) Write(ctx context.Context, target string) (err error) {
	work, err := os.MkdirTemp(filepath.Dir(target), ".disk-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	raw := filepath.Join(work, "raw")
	steps := []struct {
		name string
		do   func(ctx context.Context, work, raw string) error
	}{
		{"partition table", d.partition},
		{"GRUB for BIOS", d.bios},
		{"EFI system partition", d.esp},
		{"root file system", d.root},
	}
	for _, step := range steps {
		if err := step.do(ctx, work, raw); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return run.Command(ctx, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, target)
}

// Partition types and identifiers of the GUID partition table. Fixed ones make disks reproducible.
const (
	typeBIOSBoot = "21686148-6449-6E6F-744E-656564454649"
	typeESP      = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	typeLinux    = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	diskID       = "706F6476-6972-7400-8000-000000000000"
	rootID       = "706F6476-6972-7400-8000-000000000010"
)

func (d Disk) partition(ctx context.Context, work, raw string) error {
	f, err := os.Create(raw)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(d.Size), f.Close()); err != nil {
		return err
	}
	var table strings.Builder
	fmt.Fprintf(&table, "label: gpt\nlabel-id: %s\n", diskID)
	fmt.Fprintf(&table, "start=%d, size=%d, type=%s, uuid=%s1\n", coreStart, coreSize, typeBIOSBoot, diskID[:35])
	fmt.Fprintf(&table, "start=%d, size=%d, type=%s, uuid=%s2\n", espStart, d.ESPSize/sector, typeESP, diskID[:35])
	if d.Root != "" {
		fmt.Fprintf(&table, "start=%d, type=%s, uuid=%s3\n", d.rootStart()/sector, typeLinux, diskID[:35])
	}
	script := filepath.Join(work, "table")
	if err := os.WriteFile(script, []byte(table.String()), 0o600); err != nil {
		return err
	}
	return run.WithInput(ctx, script, "sfdisk", "--quiet", raw)
}

func (d Disk) rootStart() int64 { return espStart*sector + d.ESPSize }

// esp makes the EFI system partition: FAT, with the boot loader of removable media.
func (d Disk) esp(ctx context.Context, work, raw string) error {
	files, err := d.loaders(ctx, work)
	if err != nil {
		return err
	}
	image := filepath.Join(work, "esp")
	if err := run.Command(ctx, "mkfs.vfat", "--invariant", "-n", d.Loader.Label, "-C", image, fmt.Sprint(d.ESPSize/1024)); err != nil {
		return err
	}
	if err := run.Command(ctx, "mmd", "-i", image, "::/EFI", "::/EFI/BOOT", "::/EFI/debian"); err != nil {
		return err
	}
	maps.Copy(files, d.ESP)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := run.Command(ctx, "mcopy", "-i", image, files[name], "::/"+name); err != nil {
			return err
		}
	}
	return copyAt(raw, image, espStart*sector)
}

// loaders are the files of the EFI system partition that start the kernel.
func (d Disk) loaders(ctx context.Context, work string) (map[string]string, error) {
	if d.Signed != nil {
		config := filepath.Join(work, "grub.cfg")
		return map[string]string{
			"EFI/BOOT/BOOTX64.EFI": d.Signed.Shim, "EFI/BOOT/grubx64.efi": d.Signed.GRUB, "EFI/debian/grub.cfg": config,
		}, os.WriteFile(config, []byte(d.script()), 0o600)
	}
	loader := filepath.Join(work, "bootx64.efi")
	return map[string]string{"EFI/BOOT/BOOTX64.EFI": loader},
		d.grub(ctx, work, loader, "x86_64-efi", "part_gpt", "fat", "linux", "search_label", "boot")
}

func (d Disk) root(ctx context.Context, _, raw string) error {
	if d.Root == "" {
		return nil
	}
	// The last MiB holds the backup of the partition table.
	blocks := (d.Size - d.rootStart() - mebibyte) / 4096
	return run.Command(ctx, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-L", d.Label, "-U", rootID, "-d", d.Root,
		"-E", fmt.Sprintf("offset=%d,hash_seed=%s,lazy_itable_init=1,nodiscard", d.rootStart(), rootID),
		raw, fmt.Sprint(blocks))
}

// copyAt writes a file into another one at an offset.
func copyAt(target, source string, offset int64) (err error) {
	data, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(target, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = f.WriteAt(data, offset)
	return err
}
