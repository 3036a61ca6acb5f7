// Package program is the command line of the local cluster.
package program

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"
	"podvirt.dev/internal/cli"
	"podvirt.dev/test/cluster/internal/cluster"
	"podvirt.dev/test/cluster/internal/layout"
	"podvirt.dev/test/cluster/internal/machine"
	"podvirt.dev/test/cluster/internal/supervise"
)

const usage = `local runs a Kubernetes cluster of two nodes on this machine, as root.

  local up                  build what is missing, start what does not run, wait until the nodes are Ready
  local down [--purge]      stop everything; what is kept without --purge are unpacked images
  local status              what runs
  local kubeconfig          print the path of the administrator's kubeconfig
  local load-image TAR...   import OCI archives into both nodes
  local install             up, load every image of the cache, install podvirt, wait until it is ready
  local demo                install, start a Debian VM as a Pod, say how to log in
  local build               only build the programs

PODVIRT_STATE (/var/lib/podvirt-local) holds the cluster, PODVIRT_CACHE (/var/cache/podvirt) programs and images.
`

// verb is one command.
type verb func(ctx context.Context, c *cluster.Cluster, args []string, std cli.Streams) error

func verbs() map[string]verb {
	return map[string]verb{
		"up":   func(ctx context.Context, c *cluster.Cluster, _ []string, _ cli.Streams) error { return c.Up(ctx) },
		"down": down,
		"status": func(ctx context.Context, c *cluster.Cluster, _ []string, std cli.Streams) error {
			return c.Status(ctx, std.Out)
		},
		"kubeconfig": kubeconfig,
		"load-image": func(ctx context.Context, c *cluster.Cluster, args []string, _ cli.Streams) error {
			return c.LoadImages(ctx, args)
		},
		"install": func(ctx context.Context, c *cluster.Cluster, _ []string, _ cli.Streams) error { return c.Install(ctx) },
		"demo": func(ctx context.Context, c *cluster.Cluster, _ []string, std cli.Streams) error {
			return c.Demo(ctx, std.Out)
		},
		"build": func(ctx context.Context, c *cluster.Cluster, _ []string, _ cli.Streams) error {
			_, err := c.Build(ctx)
			return err
		},
		cluster.VerbSupervise: runSupervisor,
		machine.VerbPrepare:   prepareMachine,
		machine.VerbRun: func(ctx context.Context, _ *cluster.Cluster, args []string, _ cli.Streams) error {
			return machine.Run(ctx, args[0])
		},
	}
}

// Run is the whole program. Exit codes: 0 done, 1 failed, 2 wrong usage.
func Run(ctx context.Context, args []string, std cli.Streams) int {
	if len(args) == 0 || args[0] == "help" || args[0] == "--help" || args[0] == "-h" {
		fmt.Fprint(std.Out, usage)
		return 0
	}
	do, ok := verbs()[args[0]]
	if !ok {
		fmt.Fprintf(std.Err, "local: unknown command %q\n%s", args[0], usage)
		return 2
	}
	l, err := layout.FromEnv(os.Getenv)
	if err != nil {
		fmt.Fprintln(std.Err, "local:", err)
		return 2
	}
	if os.Getuid() != 0 {
		fmt.Fprintln(std.Err, "local: machines are made of namespaces, mounts and control groups: run as root")
		return 1
	}
	err = do(ctx, cluster.New(l, std.Err), args[1:], std)
	if errors.Is(err, pflag.ErrHelp) {
		return 2
	}
	if err != nil {
		fmt.Fprintln(std.Err, "local:", err)
		return 1
	}
	return 0
}

func down(ctx context.Context, c *cluster.Cluster, args []string, std cli.Streams) error {
	flags := pflag.NewFlagSet("down", pflag.ContinueOnError)
	flags.SetOutput(std.Err)
	purge := flags.Bool("purge", false, "remove also the unpacked images of the nodes")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return c.Down(ctx, *purge)
}

func kubeconfig(_ context.Context, c *cluster.Cluster, _ []string, std cli.Streams) error {
	_, err := fmt.Fprintln(std.Out, c.Layout.Kubeconfig())
	return err
}

func runSupervisor(ctx context.Context, c *cluster.Cluster, args []string, std cli.Streams) error {
	return supervise.Run(ctx, c.Layout, len(args) > 0 && args[0] == cluster.FlagDelegated, std.Err)
}

func prepareMachine(_ context.Context, _ *cluster.Cluster, args []string, std cli.Streams) error {
	return machine.Prepare(args[0], std.In)
}
