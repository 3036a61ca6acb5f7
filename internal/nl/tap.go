package nl

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// tunDevice makes and opens taps; the device has no path of its own in a network namespace.
const tunDevice = "/dev/net/tun"

// AddTap makes a persistent tap in the network namespace of the calling thread and leaves no queue open. The kernel
// lets uid and gid of owner, and nobody else without CAP_NET_ADMIN, open it again; whoever opens it must ask for the
// same multi-queue flag (drivers/net/tun.c, tun_set_iff).
func AddTap(name string, tap Tap) (err error) {
	flags := uint16(unix.IFF_TUN_EXCL)
	if tap.MultiQueue {
		flags |= unix.IFF_MULTI_QUEUE
	}
	queue, err := OpenTap(name, flags)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, queue.Close()) }()
	fd := int(queue.Fd())
	if tap.UID != nil {
		if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, int(*tap.UID)); err != nil {
			return fmt.Errorf("tap %s: setting its owner: %w", name, err)
		}
	}
	if tap.GID != nil {
		if err := unix.IoctlSetInt(fd, unix.TUNSETGROUP, int(*tap.GID)); err != nil {
			return fmt.Errorf("tap %s: setting its group: %w", name, err)
		}
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("tap %s: making it persistent: %w", name, err)
	}
	return nil
}

// OpenTap opens a queue of a tap in the network namespace of the calling thread, and makes the tap where it does not
// exist and the caller may. Flags are IFF_MULTI_QUEUE, IFF_VNET_HDR and IFF_TUN_EXCL; IFF_TAP and IFF_NO_PI are added. Each read
// returns one frame, each write sends one. The file works with deadlines.
func OpenTap(name string, flags uint16) (*os.File, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", tunDevice, err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(flags | unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("tap %s: %w", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), tunDevice+":"+name), nil
}

// TunWorks says whether taps can be made here: nil, or why not.
func TunWorks() error {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %s: %w", tunDevice, err)
	}
	features, err := unix.IoctlGetInt(fd, unix.TUNGETFEATURES)
	if err != nil {
		err = fmt.Errorf("%s: %w", tunDevice, err)
	} else if features&unix.IFF_MULTI_QUEUE == 0 {
		err = fmt.Errorf("%s: this kernel's taps have no multi-queue", tunDevice)
	}
	return errors.Join(err, unix.Close(fd))
}

// owner reads an id that the kernel leaves out when it is not set; 0 is never an owner podvirt sets.
func owner(id uint32) *uint32 {
	if id == 0 {
		return nil
	}
	return &id
}
