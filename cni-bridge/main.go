// cni-bridge gives VM Pods their network: a CNI plugin, and the program that installs it on a node.
package main

import (
	"os"

	"podvirt.dev/cni-bridge/internal/program"
	"podvirt.dev/internal/cli"
)

func main() { os.Exit(cli.Main(program.Run)) }
