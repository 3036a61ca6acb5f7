// Package program is the driver as a process: flags, wiring, and the order in which things start.
package program

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/cluster"
	"podvirt.dev/csi-hostpath/internal/driver"
	"podvirt.dev/csi-hostpath/internal/fault"
	"podvirt.dev/csi-hostpath/internal/importer"
	"podvirt.dev/csi-hostpath/internal/mounts"
	"podvirt.dev/csi-hostpath/internal/pool"
	"podvirt.dev/csi-hostpath/internal/poolconfig"
	"podvirt.dev/csi-hostpath/internal/quiesce"
	"podvirt.dev/csi-hostpath/internal/registration"
	"podvirt.dev/csi-hostpath/internal/sandbox"
	"podvirt.dev/csi-hostpath/internal/status"
	"podvirt.dev/internal/cli"
	"podvirt.dev/internal/selfsigned"
)

// probeTimeout bounds "csi-hostpath probe".
const probeTimeout = 5 * time.Second

// Config are the flags.
type Config struct {
	Node            string
	Socket          string
	RegistrationDir string
	PoolsRoot       string
	PoolsFile       string
	OSPaths         []string
	Scratch         string
	PodsDir         string
	Kubeconfig      string
	StatusAddress   string
	Verbosity       int
}

func (c *Config) flags() *pflag.FlagSet {
	set := pflag.NewFlagSet("csi-hostpath", pflag.ContinueOnError)
	set.StringVar(&c.Node, "node-name", "", "name of this node (required)")
	set.StringVar(&c.Socket, "socket", "/var/lib/kubelet/plugins/"+api.CSIDriver+"/csi.sock", "where CSI is served")
	set.StringVar(&c.RegistrationDir, "registration-dir", "/var/lib/kubelet/plugins_registry",
		"kubelet's directory for registration sockets; empty: do not register")
	set.StringVar(&c.PoolsRoot, "pools-root", "/var/lib/podvirt", "directory below which pools lie")
	set.StringVar(&c.PoolsFile, "pools-file", "", "read storage.pools from this file once and do without an API server")
	set.StringSliceVar(&c.OSPaths, "os-path", []string{"/", "/var/lib/kubelet", "/var/lib/containerd"},
		"paths on file systems that a pool must not share")
	set.StringVar(&c.Scratch, "scratch", "/run/podvirt-csi-hostpath", "private directory for mounts while volumes are made")
	set.StringVar(&c.PodsDir, "pods-dir", "/var/lib/kubelet/pods", "where kubelet keeps Pods: launchers listen in their volumes")
	set.StringVar(&c.Kubeconfig, "kubeconfig", "", "how to reach the API server; empty: the service account of the Pod")
	set.StringVar(&c.StatusAddress, "status-address", ":9443", "where health and metrics are served by HTTPS; empty: nowhere")
	set.IntVarP(&c.Verbosity, "verbosity", "v", 2, "log detail, 0 to 9")
	return set
}

// Run is the program. "csi-hostpath probe" asks a running driver whether it answers.
func Run(ctx context.Context, args []string, std cli.Streams) int {
	return RunWithFault(ctx, args, std, nil)
}

// RunWithFault is Run with a hook on every durable step; tests of crashes use it.
func RunWithFault(ctx context.Context, args []string, std cli.Streams, hook fault.Hook) int {
	if len(args) > 0 && args[0] == sandbox.Command {
		return runImport(ctx, args[1:], std)
	}
	var config Config
	set := config.flags()
	set.SetOutput(std.Err)
	if err := set.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return 0
		}
		fmt.Fprintf(std.Err, "csi-hostpath: %v\n", err)
		return 2
	}
	ctx = cli.WithLogger(ctx, std.Err, config.Verbosity)
	run := func(ctx context.Context) error { return serve(ctx, config, hook) }
	switch {
	case set.NArg() == 1 && set.Arg(0) == "probe":
		run = func(ctx context.Context) error { return probe(ctx, config.Socket) }
	case set.NArg() != 0:
		fmt.Fprintf(std.Err, "csi-hostpath: unknown argument %q; usage: csi-hostpath [flags] [probe]\n", set.Arg(0))
		return 2
	}
	if err := run(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "csi-hostpath ends")
		return 1
	}
	return 0
}

// runImport is the confined process of an import. It is for the driver only, and its words are few.
func runImport(ctx context.Context, args []string, std cli.Streams) int {
	if err := importer.Child(ctx, args, std.In, std.Out); err != nil {
		fmt.Fprintf(std.Err, "csi-hostpath: %v\n", err)
		return 1
	}
	return 0
}

// serve runs all parts until ctx ends or one of them fails.
func serve(ctx context.Context, config Config, hook fault.Hook) error {
	if config.Node == "" {
		return errors.New("--node-name is required")
	}
	if err := clearScratch(config.Scratch); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(config.Socket), 0o750); err != nil {
		return err
	}
	pools := pool.New(pool.Options{
		Node: config.Node, AdoptBelow: filepath.Join(config.PoolsRoot, "pools"), Scratch: config.Scratch, OSPaths: config.OSPaths, Fault: hook,
	})
	configured := make(chan struct{})
	parts, client, err := configuration(ctx, config, pools, configured)
	if err != nil {
		return err
	}
	metrics := status.New(cli.Version, pools)
	options := driver.Options{
		Node: config.Node, Version: cli.Version, Socket: config.Socket, Pools: pools, Fault: hook, Observe: metrics.Observe,
		Guests: quiesce.Guests{Pods: config.PodsDir},
	}
	if client != nil {
		options.Claims, options.Quiesced, options.Imports = client, client.Quiesced, client
	}
	csiDriver, err := driver.New(options)
	if err != nil {
		return err
	}
	metrics.FollowImports(csiDriver.Imports)
	if client != nil {
		parts = append(parts, func(ctx context.Context) error {
			if !arrived(ctx, configured) {
				return nil
			}
			return client.Follow(ctx, csiDriver.Expand, csiDriver.Forget)
		})
	}
	answering := make(chan struct{})
	parts = append(parts,
		pools.Run,
		func(ctx context.Context) error {
			if !arrived(ctx, configured) {
				return nil
			}
			return csiDriver.Run(ctx, func() {
				metrics.Ready()
				close(answering)
			})
		},
		func(ctx context.Context) error {
			if config.StatusAddress == "" {
				return nil
			}
			return selfsigned.Serve(ctx, "podvirt-csi-hostpath", config.StatusAddress, metrics.Handler())
		},
		func(ctx context.Context) error {
			if config.RegistrationDir == "" || !arrived(ctx, answering) {
				return nil
			}
			return registration.Run(ctx, registration.Options{Name: api.CSIDriver, Endpoint: config.Socket, Dir: config.RegistrationDir})
		})
	return together(ctx, parts)
}

// configuration returns the parts that bring the pools, from a file or from the API server. configured is closed when
// the first pools were applied.
func configuration(
	ctx context.Context, config Config, pools *pool.Manager, configured chan struct{},
) ([]func(context.Context) error, *cluster.Client, error) {
	if config.PoolsFile != "" {
		text, err := os.ReadFile(config.PoolsFile)
		if err != nil {
			return nil, nil, err
		}
		list, err := poolconfig.Parse(string(text), config.PoolsRoot)
		if err != nil {
			return nil, nil, err
		}
		if list, err = poolconfig.ForNode(list, config.Node, nil); err != nil {
			return nil, nil, err
		}
		pools.Apply(ctx, list)
		close(configured)
		return nil, nil, nil
	}
	client, err := cluster.New(cluster.Options{Kubeconfig: config.Kubeconfig, Node: config.Node, Root: config.PoolsRoot})
	if err != nil {
		return nil, nil, err
	}
	first := true
	follow := func(ctx context.Context) error {
		return client.Run(ctx, func(ctx context.Context, list []poolconfig.Pool) {
			pools.Apply(ctx, list)
			if first {
				first = false
				close(configured)
			}
		})
	}
	publish := func(ctx context.Context) error {
		if !arrived(ctx, configured) {
			return nil
		}
		return client.Publish(ctx, pools.Reports)
	}
	return []func(context.Context) error{follow, publish}, client, nil
}

// arrived waits for the event; false when ctx ended first.
func arrived(ctx context.Context, event <-chan struct{}) bool {
	select {
	case <-event:
		return true
	case <-ctx.Done():
		return false
	}
}

// together runs all parts; the first to fail, or the end of ctx, ends the others.
func together(ctx context.Context, parts []func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan error, len(parts))
	for _, part := range parts {
		go func() {
			err := part(ctx)
			if err != nil {
				cancel()
			}
			results <- err
		}()
	}
	var errs []error
	for range parts {
		errs = append(errs, <-results)
	}
	return errors.Join(errs...)
}

// clearScratch removes what a killed process had mounted while it made volumes. The directory itself may be a mount of
// the container's.
func clearScratch(dir string) error {
	if err := mounts.UnmountBelow(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := os.Remove(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// probe asks a driver whether it is ready.
func probe(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	resp, err := csi.NewIdentityClient(conn).Probe(ctx, &csi.ProbeRequest{})
	if err == nil && !resp.GetReady().GetValue() {
		err = errors.New("the driver is not ready")
	}
	return errors.Join(err, conn.Close())
}
