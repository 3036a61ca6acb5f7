// Command local runs a Kubernetes cluster of two nodes on this machine: local up, local down, local help.
package main

import (
	"os"

	"podvirt.dev/internal/cli"
	"podvirt.dev/test/cluster/internal/program"
)

func main() { os.Exit(cli.Main(program.Run)) }
