// Command runvm runs a test binary in a QEMU guest with a full Debian kernel:
//
//	CGO_ENABLED=0 go test -exec bin/runvm ./test/kernel/network ./cni-bridge/internal/plugin
package main

import (
	"os"

	"podvirt.dev/internal/cli"
	"podvirt.dev/test/kernel/runvm/internal/runner"
)

func main() {
	os.Exit(cli.Main(runner.Run))
}
