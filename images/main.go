// The images command builds podvirt's container images and test guests from Debian packages and from this module,
// without a container engine and without a registry.
package main

import (
	"os"

	"podvirt.dev/images/internal/program"
	"podvirt.dev/internal/cli"
)

func main() {
	os.Exit(cli.Main(program.Run))
}
