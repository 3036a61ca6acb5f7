#!/bin/sh
# Installs the Debian packages that building, testing and the local cluster need. Nothing is done when all are there.
set -eu

packages="
  gcc libc6-dev pkg-config libvirt-dev libseccomp-dev
  iproute2 nftables procps kmod util-linux mount
  e2fsprogs xfsprogs btrfs-progs fio dosfstools mtools fdisk cpio xz-utils zstd bzip2
  mmdebstrap debian-archive-keyring busybox-static grub-common grub-pc-bin grub-efi-amd64-bin
  qemu-system-x86 qemu-utils qemu-guest-agent isc-dhcp-client genisoimage nasm
  openssh-client curl ca-certificates git
"

missing=""
for package in $packages; do
  case "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)" in
  installed) ;;
  *) missing="$missing $package" ;;
  esac
done
if [ -n "$missing" ]; then
  echo "installing:$missing"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -q -o DPkg::Lock::Timeout=300 -o APT::Update::Error-Mode=any update
  # shellcheck disable=SC2086 # one word per package
  apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $missing
fi

command -v go >/dev/null || { echo "Go is missing: install the version that go.mod names (https://go.dev/dl/)" >&2; exit 1; }
