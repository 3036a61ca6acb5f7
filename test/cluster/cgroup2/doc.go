// Package cgroup2 shows the local cluster on the other kind of host: Debian 12 with systemd and cgroup v2, as a QEMU guest.
package cgroup2
