package program

import (
	"podvirt.dev/api"
)

// Files of the container image and of the node.
const (
	emulator       = "/usr/bin/qemu-system-x86_64"
	qemuImg        = "/usr/bin/qemu-img"
	ovmfDir        = "/usr/share/OVMF"
	terminationLog = "/dev/termination-log"
	// nodeCapabilities is what the device plugin has found out about QEMU on this node, where it is mounted by CDI;
	// imageCapabilities what the build of the image has found out without KVM.
	nodeCapabilities  = "/var/lib/podvirt/qemu-capabilities"
	imageCapabilities = "/usr/share/podvirt/qemu-capabilities"
)

// Files of a running VM below /run/podvirt, which is in memory and outlives the container.
const (
	libvirtRoot = api.PathRun + "/libvirt"
	markFile    = api.PathRun + "/vm.json"
	logFile     = api.PathRun + "/log"
)

// reapedFile is where the reaper writes how orphans ended.
const reapedFile = api.PathRun + "/reaped"

// stoppingEnv is set by the reaper in a launcher that it starts again while a stop is under way.
const stoppingEnv = "PODVIRT_STOPPING"
