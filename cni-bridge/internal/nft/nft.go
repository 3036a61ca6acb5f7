// Package nft opens nftables for the plugin. The library waits for the kernel's answers without an end, and a kernel whose
// nf_tables module is missing or goes away in the middle of a transaction sends none: every conversation has a deadline
// here, so that no verb of the plugin hangs.
package nft

import (
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
)

// patience is how long the kernel may take for one transaction or dump. The largest of ours takes milliseconds; the first
// one of a machine loads a dozen modules, for which a slow one takes a quarter of a minute.
const patience = time.Minute

// Open returns a connection in the network namespace of the calling thread. It opens a socket for each transaction, which
// begins its deadline.
func Open() (*nftables.Conn, error) {
	return open(patience)
}

func open(patience time.Duration) (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithSockOptions(func(socket *netlink.Conn) error {
		return socket.SetDeadline(time.Now().Add(patience))
	}))
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	return conn, nil
}
