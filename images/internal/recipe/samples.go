package recipe

import "podvirt.dev/images/internal/rootfs"

// Samples are modules of the kernel's samples for mediated devices, which no distribution ships: mtty.ko makes serial cards
// and mdpy.ko displays, below /modules. They are built from Debian's source against Debian's headers and fit the kernel of
// Kernel when both are made on the same day.
func Samples() Image {
	return Image{Name: "mtty", Root: &rootfs.Recipe{
		Name: "mtty", Suite: "trixie", Variant: "apt",
		Packages: []string{"linux-headers-amd64", "linux-source-6.12", "gcc-14", "make", "xz-utils"},
		Finish: `set -e
mkdir -p "$1/modules"
tar -xJf "$1/usr/src/linux-source-6.12.tar.xz" -C "$1/modules" --strip-components=3 --wildcards '*/samples/vfio-mdev/*'
echo 'obj-m := mtty.o mdpy.o' > "$1/modules/Makefile"
chroot "$1" sh -c 'make -C /lib/modules/*/build M=/modules CC=gcc-14 modules'
find "$1/modules" -type f ! -name mtty.ko ! -name mdpy.ko -delete
rm -rf "$1"/usr/src/* "$1"/usr/lib/gcc "$1"/usr/libexec "$1"/usr/share "$1"/usr/lib/modules
`,
	}}
}
