package program

import (
	"context"
	"errors"
	"os"

	"podvirt.dev/internal/cli"
	"podvirt.dev/internal/sysfs"
	"podvirt.dev/launcher/internal/facts"
	"podvirt.dev/launcher/internal/virt/libvirt"
)

// The user of every launcher container; node facts are taken as the same user.
const (
	launcherUID = 107
	launcherGID = 107
)

// runNodeFacts is launcher node-facts: the facts of this node as its VMs will find them (scheduling.md 2.7).
func runNodeFacts(ctx context.Context, args []string, std cli.Streams) int {
	return facts.Program{
		Root: "/", Self: []string{"/proc/self/exe", "node-facts"}, QEMU: emulator, Scratch: os.TempDir(), Open: openForFacts,
		Prepare: becomeUser,
	}.Run(ctx, args, std)
}

// becomeUser gives up root where the container was started with it.
func becomeUser(dirs ...string) error {
	root, err := sysfs.Host("/")
	if err != nil {
		return err
	}
	return facts.Unprivileged(root, launcherUID, launcherGID, dirs...)
}

// factsDriver is a libvirt driver whose files go with it.
type factsDriver struct {
	*libvirt.Conn
	root string
}

func openForFacts(ctx context.Context) (facts.Hypervisor, error) {
	root, err := os.MkdirTemp("", "podvirt-facts-")
	if err != nil {
		return nil, err
	}
	conn, err := libvirt.Open(context.WithoutCancel(ctx), root)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(root))
	}
	return factsDriver{Conn: conn, root: root}, nil
}

// Close leaves the driver and removes its files.
func (d factsDriver) Close() error { return errors.Join(d.Conn.Close(), os.RemoveAll(d.root)) }
