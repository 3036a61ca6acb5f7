package libvirt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"golang.org/x/sys/unix"
)

// cacheDir is where the driver keeps, below its root, what it has learnt from QEMU. Asking QEMU again takes seconds.
const cacheDir = "cache/qemu/capabilities"

// Files whose times libvirt compares with those in the cache (libvirt, src/qemu/qemu_capabilities.c,
// virQEMUCapsIsValid): QEMU itself, its directory of modules, the driver.
var (
	moduleDirs  = []string{"/usr/lib/x86_64-linux-gnu/qemu", "/usr/lib/qemu", "/usr/lib64/qemu"} //nolint:gochecknoglobals // constant
	driverPaths = []string{                                                                      //nolint:gochecknoglobals // constant
		"/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so",
		"/usr/lib64/libvirt/connection-driver/libvirt_driver_qemu.so",
		"/usr/lib/libvirt/connection-driver/libvirt_driver_qemu.so",
	}
)

// ErrNoCache says that none of the sources holds answers of QEMU.
var ErrNoCache = errors.New("no kept answers of QEMU")

// Prime puts what was learnt about QEMU before into the driver's cache, unless something is there: from the node, where
// the very files of this image were asked, else from the build of the image. Those of the build carry the times of
// the build's files, which unpacking changes, and are stamped anew: that file and QEMU come from one image.
// libvirt throws away what does not fit, in particular answers got without KVM where there is KVM.
func Prime(root, emulator, node, image string) error {
	target := filepath.Join(root, cacheDir)
	if files, err := filepath.Glob(filepath.Join(target, "*.xml")); err == nil && len(files) > 0 {
		return nil
	}
	for _, source := range []struct {
		dir   string
		stamp bool
	}{{node, false}, {image, true}} {
		files, err := filepath.Glob(filepath.Join(source.dir, "*.xml"))
		if err != nil || len(files) == 0 {
			continue
		}
		return copyCache(target, files, emulator, source.stamp)
	}
	return ErrNoCache
}

// Keep copies what the driver below root has learnt about QEMU to dir, for Prime.
func Keep(root, dir string) error {
	files, err := filepath.Glob(filepath.Join(root, cacheDir, "*.xml"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return ErrNoCache
	}
	return copyCache(dir, files, "", false)
}

func copyCache(target string, files []string, emulator string, stamp bool) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if stamp {
			if text, err = restamp(text, emulator); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(target, filepath.Base(file)), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// restamp writes the times of this container's files into the answers.
func restamp(text []byte, emulator string) ([]byte, error) {
	var stamps = []struct {
		element string
		files   []string
		modify  bool // the time of modification; else that of the inode's change
	}{
		{"qemuctime", []string{emulator}, false},
		{"qemumoddirmtime", moduleDirs, true},
		{"selfctime", driverPaths, false},
	}
	for _, s := range stamps {
		seconds, err := timeOf(s.files, s.modify)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.element, err)
		}
		element := regexp.MustCompile("<" + s.element + ">[0-9]*</" + s.element + ">")
		text = element.ReplaceAll(text, []byte("<"+s.element+">"+strconv.FormatInt(seconds, 10)+"</"+s.element+">"))
	}
	return text, nil
}

// timeOf is the time, in seconds since 1970, of the first file that exists.
func timeOf(files []string, modify bool) (int64, error) {
	for _, file := range files {
		var st unix.Stat_t
		switch err := unix.Stat(file, &st); {
		case errors.Is(err, unix.ENOENT):
		case err != nil:
			return 0, err
		case modify:
			return st.Mtim.Sec, nil
		default:
			return st.Ctim.Sec, nil
		}
	}
	return 0, fs.ErrNotExist
}
