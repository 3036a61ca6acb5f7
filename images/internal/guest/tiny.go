package guest

import (
	"context"
	"os"
	"path/filepath"

	"podvirt.dev/images/internal/disk"
	"podvirt.dev/images/internal/gobuild"
	"podvirt.dev/images/internal/recipe"
	"podvirt.dev/images/internal/rootfs"
	"podvirt.dev/internal/initramfs"
)

// tinyRoot has the parts of the tiny guest: Debian's kernel for clouds and a static busybox.
func tinyRoot() rootfs.Recipe {
	return rootfs.Recipe{
		Name: "guest-tiny", Suite: "trixie", Variant: "extract", Packages: []string{"linux-image-cloud-amd64", "busybox-static"},
	}
}

// hardwareRoot has Debian's full kernel: the one for clouds drives few devices. Its loaders are signed.
func hardwareRoot() rootfs.Recipe { return *recipe.Kernel().Root }

func (b *Builder) tiny(ctx context.Context, target string) error {
	return b.small(ctx, target, small{root: tinyRoot(), modules: "tiny", label: "TINY"})
}

// hardware is the tiny guest with drivers for every device that a VM can be given. It starts under Secure Boot too.
func (b *Builder) hardware(ctx context.Context, target string) error {
	return b.small(ctx, target, small{root: hardwareRoot(), modules: "hardware", label: "HARDWARE", signed: true})
}

// small describes a guest that is a kernel and an initramfs, both on the EFI system partition.
type small struct {
	root    rootfs.Recipe
	modules string // folder with the lists of modules
	label   string // of the EFI system partition
	signed  bool   // the root has signed loaders
}

// loaders are those of the root; nil where it has none.
func (s small) loaders(root string) *disk.Signed {
	if !s.signed {
		return nil
	}
	return &disk.Signed{
		Shim: filepath.Join(root, "usr", "lib", "shim", "shimx64.efi.signed"),
		GRUB: filepath.Join(root, "usr", "lib", "grub", "x86_64-efi-signed", "grubx64.efi.signed"),
	}
}

func (b *Builder) small(ctx context.Context, target string, s small) error {
	root, err := b.Roots.Unpack(ctx, s.root)
	if err != nil {
		return err
	}
	release, err := kernel(root)
	if err != nil {
		return err
	}
	archive := target + ".initramfs"
	defer func() { _ = os.Remove(archive) }()
	err = writeInitramfs(archive, func(w *initramfs.Writer) []func() error {
		return []func() error{
			func() error { return addBusybox(ctx, w, filepath.Join(root, "usr", "bin", "busybox")) },
			func() error { return addTree(w, b.source("tiny", "root")) },
			func() error {
				return addModules(w, moduleDir(root, release), b.source(s.modules, "modules"), b.source(s.modules, "modules.later"))
			},
			func() error { return b.addGuestd(ctx, w) },
		}
	})
	if err != nil {
		return err
	}
	return disk.Disk{
		Size:    64 << 20,
		ESPSize: 48 << 20,
		ESP:     map[string]string{"vmlinuz": filepath.Join(root, "boot", "vmlinuz-"+release), "initrd": archive},
		Loader: disk.Loader{
			Label: s.label, Kernel: "/vmlinuz", Initrd: "/initrd", Options: "console=tty0 console=ttyS0,115200 panic=-1",
		},
		Signed: s.loaders(root),
	}.Write(ctx, target)
}

func (b *Builder) addGuestd(ctx context.Context, w *initramfs.Writer) error {
	program := b.Roots.Store.Path("programs/guestd")
	if err := gobuild.Build(ctx, gobuild.Program{Dir: b.Repository, Package: "./test/guests/tiny/guestd"}, program); err != nil {
		return err
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	return w.File("bin/guestd", 0o755, data)
}
