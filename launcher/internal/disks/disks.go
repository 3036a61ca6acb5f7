// Package disks makes the files and devices behind a VM's disks ready: it finds the image in a volume, creates what an
// empty volume or an overlay needs, looks into images for what must not be there, and claims block devices.
package disks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/domain"
)

// Error says what is wrong with the volume of one disk (VolumeProblem, vm.md 2.9).
type Error struct {
	Path string // below /vm
	Err  error
}

// Error returns "PATH: what is wrong".
func (e *Error) Error() string { return e.Path + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// imageDir is the directory of an image volume that holds the disk (vm.md 2.4); diskImage the file of a claim.
const (
	imageDir  = "disk"
	diskImage = "disk.img"
)

// Maker makes disks ready.
type Maker struct {
	Scratch string // directory for overlays and empty disks
	QemuImg string // path of qemu-img
}

// Prepare makes every disk of the VM ready, in the order of the VM. It is called once per start of the container, and
// may be called again: what exists is kept, save overlays that are to be made anew at every start. All disks are looked
// at, so that the error names every disk with a problem.
func (m Maker) Prepare(ctx context.Context, vm api.Machine) ([]domain.Disk, error) {
	list := make([]domain.Disk, 0, len(vm.Disks))
	var problems []error
	for _, o := range vm.Disks {
		d, err := m.prepare(ctx, o)
		if err != nil {
			problems = append(problems, &Error{Path: pathOf(o), Err: err})
			continue
		}
		list = append(list, d)
	}
	return list, errors.Join(problems...)
}

func pathOf(o api.Disk) string {
	switch {
	case o.Path != "":
		return o.Path
	case o.Type == api.DiskTypeCDROM:
		return api.PathCDROMs + o.Name
	default:
		return api.PathDisks + o.Name
	}
}

func (m Maker) prepare(ctx context.Context, o api.Disk) (domain.Disk, error) {
	d := domain.Disk{Options: o}
	switch {
	case o.Empty > 0:
		d.Source, d.Format = filepath.Join(m.Scratch, o.Name+".qcow2"), "qcow2"
		if err := m.createEmpty(ctx, d.Source, o.Empty); err != nil {
			return d, err
		}
		d.DirectIO = directIO(d.Source)
		return d, checkCache(d)
	case o.Path == "" && o.Type == api.DiskTypeCDROM:
		d.Format = "raw"
		return d, nil // an empty drive
	case o.Path == "":
		return d, errors.New("hot-plugged volumes are not served by this version of the launcher")
	}
	if err := locate(&d); err != nil || d.Source == "" {
		return d, err
	}
	return d, m.open(ctx, &d)
}

// open makes what was located ready for QEMU.
func (m Maker) open(ctx context.Context, d *domain.Disk) error {
	if fromImage(*d) && d.Options.Source != api.SourceImage {
		// What Resolve could not know for lack of a mark on the mount: images have overlays and are of any format.
		d.Options.Format = ""
		if !readOnly(d.Options) {
			d.Options.Overlay = api.OverlayOn
		}
	}
	if err := access(*d); err != nil {
		return err
	}
	if err := setFormat(d); err != nil {
		return err
	}
	if d.Options.Overlay == api.OverlayOn || d.Options.Overlay == api.OverlayStart {
		if err := m.overlay(ctx, d); err != nil {
			return err
		}
	}
	d.DirectIO = directIO(d.Source)
	return checkCache(*d)
}

// checkCache refuses what was asked for and the file system cannot give; without a word it would be writethrough.
func checkCache(d domain.Disk) error {
	if d.DirectIO || d.Options.Cache != "none" && d.Options.Cache != "directsync" {
		return nil
	}
	key := api.Prefix + "disk." + d.Options.Name
	return api.Errors{{
		Key: key, Text: fmt.Sprintf("%s: cache=%s: the file system of %s has no O_DIRECT", key, d.Options.Cache, pathOf(d.Options)),
	}}
}

// locate finds the file or device behind the path.
func locate(d *domain.Disk) error {
	info, err := os.Stat(d.Options.Path)
	switch {
	case err != nil:
		return cause(err)
	case info.Mode()&fs.ModeDevice != 0:
		d.Source, d.Block = d.Options.Path, true
		return nil
	case !info.IsDir():
		d.Source = d.Options.Path
		return nil
	}
	names, err := entries(d.Options.Path)
	if err != nil {
		return err
	}
	if d.Options.File != "" {
		return named(d, names)
	}
	for _, name := range names {
		switch name {
		case imageDir + "/":
			return onlyFile(d, filepath.Join(d.Options.Path, imageDir))
		case diskImage:
			d.Source = filepath.Join(d.Options.Path, diskImage)
			return nil
		}
	}
	switch {
	case d.Options.Type == api.DiskTypeCDROM && len(names) == 0:
		return nil // an empty drive
	case d.Options.Type == api.DiskTypeCDROM:
		return onlyFile(d, d.Options.Path)
	case len(names) == 0:
		return createImage(d)
	default:
		return fmt.Errorf("no %s; the volume holds %s", diskImage, strings.Join(names, ", "))
	}
}

// entries are the names in a directory, directories with a slash, without what file systems put there by themselves.
func entries(dir string) ([]string, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, cause(err)
	}
	var names []string
	for _, e := range list {
		switch {
		case e.Name() == "lost+found":
		case e.IsDir():
			names = append(names, e.Name()+"/")
		default:
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// named takes the file that option file says, without leaving the volume by a link.
func named(d *domain.Disk, names []string) error {
	root, err := os.OpenRoot(d.Options.Path)
	if err != nil {
		return cause(err)
	}
	defer func() { _ = root.Close() }()
	for _, file := range []string{d.Options.File, filepath.Join(imageDir, d.Options.File)} {
		if _, err = root.Stat(file); err == nil {
			d.Source = filepath.Join(d.Options.Path, file)
			return nil
		}
	}
	return fmt.Errorf("file=%s: %w; the volume holds %s", d.Options.File, cause(err), strings.Join(names, ", "))
}

func onlyFile(d *domain.Disk, dir string) error {
	names, err := entries(dir)
	if err != nil {
		return err
	}
	where := filepath.Base(dir)
	switch len(names) {
	case 0:
		return fmt.Errorf("%s/ is empty", where)
	case 1:
		d.Source = filepath.Join(dir, names[0])
		return nil
	default:
		return fmt.Errorf("file: %s/ holds %s; one must be named", where, strings.Join(names, " and "))
	}
}

// createImage makes disk.img in an empty volume at the size that fits. The claims of our own driver hold one from the
// beginning (storage.md ST-016); this is for the others. A hundredth stays free for the file system's own blocks.
func createImage(d *domain.Disk) error {
	var st unix.Statfs_t
	if err := unix.Statfs(d.Options.Path, &st); err != nil {
		return cause(err)
	}
	const mib = 1 << 20
	size := int64(st.Bavail) * st.Bsize / 100 * 99 / mib * mib
	if size <= 0 {
		return errors.New("the volume is full")
	}
	path := filepath.Join(d.Options.Path, diskImage)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o660)
	if err != nil {
		return cause(err)
	}
	err = errors.Join(f.Truncate(size), f.Close())
	if err != nil {
		return errors.Join(cause(err), os.Remove(path))
	}
	d.Source = path
	return nil
}

// access checks that this process may open the disk as QEMU will, and says what to change where it may not.
func access(d domain.Disk) error {
	mode := uint32(unix.R_OK | unix.W_OK)
	if readOnly(d.Options) {
		mode = unix.R_OK
	}
	err := unix.Access(d.Source, mode)
	if err == nil {
		return nil
	}
	var st unix.Stat_t
	if unix.Stat(d.Source, &st) != nil {
		return err
	}
	advice := "set fsGroup of the Pod to the group, or the owner of the file"
	if d.Block {
		advice = "the container runtime needs device_ownership_from_security_context, or the CSI driver must hand the device to the user"
	}
	return fmt.Errorf("user %d cannot open it (%w): owner %d:%d, mode %04o; %s",
		os.Getuid(), err, st.Uid, st.Gid, st.Mode&0o7777, advice)
}

// readOnly says whether nothing is ever written to the file or device in the volume itself.
func readOnly(o api.Disk) bool {
	if o.Overlay == api.OverlayOn || o.Overlay == api.OverlayStart || o.Type == api.DiskTypeCDROM {
		return true
	}
	return o.ReadOnly != nil && *o.ReadOnly
}

// setFormat decides raw or qcow2. What a guest can write is never probed: only images that come from a registry are.
func setFormat(d *domain.Disk) error {
	d.Format = d.Options.Format
	if d.Format == "" {
		d.Format = "raw"
	}
	if d.Options.Format == "raw" || (d.Options.Format == "" && !fromImage(*d)) {
		return nil
	}
	header, err := readQcow2(d.Source)
	if err != nil {
		return err
	}
	switch {
	case header == nil && d.Options.Format == "qcow2":
		return errors.New("format=qcow2: not a qcow2 image")
	case header == nil:
		return nil
	}
	d.Format = "qcow2"
	return header.harmless()
}

// fromImage says whether the disk came with an image volume. An image of one layer is mounted without an overlay file
// system, by which the reader of the Pod knows images; it is known by its directory, and by that nobody can write it.
func fromImage(d domain.Disk) bool {
	return d.Options.Source == api.SourceImage ||
		filepath.Base(filepath.Dir(d.Source)) == imageDir && unix.Access(d.Source, unix.W_OK) != nil
}

// directIO says whether O_DIRECT works on the file (vm.md 2.3, option cache).
func directIO(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// cause takes the path out of an error of package os, since the message begins with it.
func cause(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err
	}
	return err
}
