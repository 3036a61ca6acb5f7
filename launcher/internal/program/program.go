// Package program is the launcher: its subcommands, and the wiring of the packages beside it.
package program

import (
	"context"
	"fmt"
	"strings"

	"podvirt.dev/api"
	"podvirt.dev/internal/cli"
)

// command is one subcommand.
type command struct {
	usage string
	run   cli.Run
}

func commands() map[string]command {
	return map[string]command{
		"run":          {"run the VM of this Pod (what container vm does)", runVM},
		"ctl":          {"speak to the running VM: launcher ctl VERB [FLAG]...", runCtl},
		"probe":        {"exit 0 or 1: agent, state WORD, exec -- CMD, fs MOUNT --min-free N%", runProbe},
		"node-facts":   {"print what VMs can be on this node, or keep it in files: --watch --out DIR", runNodeFacts},
		"capabilities": {"ask QEMU what it can do and keep the answer: launcher capabilities DIRECTORY", runCapabilities},
		"version":      {"print the version", runVersion},
	}
}

// order is that of the help text.
func order() []string {
	return []string{"run", "ctl", "probe", "node-facts", "capabilities", "version"}
}

// Run is the whole program.
func Run(ctx context.Context, args []string, std cli.Streams) int {
	list := commands()
	if len(args) > 0 {
		if c, ok := list[args[0]]; ok {
			return c.run(ctx, args[1:], std)
		}
		if args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
			fmt.Fprint(std.Out, help(list))
			return 0
		}
		fmt.Fprintf(std.Err, "launcher: no such command: %s\n", args[0])
	}
	fmt.Fprint(std.Err, help(list))
	return api.CtlUsage
}

func help(list map[string]command) string {
	var b strings.Builder
	b.WriteString("usage: launcher COMMAND\n\n")
	for _, name := range order() {
		fmt.Fprintf(&b, "  %-13s %s\n", name, list[name].usage)
	}
	return b.String()
}

func runVersion(_ context.Context, _ []string, std cli.Streams) int {
	fmt.Fprintln(std.Out, cli.Version)
	return 0
}
