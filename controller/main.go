// Command controller mirrors what launchers know to the Kubernetes API: conditions, Events and a compact status on the
// Pods of VMs (docs/controller.md).
package main

import (
	"os"

	"podvirt.dev/controller/internal/program"
	"podvirt.dev/internal/cli"
)

func main() {
	os.Exit(cli.Main(program.Run))
}
