package guest

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"podvirt.dev/images/internal/disk"
	"podvirt.dev/images/internal/rootfs"
	"podvirt.dev/internal/initramfs"
)

// debianRoot is a Debian with what virtual machines are expected to have, and nothing that only costs time to start.
func (b *Builder) debianRoot() rootfs.Recipe {
	return rootfs.Recipe{
		Name: "guest-debian", Suite: "trixie",
		Packages: []string{
			"linux-image-cloud-amd64", "login", "apt", "e2fsprogs", "systemd-sysv", "systemd-resolved", "libpam-systemd",
			"udev", "dbus", "kmod", "cloud-init", "cloud-guest-utils", "fdisk", "openssh-server", "qemu-guest-agent", "python3", "sudo", "iproute2",
			"iputils-ping", "curl", "ca-certificates", "procps", "pciutils", "usbutils", "dmidecode", "less",
		},
		Exclude: []string{
			"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/i18n/*",
			"/usr/share/lintian/*",
			"/etc/kernel/postinst.d/initramfs-tools", // the guest's initramfs is ours
		},
		Purge: []string{
			"initramfs-tools", "initramfs-tools-core", "initramfs-tools-bin", "klibc-utils", "libklibc", "busybox",
			// cloud-init loads them where they are, to check its own configuration: a fifth of its start.
			"python3-jsonschema", "python3-jsonschema-specifications", "python3-referencing", "python3-rpds-py", "python3-attr",
		},
		Overlay: b.source("debian", "root"),
		Finish:  debianFinish,
	}
}

// debianFinish leaves no identity behind, and masks what has no use in a test. Python's compiled files are made anew:
// the usual ones carry their sources' times, which building an image changes, and would be made at every first boot.
const debianFinish = `set -e
chroot "$1" python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3 /usr/lib/python3.13
rm -rf "$1"/etc/ssh/ssh_host_* "$1"/var/lib/apt/lists/* "$1"/var/cache/* "$1"/tmp/* "$1"/etc/resolv.conf
: >"$1/etc/machine-id"
ln -s ../run/systemd/resolve/stub-resolv.conf "$1/etc/resolv.conf"
mkdir -p "$1/var/log/journal" "$1/var/cache/apt/archives/partial" "$1/boot/efi"
chroot "$1" systemctl --quiet enable systemd-networkd systemd-resolved
chroot "$1" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
	e2scrub_reap.service fstrim.timer systemd-tpm2-setup.service systemd-tpm2-setup-early.service \
	systemd-pcrmachine.service systemd-pcrphase.service systemd-pcrphase-sysinit.service cloud-init-hotplugd.socket \
	systemd-hwdb-update.service ldconfig.service
chroot "$1" passwd --quiet --lock root
touch "$1/etc/.updated" "$1/var/.updated"`

// debian makes a guest with a root partition, started by an initramfs of a few modules.
func (b *Builder) debian(ctx context.Context, target string) error {
	root, err := b.Roots.Unpack(ctx, b.debianRoot())
	if err != nil {
		return err
	}
	parts, err := b.Roots.Unpack(ctx, tinyRoot())
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
			func() error { return addBusybox(ctx, w, filepath.Join(parts, "usr", "bin", "busybox")) },
			func() error { return addTree(w, b.source("debian", "initramfs")) },
			func() error { return addModules(w, moduleDir(root, release), b.source("debian", "modules"), "") },
		}
	})
	if err != nil {
		return err
	}
	return disk.Disk{
		Size:    3 << 30,
		ESPSize: 24 << 20,
		ESP:     map[string]string{"initrd": archive, "vmlinuz": filepath.Join(root, "boot", "vmlinuz-"+release)},
		Root:    root,
		Label:   "debian",
		Loader:  disk.Loader{Label: "DEBIANESP", Kernel: "/vmlinuz", Initrd: "/initrd", Options: debianOptions()},
	}.Write(ctx, target)
}

func debianOptions() string {
	return strings.Join([]string{
		"root=LABEL=debian", "ro", "console=tty0", "console=ttyS0,115200", "net.ifnames=0", "panic=-1",
		// Who reads a log wants neither colours nor questions to a terminal.
		"systemd.tty.term.console=dumb", "systemd.tty.rows.console=25", "systemd.tty.columns.console=80",
		"systemd.tty.term.ttyS0=vt220", "systemd.tty.rows.ttyS0=25", "systemd.tty.columns.ttyS0=80",
	}, " ")
}
