// Package driver is the CSI service hostpath.csi.podvirt.dev: Identity, Controller and Node over one socket. Each call
// validates, takes the lock of its volume, acts, and maps errors to codes in one place.
package driver

import (
	"context"
	"fmt"
	"io/fs"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/fault"
	"podvirt.dev/csi-hostpath/internal/importer"
	"podvirt.dev/csi-hostpath/internal/pool"
	"podvirt.dev/internal/unixgrpc"
)

// TopologyKey is the key of the node in topologies (storage.md 2.7).
const TopologyKey = api.CSIDriver + "/node"

// socketMode: only root talks to the driver.
const socketMode fs.FileMode = 0o600

// ClaimInfo is what the driver reads of a PersistentVolumeClaim.
type ClaimInfo struct {
	UID         string
	Class       string
	Annotations map[string]string
}

// Claims reads claims. Its error is final for the call; a claim that is not there is an error too.
type Claims interface {
	Claim(ctx context.Context, namespace, name string) (ClaimInfo, error)
}

// Guests freezes the guest of a Pod; its error wraps [quiesce.ErrNoAgent] where there is none to freeze.
type Guests interface {
	Freeze(ctx context.Context, podUID string, timeout time.Duration) (thaw func(context.Context) error, err error)
}

// Options of a driver. Claims may be nil: then there is no API server and claims have no annotations.
type Options struct {
	Node    string
	Version string
	Socket  string
	Pools   *pool.Manager
	Claims  Claims
	Fault   fault.Hook
	// Imports leads to claims that are filled from outside; nil: such claims are refused.
	Imports Imports
	// ImportTuning makes the times of imports short in tests.
	ImportTuning importer.Tuning
	// Guests freezes the guests of VMs; nil: nobody does, and copies of volumes in use are as after a power cut.
	Guests Guests
	// Quiesced is told how a snapshot was made consistent; nil: nobody is told.
	Quiesced func(ctx context.Context, snapshot QuiescedSnapshot)
	// Observe sees every call; nil: nobody does.
	Observe grpc.UnaryServerInterceptor
}

// Driver serves CSI.
type Driver struct {
	opts       Options
	node       *node
	controller *controller
}

// New returns a driver; Run serves it.
func New(opts Options) (*Driver, error) {
	if opts.Node == "" || opts.Socket == "" || opts.Pools == nil {
		return nil, fmt.Errorf("a driver needs the node's name, a socket and pools; got %q, %q", opts.Node, opts.Socket)
	}
	node := newNode(opts)
	return &Driver{opts: opts, node: node, controller: newController(opts, node)}, nil
}

// Run detaches what a killed process left attached, then serves until ctx ends. ready is called when calls are answered.
func (d *Driver) Run(ctx context.Context, ready func()) error {
	if err := d.node.sweep(ctx); err != nil {
		return err
	}
	defer d.controller.works.end()
	interceptors := []grpc.UnaryServerInterceptor{mapErrors}
	if d.opts.Observe != nil {
		interceptors = []grpc.UnaryServerInterceptor{d.opts.Observe, mapErrors} // it sees the code
	}
	server := unixgrpc.NewServer(ctx, grpc.ChainUnaryInterceptor(interceptors...))
	csi.RegisterIdentityServer(server, &identity{opts: d.opts})
	csi.RegisterControllerServer(server, d.controller)
	csi.RegisterNodeServer(server, d.node)
	ready()
	return unixgrpc.Serve(ctx, server, d.opts.Socket, socketMode)
}
