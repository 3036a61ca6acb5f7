package plugin

import (
	"errors"
	"io/fs"
	"os"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"podvirt.dev/cni-bridge/internal/fault"
	"podvirt.dev/cni-bridge/internal/journal"
	"podvirt.dev/internal/nl"
)

// errNoNamespace says that the path is no network namespace, or not there.
var errNoNamespace = errors.New("no such network namespace")

// inside runs act on a thread that is in the namespace, with a netlink handle that belongs to it. Go moves goroutines
// between threads; ns.Do pins one for as long as act runs, and act must not start others that need the namespace.
func inside(path string, act func(h *nl.Handle) error) error {
	netns, err := ns.GetNS(path)
	if err != nil {
		return fault.Wrap(fault.Container, "entering "+path, errors.Join(errNoNamespace, err))
	}
	if own, err := isOwn(path); own || err != nil {
		return errors.Join(fault.New(fault.Namespace, "%s is the plugin's own network namespace", path), err, netns.Close())
	}
	err = netns.Do(func(ns.NetNS) error {
		h, err := nl.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		return act(h)
	})
	return errors.Join(err, netns.Close())
}

// identify returns the inode of a network namespace, which tells it from a later one of the same path, and whether it
// belongs to another user namespace than ours.
func identify(path string) (inode uint64, otherUsers bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, false, fault.Wrap(fault.Container, "the Pod's network namespace", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var self, theirs, net unix.Stat_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &net), unix.Stat("/proc/self/ns/user", &self)); err != nil {
		return 0, false, fault.Wrap(fault.Container, "the Pod's network namespace", err)
	}
	user, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if errors.Is(err, unix.EPERM) {
		return net.Ino, false, nil // owned by an ancestor of ours
	}
	if err != nil {
		return 0, false, fault.Wrap(fault.Container, "the user namespace of "+path, err)
	}
	err = errors.Join(unix.Fstat(user, &theirs), unix.Close(user))
	return net.Ino, theirs.Ino != self.Ino, err
}

// vanished says that the namespace of an entry is gone, and with it everything that ADD made.
func vanished(e journal.Entry) bool {
	var now unix.Stat_t
	err := unix.Stat(e.Netns, &now)
	return errors.Is(err, fs.ErrNotExist) || err == nil && now.Ino != e.NetnsInode
}

// isOwn says that the path is the namespace the plugin runs in, the node's: a Pod in the host's network is none of ours.
func isOwn(path string) (bool, error) {
	var own, other unix.Stat_t
	err := errors.Join(unix.Stat("/proc/self/ns/net", &own), unix.Stat(path, &other))
	return own.Ino == other.Ino && own.Dev == other.Dev, err
}
