package nics

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"podvirt.dev/api"
)

// HeldPatience is how long a start waits for a tap that a QEMU on its way out still holds (network.md NW-009).
const HeldPatience = 10 * time.Second

// heldRetry is the pause between two looks at a tap that is held.
const heldRetry = 100 * time.Millisecond

// AwaitFree waits until nobody holds the taps of these NICs, or until ctx ends: then an *Error names the holder. The kernel
// gives a tap carrier while somebody has a queue of it open (drivers/net/tun.c, tun_attach and __tun_detach). A multi-queue
// tap could be opened all the same, and the guest would lose the packets of the other one's queues. Proc is /proc.
func AwaitFree(ctx context.Context, ns Namespace, found []NIC, proc fs.FS) error {
	tick := time.NewTicker(heldRetry)
	defer tick.Stop()
	for {
		tap, err := held(ns, found)
		if err != nil || tap == "" {
			return err
		}
		select {
		case <-ctx.Done():
			return &Error{Reason: api.ReasonNodeLacks, Text: tap + " is held by " + holder(proc, tap)}
		case <-tick.C:
		}
	}
}

// held is the first tap that somebody has open; "": none.
func held(ns Namespace, found []NIC) (string, error) {
	links, err := ns.Links()
	if err != nil {
		return "", fmt.Errorf("interfaces of the Pod: %w", err)
	}
	carrier := make(map[string]bool, len(links))
	for _, link := range links {
		carrier[link.Name] = link.Carrier
	}
	for _, nic := range found {
		if carrier[nic.Tap] {
			return nic.Tap, nil
		}
	}
	return "", nil
}

// holder names the process that has a tap open: the kernel says so in fdinfo (drivers/net/tun.c, tun_chr_show_fdinfo).
// Processes of other containers are not in proc.
func holder(proc fs.FS, tap string) string {
	infos, _ := fs.Glob(proc, "[0-9]*/fdinfo/*") // what cannot be read is left out
	for _, info := range infos {
		text, err := fs.ReadFile(proc, info)
		if err == nil && strings.Contains(string(text), "iff:\t"+tap+"\n") {
			return "pid " + path.Dir(path.Dir(info))
		}
	}
	return "a process outside this container"
}
