package program

import (
	"context"
	"errors"
	"fmt"
	"os"

	"podvirt.dev/api"
	"podvirt.dev/internal/cli"
	"podvirt.dev/launcher/internal/virt/libvirt"
)

// runCapabilities is launcher capabilities DIRECTORY: the build of the image and the device plugin call it, so that no
// start of a VM has to ask QEMU (design section 4).
func runCapabilities(ctx context.Context, args []string, std cli.Streams) int {
	if len(args) != 1 {
		fmt.Fprintln(std.Err, "usage: launcher capabilities DIRECTORY")
		return api.CtlUsage
	}
	if err := learn(ctx, args[0]); err != nil {
		fmt.Fprintln(std.Err, "launcher:", err)
		return api.CtlRefused
	}
	return api.CtlDone
}

func learn(ctx context.Context, dir string) (err error) {
	root, err := os.MkdirTemp("", "podvirt-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(root)) }()
	conn, err := libvirt.Open(ctx, root)
	if err != nil {
		return err
	}
	_, err = conn.DomainCapabilities("x86_64", "q35", "")
	return errors.Join(err, conn.Close(), libvirt.Keep(root, dir))
}
