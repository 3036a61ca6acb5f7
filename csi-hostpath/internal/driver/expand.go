package driver

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"podvirt.dev/csi-hostpath/internal/loop"
	"podvirt.dev/csi-hostpath/internal/volume"
)

// ControllerExpandVolume does all there is to do, in use or at rest: the driver of the volume's node answers it, and the
// users of the volume see the new size at once. Nothing is left to the node's part.
func (c *controller) ControllerExpandVolume(
	ctx context.Context, req *csi.ControllerExpandVolumeRequest,
) (*csi.ControllerExpandVolumeResponse, error) {
	unlock, err := c.node.volumes.lock(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	size, err := c.node.expand(ctx, req.GetVolumeId(), req.GetCapacityRange())
	if err != nil {
		return nil, err
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: size}, nil
}

func (n *node) NodeExpandVolume(ctx context.Context, req *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	if req.GetVolumePath() == "" {
		return nil, fmt.Errorf("%w: no volume path", errInvalid)
	}
	unlock, err := n.volumes.lock(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	size, err := n.expand(ctx, req.GetVolumeId(), req.GetCapacityRange())
	if err != nil {
		return nil, err
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: size}, nil
}

// Expand lets a volume grow to a size in bytes and returns the size it has then; one that is as large is left alone.
func (d *Driver) Expand(ctx context.Context, handle string, size int64) (int64, error) {
	resp, err := d.controller.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: handle, CapacityRange: &csi.CapacityRange{RequiredBytes: size},
	})
	return resp.GetCapacityBytes(), err
}

func (n *unlockedNode) expand(ctx context.Context, handle string, wanted *csi.CapacityRange) (int64, error) {
	if handle == "" {
		return 0, fmt.Errorf("%w: no volume id", errInvalid)
	}
	found, _, err := n.opts.Pools.Volume(handle)
	if err == nil && found.Problem != nil {
		err = found.Problem
	}
	if err != nil {
		return 0, err
	}
	size := found.Size
	if wanted.GetRequiredBytes() > size {
		if size, err = sizeOf(wanted); err != nil {
			return 0, err
		}
	}
	at, err := mountOf(handle, found)
	if err != nil {
		return 0, err
	}
	grown, err := n.opts.Pools.Expand(ctx, handle, size, at)
	if err != nil {
		return 0, err
	}
	if grown.Mode == volume.ModeBlock {
		if err := loop.Resize(grown.Data()); err != nil {
			return 0, err
		}
	}
	return grown.Size, n.opts.Fault.At("expand.told")
}
