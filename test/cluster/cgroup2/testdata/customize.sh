#!/bin/sh
# Makes the guest of a bare Debian root file system, $1.
set -eu
mkdir -p "$1/opt/podvirt"
cat >"$1/etc/fstab" <<FSTAB
/dev/vda / ext4 defaults 0 0
/dev/vdb /opt/podvirt ext4 ro 0 0
FSTAB
echo host >"$1/etc/hostname"
cat >"$1/etc/systemd/system/cluster-test.service" <<UNIT
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh /opt/podvirt/run.sh
StandardOutput=file:/dev/ttyS0
StandardError=file:/dev/ttyS0
TimeoutStartSec=infinity
[Install]
WantedBy=multi-user.target
UNIT
chroot "$1" systemctl enable cluster-test.service
chroot "$1" systemctl mask serial-getty@ttyS0.service getty@tty1.service
