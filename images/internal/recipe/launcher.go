package recipe

import "podvirt.dev/images/internal/rootfs"

// LauncherUser is the uid and gid of the launcher and of every QEMU (spec/README.md section 4).
const LauncherUser = 107

// noDocs leaves out what nobody reads in a container.
func noDocs() []string {
	return []string{
		"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/i18n/*",
		"/usr/share/lintian/*", "/usr/share/bash-completion/*", "/usr/share/zsh/*", "/usr/share/common-licenses/*",
		"/usr/share/gcc/*", "/usr/share/alsa/*", "/usr/share/systemtap/*",
	}
}

// launcherRoot is Debian's QEMU and libvirt without the daemons, init system and administration tools that the
// packages depend on.
func launcherRoot() *rootfs.Recipe {
	return &rootfs.Recipe{
		Name:  "launcher",
		Suite: "trixie",
		Packages: []string{
			"libvirt-daemon-driver-qemu", "libvirt-daemon", "libvirt-clients", "qemu-system-x86", "qemu-utils",
			"seabios", "ipxe-qemu", "ovmf", "swtpm", "swtpm-tools", "virtiofsd",
		},
		Exclude: append(noDocs(),
			"/usr/bin/qemu-system-i386", "/usr/bin/qemu-system-x86_64-microvm", "/usr/bin/qemu-pr-helper",
			"/usr/bin/qemu-vmsr-helper", "/usr/share/qemu/hppa-*", "/usr/share/qemu/openbios-*", "/usr/share/qemu/*.dtb",
			"/usr/share/qemu/skiboot.lid", "/usr/share/qemu/slof.bin", "/usr/share/qemu/u-boot*", "/usr/share/qemu/s390-*",
			"/usr/share/qemu/palcode-*", "/usr/share/qemu/trace-events-all", "/usr/share/qemu/npcm*"),
		// Debian would give the user some other number; the embedded driver wants the name to exist.
		Prepare: `echo "libvirt-qemu:x:107:107:virtual machines:/var/lib/libvirt:/usr/sbin/nologin" >>"$1/etc/passwd"
echo "libvirt-qemu:x:107:" >>"$1/etc/group"`,
		Purge: []string{
			"systemd", "systemd-sysv", "systemd-container", "libsystemd-shared", "libpam-systemd",
			"dbus", "dbus-bin", "dbus-daemon", "dbus-session-bus-common", "dbus-system-bus-common",
			"cron", "cron-daemon-common", "logrotate", "polkitd", "iproute2", "libvirt-daemon-log",
			"perl-base", "adduser", "passwd", "login.defs", "util-linux", "mount", "uidmap", "dmidecode",
			"gettext-base", "libpam-modules", "libpam-modules-bin", "libpam-runtime", "init-system-helpers",
			"sgml-base", "xml-core", "libxml2-utils", "sensible-utils", "ncurses-bin", "diffutils", "findutils", "tar",
			"gzip", "hostname", "sysvinit-utils", "bsdutils", "mawk", "libcap2-bin",
		},
		Finish: strip + `
rm -rf "$1"/etc/libvirt/qemu/networks "$1"/etc/libvirt/nwfilter "$1"/var/lib/systemd "$1"/usr/lib/systemd
mkdir -p "$1/var/lib/podvirt" && chown 107:107 "$1/var/lib/podvirt"`,
	}
}

// strip takes the package manager away, but leaves its list of packages for vulnerability scanners, and takes every
// set-uid bit: nothing may gain privileges in our images.
const strip = `set -e
rm -rf "$1"/tmp/* "$1"/var/log/* "$1"/var/cache/* "$1"/var/lib/apt "$1"/var/lib/dpkg/info
rm -rf "$1"/usr/share/debconf "$1"/usr/share/perl5 "$1"/usr/share/polkit-1 "$1"/usr/share/dbus-1 "$1"/usr/share/mime
rm -f "$1"/usr/bin/dpkg* "$1"/usr/sbin/dpkg* "$1"/usr/bin/deb* "$1"/usr/bin/localedef "$1"/var/lib/dpkg/*-old
rm -f "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/etc/machine-id "$1"/etc/passwd- "$1"/etc/group- "$1"/etc/shadow-
find "$1" -xdev -type f -perm /6000 -exec chmod ug-s {} +`
