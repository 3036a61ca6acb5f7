package launcher

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// inGuest tells whether this is a guest of test/kernel.
func inGuest() bool { return os.Getenv("PODVIRT_KERNEL_TEST") == "1" }

// guestImages is where such a guest has the image cache.
const guestImages = "/images"

// guestWorld is the world in such a guest: the machine shares the image cache, and the runner has built the programs.
func guestWorld() (world, error) {
	const upper = "/upper"
	w := world{root: "/container", tiny: guestImages + "/guest-tiny.qcow2"}
	err := errors.Join(
		mkdirs(guestImages, upper, w.root),
		unix.Mount(".", guestImages, "9p", unix.MS_RDONLY, "trans=virtio,version=9p2000.L,msize=262144,cache=loose"),
		unix.Mount("upper", upper, "tmpfs", 0, ""), mkdirs(upper+"/files", upper+"/work"),
	)
	if err != nil {
		return w, err
	}
	lower, err := filepath.EvalSymlinks(guestImages + "/launcher-rootfs")
	if err != nil {
		return w, err
	}
	learnt := filepath.Join(w.root, "usr/share/podvirt/qemu-capabilities")
	if err := errors.Join(
		unix.Mount("overlay", w.root, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+"/files,workdir="+upper+"/work"),
		mkdirs(w.root+"/vm", w.root+"/run/podvirt", learnt),
	); err != nil {
		return w, err
	}
	script := fmt.Sprintf("cp /bin/launcher /bin/reaper %s/usr/bin/; cp %s/launcher-learnt/* %s/; ln -sf busybox /bin/nsenter",
		w.root, guestImages, learnt)
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		return w, fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return w, nil
}

func mkdirs(dirs ...string) error {
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}
