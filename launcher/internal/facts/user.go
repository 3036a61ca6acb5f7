package facts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"podvirt.dev/internal/sysfs"
)

// Unprivileged makes a container that was started as root what a VM's container is: the launcher's user without
// capabilities, to whom /dev/kvm belongs. Only then are the facts those of a VM. It changes nothing where the process is
// not root, or where /dev is the node's own and not the container's.
//
// The directories are given to the user, since volumes of a container that starts as root belong to root.
func Unprivileged(root sysfs.FS, uid, gid int, dirs ...string) error {
	if os.Geteuid() != 0 || !privateDev(root) {
		return nil
	}
	for _, path := range append(dirs, "/dev/kvm") {
		if err := os.Chown(path, uid, gid); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("giving %s to uid %d: %w", path, uid, err)
		}
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(gid), syscall.Setuid(uid)); err != nil {
		return fmt.Errorf("becoming uid %d: %w", uid, err)
	}
	return nil
}

// privateDev reports whether /dev is a file system of the container: runtimes mount a tmpfs there and make the device
// nodes in it, while the node's own is a devtmpfs.
func privateDev(root sysfs.FS) bool {
	mounts, err := sysfs.Text(root, "proc/self/mountinfo")
	if err != nil {
		return false
	}
	private := false
	for line := range strings.Lines(mounts) {
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if len(fields) > 4 && fields[4] == "/dev" {
			private = strings.HasPrefix(after, "tmpfs ") // the last mount counts
		}
	}
	return private
}
