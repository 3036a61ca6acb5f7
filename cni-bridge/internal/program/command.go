package program

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"podvirt.dev/cni-bridge/internal/installer"
	"podvirt.dev/cni-bridge/internal/netconf"
	"podvirt.dev/cni-bridge/internal/plugin"
	"podvirt.dev/cni-bridge/internal/selftest"
	"podvirt.dev/internal/cli"
)

const usage = `cni-bridge gives VM Pods their network. A runtime calls it with CNI_COMMAND set; people and the DaemonSet with a command:

  install    put plugin and configuration onto the node and keep them there (--once: only now, --check: say whether they are)
  uninstall  take them away again
  selftest   try on this node's kernel what VM Pods will need
  gc         forget attachments whose Pods are gone
  version    say which version this is

cni-bridge COMMAND --help lists its flags.
`

// command is one subcommand.
type command struct {
	std   cli.Streams
	flags *pflag.FlagSet
	node  installer.Options

	method, salt             string
	once, check, force, stay bool
	metrics                  string
	isolated                 bool
	verbosity                int
}

// errUsage is a mistake on the command line, which has been printed.
var errUsage = errors.New("usage")

func asCommand(ctx context.Context, args []string, std cli.Streams) int {
	if len(args) == 0 || args[0] == "help" || args[0] == "--help" || args[0] == "-h" {
		fmt.Fprint(std.Err, usage)
		return exitUsage
	}
	c := &command{std: std, flags: pflag.NewFlagSet("cni-bridge "+args[0], pflag.ContinueOnError)}
	run, ok := map[string]func(context.Context) error{
		"install": c.install, "uninstall": c.uninstall, "selftest": c.selftest, "gc": c.gc, "version": c.version,
	}[args[0]]
	if !ok {
		fmt.Fprintf(std.Err, "cni-bridge: unknown command %q%s\n\n%s", args[0],
			netconf.Nearest(args[0], []string{"install", "uninstall", "selftest", "gc", "version"}), usage)
		return exitUsage
	}
	err := c.parse(args)
	if err == nil {
		err = run(cli.WithLogger(ctx, std.Err, c.verbosity))
	}
	switch {
	case errors.Is(err, pflag.ErrHelp), errors.Is(err, errUsage):
		return exitUsage
	case err != nil:
		fmt.Fprintf(std.Err, "cni-bridge %s: %v\n", args[0], err)
		return exitFailed
	}
	return exitDone
}

func (c *command) parse(args []string) error {
	c.flags.SetOutput(c.std.Err)
	c.flags.StringVar(&c.node.StateDir, "state-dir", netconf.DefaultStateDir, "journal, locks and stamps of the node")
	c.flags.IntVarP(&c.verbosity, "v", "v", 0, "verbosity of the log")
	if args[0] == "install" || args[0] == "uninstall" {
		c.flags.StringVar(&c.node.ConfDir, "conf-dir", "/etc/cni/net.d", "configuration directory of the runtime (network.conf-dir)")
		c.flags.StringVar(&c.node.BinDir, "bin-dir", "/opt/cni/bin", "plugin directory of the runtime (network.bin-dir)")
	}
	switch args[0] {
	case "install":
		c.flags.StringVar(&c.node.SettingsDir, "config-dir", "", "ConfigMap podvirt-config, mounted; its changes take effect at once")
		c.flags.StringVar(&c.method, "method", "", "auto, drop-in, wrap, edit or off; overrides network.install-method")
		c.flags.StringVar(&c.salt, "mac-salt", "", "salt of derived MACs instead of the UID of Namespace kube-system")
		c.flags.StringVar(&c.metrics, "metrics", "", "address of /metrics, /healthz and /readyz (HTTPS); example: :9445")
		c.flags.BoolVar(&c.once, "once", false, "install, and end")
		c.flags.BoolVar(&c.check, "check", false, "change nothing; fail unless installed")
	case "selftest":
		c.flags.BoolVar(&c.isolated, selftest.IsolatedFlag, false, "the test itself, in a mount namespace that ends with it")
		if err := c.flags.MarkHidden(selftest.IsolatedFlag); err != nil {
			return err
		}
	case "uninstall":
		c.flags.BoolVar(&c.force, "force", false, "also while VM Pods run; they go on running")
		c.flags.BoolVar(&c.stay, "stay", false, "wait for the end signal afterwards, as the container of a DaemonSet must")
	}
	if err := c.flags.Parse(args[1:]); err != nil {
		if !errors.Is(err, pflag.ErrHelp) {
			fmt.Fprintln(c.std.Err, err)
		}
		return errors.Join(errUsage, err)
	}
	if c.flags.NArg() > 0 {
		fmt.Fprintf(c.std.Err, "unexpected arguments: %s\n", strings.Join(c.flags.Args(), " "))
		return errUsage
	}
	return nil
}

func (c *command) install(ctx context.Context) error {
	if c.check {
		return installer.Check(c.node.StateDir)
	}
	source, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding our own program: %w", err)
	}
	c.node.Source, c.node.Method = source, installer.Method(c.method)
	if c.flags.Changed("mac-salt") {
		c.node.MACSalt = &c.salt
	}
	c.node.API = installer.API{Host: os.Getenv("KUBERNETES_SERVICE_HOST"), Port: os.Getenv("KUBERNETES_SERVICE_PORT")}
	metrics := &installer.Metrics{StateDir: c.node.StateDir}
	c.node.Metrics = metrics
	node, err := installer.New(c.node)
	if err != nil {
		return err
	}
	if !c.once {
		return c.serve(ctx, node, metrics)
	}
	changed, plan, err := node.Install(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.std.Out, "method %s, %d files changed\n", plan.Method, len(changed))
	return nil
}

// serve keeps the node installed and answers for it.
func (c *command) serve(ctx context.Context, node *installer.Installer, metrics *installer.Metrics) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return node.Run(ctx) })
	if c.metrics != "" {
		group.Go(func() error { return metrics.Serve(ctx, c.metrics) })
	}
	return group.Wait()
}

func (c *command) uninstall(ctx context.Context) error {
	done, err := installer.Uninstall(c.node, c.force)
	for _, path := range done.Removed {
		fmt.Fprintln(c.std.Out, "removed", path)
	}
	for _, line := range done.Kept {
		fmt.Fprintln(c.std.Out, "left", line)
	}
	if err == nil && c.stay {
		<-ctx.Done()
	}
	return err
}

func (c *command) selftest(ctx context.Context) error {
	if c.isolated {
		return selftest.Isolated(ctx)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding our own program: %w", err)
	}
	if err := selftest.Run(ctx, self, c.std.Err); err != nil {
		return err
	}
	fmt.Fprintln(c.std.Out, "this node can give VMs a network")
	return nil
}

func (c *command) gc(ctx context.Context) error {
	return plugin.Sweep(ctx, netconf.Defaults(c.node.StateDir))
}

func (c *command) version(context.Context) error {
	_, err := fmt.Fprintf(c.std.Out, "cni-bridge %s, CNI %s\n", cli.Version, strings.Join(plugin.Versions().SupportedVersions(), ", "))
	return err
}
