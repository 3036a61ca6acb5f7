// Command launcher is the program of container vm: it turns the Pod it runs in into a virtual machine (launcher run),
// serves its control socket and is that socket's client (launcher ctl).
package main

import (
	"os"

	"podvirt.dev/internal/cli"
	"podvirt.dev/launcher/internal/program"
)

func main() { os.Exit(cli.Main(program.Run)) }
