package driver

import (
	"context"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/apimachinery/pkg/api/resource"

	"podvirt.dev/csi-hostpath/internal/pool"
	"podvirt.dev/csi-hostpath/internal/volume"
)

// source is what a new volume begins as.
type source struct {
	handle string
	origin volume.Origin
	from   volume.Volume
	pool   string // id
}

// sourceOf finds the source of a request; nil for a blank volume. A source of another node makes the provisioner look
// elsewhere: the volume is made where the source is.
func (c *unlockedController) sourceOf(req *csi.CreateVolumeRequest) (*source, error) {
	var found source
	var store *volume.Store
	var err error
	switch content := req.GetVolumeContentSource(); {
	case content == nil:
		return nil, nil //nolint:nilnil // a blank volume has none
	case content.GetSnapshot() != nil:
		found.handle, found.origin.Kind = content.GetSnapshot().GetSnapshotId(), volume.OriginSnapshot
		found.from, store, err = c.opts.Pools.Snapshot(found.handle)
	case content.GetVolume() != nil:
		found.handle, found.origin.Kind = content.GetVolume().GetVolumeId(), volume.OriginVolume
		found.from, store, err = c.opts.Pools.Volume(found.handle)
	default:
		return nil, fmt.Errorf("%w: a source is a snapshot or a volume", errInvalid)
	}
	switch {
	case errors.Is(err, volume.ErrNotReady):
		return nil, fmt.Errorf("%w: the source: %w", errElsewhere, err)
	case err != nil:
		return nil, fmt.Errorf("the source: %w", err)
	case found.from.Problem != nil:
		return nil, fmt.Errorf("the source: %w", found.from.Problem)
	}
	found.origin.UUID, found.pool = found.from.UUID, store.Identity().ID
	return &found, nil
}

// begin lets a new volume begin as its source: the layout is the source's, the size at least as large.
func (s *source) begin(r *volume.Request, req *csi.CreateVolumeRequest, class classParams, where pool.Pool) error {
	if s == nil {
		return nil
	}
	if where.ID != s.pool {
		return fmt.Errorf("%w: the source %s lies in another pool than %s; a clone stays in the pool of its source",
			errInvalid, s.from.Claim, where.Name)
	}
	if r.Mode != s.from.Mode || r.Content != s.from.Content {
		return fmt.Errorf("%w: the source has volumeMode %s and content %s, the claim asks for %s and %s",
			errInvalid, s.from.Mode, s.from.Content, r.Mode, r.Content)
	}
	if req.GetCapacityRange().GetRequiredBytes() == 0 {
		r.Size = max(r.Size, s.from.Size)
	}
	if r.Size < s.from.Size {
		return fmt.Errorf("%w: clone needs at least %s, claim asks for %s", volume.ErrTooLarge,
			resource.NewQuantity(s.from.Size, resource.BinarySI), resource.NewQuantity(r.Size, resource.BinarySI))
	}
	if limit := req.GetCapacityRange().GetLimitBytes(); limit > 0 && r.Size > limit {
		return fmt.Errorf("%w: clone needs at least %s, the limit is %d", volume.ErrTooLarge, resource.NewQuantity(r.Size, resource.BinarySI), limit)
	}
	r.FSType, r.Origin = s.from.FSType, s.origin
	r.Copy, r.Share = class.clone == cloneCopy, class.clone == cloneReflink
	return nil
}

// clone makes a volume from its source. It may outlast the call.
func (c *controller) clone(ctx context.Context, req *csi.CreateVolumeRequest, handle string) (*csi.CreateVolumeResponse, error) {
	made, err := c.works.do(ctx, "volume "+req.GetName(), func(ctx context.Context) (any, error) {
		unlock, err := c.node.volumes.lock(ctx, handle)
		if err != nil {
			return nil, err
		}
		defer unlock()
		return c.unlockedController.CreateVolume(ctx, req)
	})
	if err != nil {
		return nil, err
	}
	resp, _ := made.(*csi.CreateVolumeResponse)
	return resp, nil
}

// sourceHandle is the handle of a request's source; "" for a blank volume.
func sourceHandle(req *csi.CreateVolumeRequest) string {
	content := req.GetVolumeContentSource()
	if id := content.GetSnapshot().GetSnapshotId(); id != "" {
		return id
	}
	return content.GetVolume().GetVolumeId()
}

// hold prepares the reading of a source that is a volume.
func (s *source) hold(n *unlockedNode, r *volume.Request, where pool.Pool) error {
	if s == nil || s.origin.Kind != volume.OriginVolume {
		return nil
	}
	var told QuiescedSnapshot
	share := where.Abilities.Reflink && !r.Copy && r.Preallocation == volume.PreallocateNone
	var err error
	r.Hold, err = n.origin(s.handle, s.from, share, quiescing{mode: quiesceAuto, timeout: freezeTimeout}, &told)
	return err
}
