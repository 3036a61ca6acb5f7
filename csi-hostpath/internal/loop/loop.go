// Package loop attaches files to loop devices (drivers/block/loop.c). A device is always found by the identity of its
// backing file, device and inode number, never by a remembered name: the kernel hands the name out again.
package loop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxAttempts bounds the race for a free device: between asking for its number and configuring it another process may take it.
const maxAttempts = 32

// Backing identifies a backing file.
type Backing struct {
	Dev   uint64
	Inode uint64
}

// Device is an attached loop device.
type Device struct {
	Path     string // /dev/loopN
	Number   uint64 // device number, as in stat's st_rdev
	Backing  Backing
	ReadOnly bool
	DirectIO bool
	// AutoClear devices go away with their last user; nobody has to detach them.
	AutoClear bool
}

// Options say how a file is attached.
type Options struct {
	ReadOnly  bool
	DirectIO  bool // where the file system of the file can do it; otherwise buffered
	AutoClear bool
	BlockSize uint32 // logical block size in bytes; 0 means 512
}

// BackingOf returns the identity of a file.
func BackingOf(file string) (Backing, error) {
	var stat unix.Stat_t
	if err := unix.Stat(file, &stat); err != nil {
		return Backing{}, &os.PathError{Op: "stat", Path: file, Err: err}
	}
	return Backing{Dev: stat.Dev, Inode: stat.Ino}, nil
}

// List returns the attached loop devices. Devices that come or go meanwhile may be missing.
func List() ([]Device, error) {
	dirs, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, err
	}
	var devices []Device
	for _, dir := range dirs {
		name := filepath.Base(filepath.Dir(dir))
		device, err := describe("/dev/" + name)
		switch {
		case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENOENT):
			continue // detached between the two looks
		case err != nil:
			return nil, err
		}
		devices = append(devices, device)
	}
	return devices, nil
}

// Find returns the devices over a backing file.
func Find(backing Backing) ([]Device, error) {
	all, err := List()
	if err != nil {
		return nil, err
	}
	var found []Device
	for _, device := range all {
		if device.Backing == backing {
			found = append(found, device)
		}
	}
	return found, nil
}

// Ensure returns a device over the file with the wanted access, attaching one only where there is none yet. It must
// not run twice at once for one file. Devices that clear themselves are never shared: attach those anew with Attach.
func Ensure(file string, opts Options) (Device, error) {
	devices, err := over(file)
	if err != nil {
		return Device{}, err
	}
	for _, device := range devices {
		if device.ReadOnly == opts.ReadOnly && !device.AutoClear {
			return device, nil
		}
	}
	device, held, err := Attach(file, opts)
	if err != nil {
		return Device{}, err
	}
	return device, held.Close()
}

// Attach attaches the file to a free device. The caller closes the returned descriptor; with AutoClear it is what
// keeps the device alive until something else, such as a mount, holds it.
func Attach(file string, opts Options) (Device, *os.File, error) {
	mode := os.O_RDWR
	if opts.ReadOnly {
		mode = os.O_RDONLY
	}
	backing, err := os.OpenFile(file, mode, 0)
	if err != nil {
		return Device{}, nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return Device{}, nil, err
	}
	defer control.Close()

	for range maxAttempts {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return Device{}, nil, fmt.Errorf("asking for a free loop device: %w", err)
		}
		held, err := configure("/dev/loop"+strconv.Itoa(number), mode, backing, opts)
		if errors.Is(err, unix.EBUSY) {
			continue
		}
		if err != nil {
			return Device{}, nil, fmt.Errorf("attaching %s: %w", file, err)
		}
		device, err := describe(held.Name())
		if err != nil {
			return Device{}, nil, errors.Join(err, clear(held), held.Close())
		}
		return device, held, nil
	}
	return Device{}, nil, fmt.Errorf("attaching %s: %w: other programs took each free loop device", file, unix.EBUSY)
}

// Detach frees the device, provided that it still is over the backing file. A device that is still open somewhere
// goes away with its last user. No such device is no error.
func Detach(device Device) error {
	now, err := describe(device.Path)
	switch {
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return err
	case now.Backing != device.Backing:
		return nil
	}
	f, err := os.OpenFile(device.Path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(clear(f), f.Close())
}

// over returns the devices over the file.
func over(file string) ([]Device, error) {
	backing, err := BackingOf(file)
	if err != nil {
		return nil, err
	}
	return Find(backing)
}

// Resize tells every device over the file how large the file is now.
func Resize(file string) error {
	devices, err := over(file)
	if err != nil {
		return err
	}
	for _, device := range devices {
		f, err := os.OpenFile(device.Path, os.O_RDONLY, 0)
		if err != nil {
			return err
		}
		err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("telling %s its new size: %w", device.Path, err)
		}
	}
	return nil
}

// DetachFile frees every device over the file.
func DetachFile(file string) error {
	devices, err := over(file)
	if err != nil {
		return err
	}
	for _, device := range devices {
		if err := Detach(device); err != nil {
			return err
		}
	}
	return nil
}

func configure(path string, mode int, backing *os.File, opts Options) (*os.File, error) {
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: opts.BlockSize}
	if config.Size == 0 {
		config.Size = 512
	}
	// The name in the status has room for 63 characters and identifies nothing; the tail helps people who read losetup.
	name := backing.Name()
	copy(config.Info.File_name[:len(config.Info.File_name)-1], name[max(0, len(name)-63):])
	for flag, on := range map[uint32]bool{
		unix.LO_FLAGS_READ_ONLY: opts.ReadOnly, unix.LO_FLAGS_DIRECT_IO: opts.DirectIO, unix.LO_FLAGS_AUTOCLEAR: opts.AutoClear,
	} {
		if on {
			config.Info.Flags |= flag
		}
	}
	err = unix.IoctlLoopConfigure(int(f.Fd()), &config)
	if errors.Is(err, unix.EINVAL) && opts.DirectIO {
		// Some kernels refuse what others quietly ignore: a file whose file system cannot do direct I/O in this block size.
		config.Info.Flags &^= unix.LO_FLAGS_DIRECT_IO
		err = unix.IoctlLoopConfigure(int(f.Fd()), &config)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func clear(f *os.File) error {
	err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("detaching %s: %w", f.Name(), err)
	}
	return nil
}

func describe(path string) (Device, error) {
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return Device{}, err
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return Device{}, &os.PathError{Op: "LOOP_GET_STATUS64", Path: path, Err: err}
	}
	stat, err := f.Stat()
	if err != nil {
		return Device{}, err
	}
	device := Device{
		Path: path, Backing: Backing{Dev: info.Device, Inode: info.Inode},
		ReadOnly:  info.Flags&unix.LO_FLAGS_READ_ONLY != 0,
		DirectIO:  info.Flags&unix.LO_FLAGS_DIRECT_IO != 0,
		AutoClear: info.Flags&unix.LO_FLAGS_AUTOCLEAR != 0,
	}
	if sys, ok := stat.Sys().(*syscall.Stat_t); ok {
		device.Number = sys.Rdev
	}
	if !strings.HasPrefix(filepath.Base(path), "loop") {
		return Device{}, fmt.Errorf("%s is no loop device", path)
	}
	return device, nil
}
