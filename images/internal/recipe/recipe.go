// Package recipe is the table of the images and test guests that podvirt builds.
package recipe

import (
	"io/fs"

	"podvirt.dev/images/internal/rootfs"
)

// Prefix and Tag make an image's name: localhost/podvirt/launcher:dev.
const (
	Prefix = "localhost/podvirt/"
	Tag    = ":dev"
)

// Image describes one container image: a root file system, or nothing, with files on top.
type Image struct {
	Name       string // short name; Ref is the full one
	Root       *rootfs.Recipe
	Files      []File
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string // "uid:gid"; empty is root
	Learn      *Learn
	Optional   bool // built when it is named, not by "all"
}

// Learn is a command that is run in the image when it is built, and finds out what a container would else have to.
type Learn struct {
	Command []string // its first word is one of the image's programs; a directory to write to is added as last argument
	Dir     string   // where in the image the files go that the command wrote
}

// Ref is the name under which the image is imported.
func (i Image) Ref() string { return Prefix + i.Name + Tag }

// File is one file or directory of an image; exactly one of Program, Disk, Dir and Link says which.
type File struct {
	Path    string
	Mode    fs.FileMode // 0755 for programs, 0644 for disks where 0
	Program *Program
	Disk    string // test guest whose qcow2 image this is
	Dir     bool
	Link    string
}

// Program is a Go program to build.
type Program struct {
	Module  string // directory of its module in the repository; empty is the root module
	Package string
	CGO     bool // links the C library of the build machine, which must not be newer than the image's
	Tags    string
}

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// All returns every image in the order in which they are built.
func All() []Image {
	return []Image{
		launcher(),
		static("scheduler", File{Path: "/usr/bin/scheduler", Program: &Program{Package: "./scheduler"}}),
		static("controller", File{Path: "/usr/bin/controller", Program: &Program{Package: "./controller"}}),
		static("device-plugin",
			File{Path: "/usr/bin/device-plugin", Program: &Program{Package: "./device-plugin"}},
			File{Path: "/usr/bin/device-hook", Program: &Program{Package: "./device-plugin/device-hook"}}),
		static("cni-bridge", File{Path: "/usr/bin/cni-bridge", Program: &Program{Package: "./cni-bridge"}}),
		csiHostpath(),
		static("csi-provisioner", File{Path: "/usr/bin/csi-provisioner", Program: &Program{
			Module: "test/programs/csi", Package: "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"}}),
		snapshotter("csi-snapshotter"),
		snapshotter("snapshot-controller"),
		static("pause", File{Path: "/usr/bin/pause", Program: &Program{Package: "./test/programs/pause"}}),
		tools(),
		guest("guest-tiny"),
		guest("guest-hardware"),
		guest("guest-debian"),
	}
}

// Kernel is a root file system that belongs to no image: the kernel that tests boot, with all its modules, busybox, and the
// loaders that firmware with Secure Boot starts.
func Kernel() Image {
	return Image{Name: "kernel", Root: &rootfs.Recipe{
		Name: "kernel", Suite: "trixie", Variant: "extract", Packages: []string{
			"linux-image-amd64", "busybox-static", "shim-signed", "grub-efi-amd64-signed",
		},
	}}
}

// Find returns the image of that name.
func Find(name string) (Image, bool) {
	for _, image := range All() {
		if image.Name == name {
			return image, true
		}
	}
	return Image{}, false
}

// static is an image of nothing but static programs; the first is the entry point.
func static(name string, programs ...File) Image {
	return Image{
		Name:       name,
		Files:      append(programs, File{Path: "/tmp", Mode: 0o777 | fs.ModeSticky, Dir: true}),
		Entrypoint: []string{programs[0].Path},
		Env:        []string{searchPath},
	}
}

// snapshotter is a program of Kubernetes' external-snapshotter, for clusters with VolumeSnapshots.
func snapshotter(name string) Image {
	image := static(name, File{Path: "/usr/bin/" + name, Program: &Program{
		Module: "test/programs/csi", Package: "github.com/kubernetes-csi/external-snapshotter/v8/cmd/" + name}})
	image.Optional = true
	return image
}

func launcher() Image {
	return Image{
		Name: "launcher",
		Root: launcherRoot(),
		Files: []File{
			{Path: "/dev", Dir: true},
			// libvirt is opened by who runs a VM, not by every ctl and probe process.
			{Path: "/usr/bin/launcher", Program: &Program{Package: "./launcher", CGO: true, Tags: "libvirt_dlopen"}},
			{Path: "/usr/bin/reaper", Program: &Program{Package: "./launcher/reaper"}},
		},
		Entrypoint: []string{"/usr/bin/reaper", "/usr/bin/launcher"},
		Env:        []string{searchPath},
		User:       "107:107",
		// Asking QEMU what it can do takes seconds (design.md section 4).
		Learn: &Learn{Command: []string{"/usr/bin/launcher", "capabilities"}, Dir: "/usr/share/podvirt/qemu-capabilities"},
	}
}

func csiHostpath() Image {
	return Image{
		Name: "csi-hostpath",
		Root: &rootfs.Recipe{
			Name: "csi-hostpath", Suite: "trixie",
			Packages: []string{"e2fsprogs", "xfsprogs", "btrfs-progs", "ca-certificates"}, // the last for imports
			Exclude:  append(noDocs(), "/usr/sbin/xfs_scrub*"),
			Purge: []string{
				"adduser", "passwd", "perl-base", "init-system-helpers", "sensible-utils", "tar", "gzip", "diffutils",
				// Needed by xfs_scrub only.
				"python3", "python3-minimal", "python3.13", "python3.13-minimal", "libpython3-stdlib", "libpython3.13-stdlib",
				"libpython3.13-minimal", "libicu76", "media-types", "tzdata",
			},
			Finish: strip,
		},
		Files: []File{
			{Path: "/dev", Dir: true},
			{Path: "/usr/bin/csi-hostpath", Program: &Program{Package: "./csi-hostpath"}},
		},
		Entrypoint: []string{"/usr/bin/csi-hostpath"},
		Env:        []string{searchPath},
	}
}

// tools is what tests run beside VMs: a shell, an ssh client and an http client.
func tools() Image {
	return Image{
		Name: "tools",
		Root: &rootfs.Recipe{
			Name: "tools", Suite: "trixie",
			Packages: []string{"busybox-static", "openssh-client", "curl", "ca-certificates", "iputils-ping"},
			Exclude:  noDocs(),
			Purge:    []string{"perl-base", "adduser", "passwd", "init-system-helpers"},
			// Names that no Debian package in the image has taken become busybox's.
			Finish: strip + `
chroot "$1" /bin/busybox --list-full | while read -r f; do [ -e "$1/$f" ] || ln -s /usr/bin/busybox "$1/$f"; done`,
		},
		Files: []File{{Path: "/dev", Dir: true}},
		Cmd:   []string{"/bin/sh"},
		Env:   []string{searchPath},
	}
}

// guest is an image volume's content: one disk below /disk/ (design.md section 4).
func guest(name string) Image {
	return Image{Name: name, Files: []File{{Path: "/disk/disk.qcow2", Disk: name}}}
}
