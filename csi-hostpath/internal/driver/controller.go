package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"podvirt.dev/csi-hostpath/internal/filesystem"
	"podvirt.dev/csi-hostpath/internal/pool"
	"podvirt.dev/csi-hostpath/internal/volume"
)

var _ csi.ControllerServer = (*controller)(nil)

// maxNameLength is the longest name of a volume that CSI allows, in bytes.
const maxNameLength = 128

// controller takes the lock of a volume and hands on to unlockedController. Calls that only read take none: what they
// answer may be old by the time it arrives anyway.
type controller struct {
	*unlockedController
	names locks
}

func newController(opts Options, node *node) *controller {
	return &controller{unlockedController: &unlockedController{
		opts: opts, node: node, works: &jobs{}, imports: newImports(opts.Imports, opts.ImportTuning),
	}}
}

func (c *controller) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	unlock, err := c.names.lock(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if handle := sourceHandle(req); handle != "" {
		return c.clone(ctx, req, handle)
	}
	return c.unlockedController.CreateVolume(ctx, req)
}

// DeleteVolume shares its lock with the node's calls: a volume is not removed while it is being staged.
func (c *controller) DeleteVolume(ctx context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	unlock, err := c.node.volumes.lock(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	return c.unlockedController.DeleteVolume(ctx, req)
}

// unlockedController must be used through [controller] only.
type unlockedController struct {
	csi.UnimplementedControllerServer
	opts    Options
	node    *node
	works   *jobs
	imports *imports
}

// ControllerGetCapabilities names what is served (storage.md 2.9, as far as this version goes).
func (c *unlockedController) ControllerGetCapabilities(
	context.Context, *csi.ControllerGetCapabilitiesRequest,
) (*csi.ControllerGetCapabilitiesResponse, error) {
	resp := &csi.ControllerGetCapabilitiesResponse{}
	for _, capability := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_GET_VOLUME,
		csi.ControllerServiceCapability_RPC_GET_VOLUME_HEALTH,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
		csi.ControllerServiceCapability_RPC_GET_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		resp.Capabilities = append(resp.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: capability}},
		})
	}
	return resp, nil
}

func (c *unlockedController) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	switch {
	case req.GetName() == "" || len(req.GetName()) > maxNameLength:
		return nil, fmt.Errorf("%w: name %q: 1 to %d bytes", errInvalid, req.GetName(), maxNameLength)
	case len(req.GetVolumeCapabilities()) == 0:
		return nil, fmt.Errorf("%w: no volume capabilities", errInvalid)
	case len(req.GetMutableParameters()) > 0:
		return nil, fmt.Errorf("%w: mutable parameters are not supported", errInvalid)
	case !c.wantedHere(req.GetAccessibilityRequirements()):
		return nil, fmt.Errorf("%w: the volume is not wanted on node %s", errElsewhere, c.opts.Node)
	}
	poolName, wanted, err := c.newVolume(ctx, req)
	if err != nil {
		return nil, err
	}
	described, err := c.create(ctx, poolName, wanted)
	if err != nil {
		return nil, err
	}
	described.ContentSource = req.GetVolumeContentSource()
	return &csi.CreateVolumeResponse{Volume: described}, nil
}

// create makes a volume; one that is filled from outside may outlast the call.
func (c *unlockedController) create(ctx context.Context, poolName string, wanted volume.Request) (*csi.Volume, error) {
	make := func(ctx context.Context) (any, error) {
		handle, made, err := c.opts.Pools.Create(ctx, poolName, wanted)
		if errors.Is(err, volume.ErrNotReady) {
			err = fmt.Errorf("%w: %w", errElsewhere, err)
		}
		if err != nil {
			return nil, err
		}
		if wanted.Fill != nil {
			c.imports.done(ctx, wanted.Claim)
		}
		return c.describe(handle, made), nil
	}
	made, err := any(nil), error(nil)
	if wanted.Fill == nil {
		made, err = make(ctx)
	} else {
		made, err = c.works.do(ctx, "import "+wanted.Name, make)
		if errors.Is(err, errPending) {
			err = fmt.Errorf("%w: %s", errPending, c.imports.waiting(wanted.Claim))
		}
	}
	if err != nil {
		return nil, err
	}
	described, _ := made.(*csi.Volume)
	return described, nil
}

// wantedHere reports whether the requirement allows this node.
func (c *unlockedController) wantedHere(r *csi.TopologyRequirement) bool {
	if len(r.GetRequisite()) == 0 {
		return true
	}
	return slices.ContainsFunc(r.GetRequisite(), func(t *csi.Topology) bool { return t.GetSegments()[TopologyKey] == c.opts.Node })
}

func (c *unlockedController) describe(handle string, v volume.Volume) *csi.Volume {
	return &csi.Volume{
		VolumeId: handle, CapacityBytes: v.Size,
		AccessibleTopology: []*csi.Topology{{Segments: map[string]string{TopologyKey: c.opts.Node}}},
	}
}

func (c *unlockedController) DeleteVolume(_ context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	handle := req.GetVolumeId()
	if handle == "" {
		return nil, fmt.Errorf("%w: no volume id", errInvalid)
	}
	found, store, err := c.opts.Pools.Volume(handle)
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return &csi.DeleteVolumeResponse{}, nil
	case err != nil:
		return nil, err
	}
	staged, err := stagings(handle)
	if err != nil {
		return nil, err
	}
	if len(staged) > 0 {
		return nil, fmt.Errorf("%w: %s is still staged at %s", errInUse, found.Claim, staged[0])
	}
	if err := detachAll(found); err != nil {
		return nil, err
	}
	if err := store.Delete(found.UUID); err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeResponse{}, nil
}

func (c *unlockedController) ValidateVolumeCapabilities(
	_ context.Context, req *csi.ValidateVolumeCapabilitiesRequest,
) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if req.GetVolumeId() == "" || len(req.GetVolumeCapabilities()) == 0 {
		return nil, fmt.Errorf("%w: a volume id and volume capabilities are needed", errInvalid)
	}
	found, _, err := c.opts.Pools.Volume(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	for _, capability := range req.GetVolumeCapabilities() {
		if why := unfit(found, capability); why != "" {
			return &csi.ValidateVolumeCapabilitiesResponse{Message: why}, nil
		}
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: req.GetVolumeContext(), VolumeCapabilities: req.GetVolumeCapabilities(), Parameters: req.GetParameters(),
	}}, nil
}

// unfit says why a volume does not have a capability; "" when it has.
func unfit(v volume.Volume, capability *csi.VolumeCapability) string {
	mode, err := checkCapability(capability)
	switch {
	case err != nil:
		return err.Error()
	case mode != v.Mode:
		return fmt.Sprintf("the volume has mode %s", v.Mode)
	}
	return ""
}

// ListVolumes pages by handle.
func (c *unlockedController) ListVolumes(_ context.Context, req *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	volumes := c.opts.Pools.Volumes()
	handles, next, err := page(slices.Sorted(maps.Keys(volumes)), req.GetStartingToken(), int(req.GetMaxEntries()))
	if err != nil {
		return nil, err
	}
	resp := &csi.ListVolumesResponse{NextToken: next}
	for _, handle := range handles {
		resp.Entries = append(resp.Entries, &csi.ListVolumesResponse_Entry{
			Volume: c.describe(handle, volumes[handle]), Status: &csi.ListVolumesResponse_VolumeStatus{},
		})
	}
	return resp, nil
}

// handleLength is the length of every handle: pool id, slash, uuid.
const handleLength = 16 + 1 + 36

func (c *unlockedController) ControllerGetVolume(
	_ context.Context, req *csi.ControllerGetVolumeRequest,
) (*csi.ControllerGetVolumeResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, fmt.Errorf("%w: no volume id", errInvalid)
	}
	found, _, err := c.opts.Pools.Volume(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetVolumeResponse{
		Volume: c.describe(req.GetVolumeId(), found), Status: &csi.ControllerGetVolumeResponse_VolumeStatus{},
	}, nil
}

// ControllerGetVolumeHealth reports damaged volumes and pools that are gone.
func (c *unlockedController) ControllerGetVolumeHealth(
	_ context.Context, req *csi.ControllerGetVolumeHealthRequest,
) (*csi.ControllerGetVolumeHealthResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, fmt.Errorf("%w: no volume id", errInvalid)
	}
	health := &csi.VolumeHealth{VolumeId: req.GetVolumeId()}
	found, _, err := c.opts.Pools.Volume(req.GetVolumeId())
	if errors.Is(err, volume.ErrNotFound) {
		return nil, err
	}
	if problem := errors.Join(err, found.Problem); problem != nil {
		health.HealthStatuses = []*csi.VolumeHealth_VolumeHealthEntry{inaccessible(problem)}
	}
	return &csi.ControllerGetVolumeHealthResponse{VolumeHealth: health}, nil
}

// GetCapacity answers 0 for a pool that this node does not have or cannot serve: nothing can be made there now.
func (c *unlockedController) GetCapacity(_ context.Context, req *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	class, err := parseClass("", req.GetParameters())
	if err != nil {
		return nil, err
	}
	nothing := &csi.GetCapacityResponse{}
	if segments := req.GetAccessibleTopology().GetSegments(); segments != nil && segments[TopologyKey] != c.opts.Node {
		return nothing, nil
	}
	room, err := c.opts.Pools.Room(class.pool)
	switch {
	case errors.Is(err, pool.ErrNoPool), errors.Is(err, volume.ErrNotReady), errors.Is(err, volume.ErrShared),
		errors.Is(err, volume.ErrLocked), errors.Is(err, volume.ErrForeign):
		return nothing, nil
	case err != nil:
		return nil, err
	}
	return &csi.GetCapacityResponse{
		AvailableCapacity: room.Available,
		MaximumVolumeSize: wrapperspb.Int64(largest(room.Available, class)), MinimumVolumeSize: wrapperspb.Int64(volume.MinSize),
	}, nil
}

func inaccessible(problem error) *csi.VolumeHealth_VolumeHealthEntry {
	reason := "PoolNotReady"
	if errors.Is(problem, volume.ErrDamaged) {
		reason = "Damaged"
	}
	return &csi.VolumeHealth_VolumeHealthEntry{Status: csi.VolumeHealthErrorType_INACCESSIBLE, Reason: reason, Message: problem.Error()}
}

// largest is the size of the largest volume of a class that fits into the room.
func largest(available int64, class classParams) int64 {
	if class.content != string(volume.ContentDisk) {
		return available
	}
	return max(0, 2*available-filesystem.SizeFor(filesystem.XFS, available)) // the image around a disk takes room too
}
