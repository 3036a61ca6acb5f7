// Command csi-hostpath is the CSI driver hostpath.csi.podvirt.dev of one node: VM disks in directories of the node.
package main

import (
	"os"

	"podvirt.dev/csi-hostpath/internal/program"
	"podvirt.dev/internal/cli"
)

func main() { os.Exit(cli.Main(program.Run)) }
