// Command device-plugin offers the devices of a node to VM Pods and publishes what the node can do (docs/device-plugin.md).
package main

import (
	"os"

	"podvirt.dev/device-plugin/internal/program"
	"podvirt.dev/internal/cli"
)

func main() {
	os.Exit(cli.Main(program.Run))
}
