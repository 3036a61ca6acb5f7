// Package nl speaks rtnetlink for podvirt and is the only package that imports the netlink library, whose sharp edges
// it keeps to itself: dumps that the kernel interrupts are repeated, "not there" is one sentinel, and a Handle belongs
// to one network namespace for its whole life, whatever the thread that uses it does later.
package nl

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/vishvananda/netlink"
	rt "github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrNotFound is wrapped by errors about a link, address, route or filter that does not exist.
var ErrNotFound = errors.New("not found")

// maxDumps is how often a dump is begun again when the kernel says that its objects changed meanwhile (NLM_F_DUMP_INTR)
// or a signal came: a namespace of 1000 links in motion is consistent after a few rounds.
const maxDumps = 50

// Handle is a netlink socket in one network namespace. It is not for concurrent use.
type Handle struct {
	raw *netlink.Handle
	own *rt.SocketHandle // for requests that the library does not know
}

// Open returns a handle for the network namespace of the calling thread. A goroutine that changed its namespace must
// hold its thread until Open returned.
func Open() (*Handle, error) {
	raw, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening rtnetlink: %w", err)
	}
	socket, err := rt.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("opening rtnetlink: %w", err)
	}
	return &Handle{raw: raw, own: &rt.SocketHandle{Socket: socket}}, nil
}

// Close frees the sockets.
func (h *Handle) Close() {
	h.raw.Close()
	h.own.Close()
}

// IsNotFound says whether err is about something that is not there, also where the kernel said so in its own words.
func IsNotFound(err error) bool {
	var link netlink.LinkNotFoundError
	return errors.Is(err, ErrNotFound) || errors.As(err, &link) || errors.Is(err, unix.ENODEV) || errors.Is(err, fs.ErrNotExist) ||
		errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// dump repeats a reading call until the kernel delivered it whole.
func dump[T any](read func() (T, error)) (T, error) {
	var (
		out T
		err error
	)
	for range maxDumps {
		out, err = read()
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			return out, err
		}
	}
	return out, err
}

// do repeats a changing call that a signal interrupted before the kernel acted.
func do(change func() error) error {
	var err error
	for range maxDumps {
		if err = change(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return err
}
