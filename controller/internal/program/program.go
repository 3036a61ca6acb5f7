// Package program is the command line of the controller and what it wires together.
package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/internal/cli"
)

// Exit codes of the program.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

// gcPercent keeps the heap small: what is allocated is mostly the answer of a launcher, read and forgotten.
const gcPercent = 50

// options are the flags.
type options struct {
	identity   string
	namespace  string
	kubeconfig string
	metrics    string
	period     time.Duration
	verbosity  int

	// patience and silence are those of the packages claims and vms; 0: their own. Tests have less of both.
	patience, silence time.Duration
}

// Run is the program.
func Run(ctx context.Context, args []string, std cli.Streams) int {
	o, err := parse(args, std.Err)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintln(std.Err, "controller:", err)
		return exitUsage
	}
	debug.SetGCPercent(gcPercent)
	ctx = cli.WithLogger(ctx, std.Err, o.verbosity)
	if err := serve(ctx, o); err != nil {
		klog.FromContext(ctx).Error(err, "The controller ends")
		return exitError
	}
	return exitOK
}

func parse(args []string, usage io.Writer) (options, error) {
	var o options
	host, _ := os.Hostname() // the name of the Pod; the flag may say otherwise
	flags := pflag.NewFlagSet("controller", pflag.ContinueOnError)
	flags.SetOutput(usage)
	flags.SortFlags = false
	flags.StringVar(&o.identity, "identity", host, "name of this instance, of which only one leads")
	flags.StringVar(&o.namespace, "namespace", api.SystemNamespace, "where the Lease and podvirt-config are")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "file to reach the cluster by; empty: the Pod's own account")
	flags.StringVar(&o.metrics, "metrics", ":9443", "address of /metrics, /healthz and /readyz (HTTPS)")
	flags.DurationVar(&o.period, "period", 2*time.Second, "pause between two requests to one launcher")
	flags.IntVarP(&o.verbosity, "v", "v", 0, "detail of the log")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.identity == "":
		return o, errors.New("flag --identity is required where the host has no name")
	case o.namespace == "":
		return o, errors.New("flag --namespace is required")
	case o.period < 100*time.Millisecond || o.period > time.Minute:
		return o, fmt.Errorf("flag --period: %v: 100ms to 1m", o.period)
	}
	return o, nil
}
