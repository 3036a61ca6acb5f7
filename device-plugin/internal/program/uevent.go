package program

import (
	"context"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	kernelEvents = 1       // the multicast group of the kernel itself (Linux, lib/kobject_uevent.c)
	maxUevent    = 8 << 10 // bytes of one message
)

// followUevents tells when the kernel says that a PCI function, a mediated device or a driver came or went, until ctx
// ends. Network namespaces of containers hear of it too. Where it cannot listen, the node is looked at every rescanInterval.
func followUevents(ctx context.Context, changed chan<- struct{}) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		klog.FromContext(ctx).Error(err, "The kernel's events are not heard")
		return
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelEvents}); err != nil {
		klog.FromContext(ctx).Error(errors.Join(err, unix.Close(fd)), "The kernel's events are not heard")
		return
	}
	socket := os.NewFile(uintptr(fd), "uevents")
	defer context.AfterFunc(ctx, func() { _ = socket.Close() })()
	message := make([]byte, maxUevent)
	for {
		n, err := socket.Read(message)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, unix.ENOBUFS): // some were lost
		case err != nil:
			klog.FromContext(ctx).Error(errors.Join(err, socket.Close()), "The kernel's events are heard no more")
			return
		case !ofDevices(message[:n]):
			continue
		}
		select {
		case changed <- struct{}{}:
		default: // not looked at yet
		}
	}
}

// ofDevices says whether a message is about what classes offer.
func ofDevices(message []byte) bool {
	for field := range strings.SplitSeq(string(message), "\x00") {
		switch field {
		case "SUBSYSTEM=pci", "SUBSYSTEM=mdev", "SUBSYSTEM=vfio-dev", "SUBSYSTEM=drivers", "SUBSYSTEM=mdev_bus", "SUBSYSTEM=net", "SUBSYSTEM=module":
			return true
		}
	}
	return false
}
