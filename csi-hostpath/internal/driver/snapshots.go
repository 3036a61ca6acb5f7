package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podvirt.dev/csi-hostpath/internal/pool"
	"podvirt.dev/csi-hostpath/internal/volume"
	"podvirt.dev/csi-hostpath/internal/words"
)

// CreateSnapshot takes the lock of the volume: neither its users nor its size change meanwhile.
func (c *controller) CreateSnapshot(ctx context.Context, req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	made, err := c.works.do(ctx, "snapshot "+req.GetName(), func(ctx context.Context) (any, error) {
		unlock, err := c.node.volumes.lock(ctx, req.GetSourceVolumeId())
		if err != nil {
			return nil, err
		}
		defer unlock()
		return c.unlockedController.CreateSnapshot(ctx, req)
	})
	if err != nil {
		return nil, err
	}
	resp, _ := made.(*csi.CreateSnapshotResponse)
	return resp, nil
}

// DeleteSnapshot takes the lock of the snapshot: one that is being restored cannot go.
func (c *controller) DeleteSnapshot(ctx context.Context, req *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	unlock, err := c.node.volumes.lock(ctx, req.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	return c.unlockedController.DeleteSnapshot(ctx, req)
}

func (c *unlockedController) CreateSnapshot(ctx context.Context, req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if req.GetName() == "" || len(req.GetName()) > maxNameLength || req.GetSourceVolumeId() == "" {
		return nil, fmt.Errorf("%w: a name of 1 to %d bytes and a source volume are needed", errInvalid, maxNameLength)
	}
	class, err := parseSnapshotClass(req.GetParameters())
	if err != nil {
		return nil, err
	}
	of, store, err := c.opts.Pools.Volume(req.GetSourceVolumeId())
	if err == nil && of.Problem != nil {
		err = of.Problem
	}
	if err != nil {
		return nil, err
	}
	wanted := volume.SnapshotRequest{Name: req.GetName(), Volume: of.UUID}
	var told QuiescedSnapshot
	if _, err := store.FindSnapshot(wanted); errors.Is(err, volume.ErrNotFound) {
		wanted.Hold, err = c.node.origin(req.GetSourceVolumeId(), of, store.Abilities().Reflink, class, &told)
		if err != nil {
			return nil, err
		}
	}
	handle, made, err := c.opts.Pools.TakeSnapshot(ctx, req.GetSourceVolumeId(), wanted)
	if err != nil {
		return nil, err
	}
	if told.How != "" && c.opts.Quiesced != nil {
		told.Claim, told.Snapshot, told.Content = of.Claim, req.GetName(), req.GetParameters()[paramContentName]
		c.opts.Quiesced(ctx, told)
	}
	return &csi.CreateSnapshotResponse{Snapshot: describeSnapshot(handle, made)}, nil
}

func describeSnapshot(handle string, s volume.Volume) *csi.Snapshot {
	return &csi.Snapshot{
		SnapshotId: handle, SourceVolumeId: pool.OriginHandle(handle, s), SizeBytes: s.Size,
		CreationTime: timestamppb.New(s.Created), ReadyToUse: s.Problem == nil,
	}
}

func (c *unlockedController) DeleteSnapshot(_ context.Context, req *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if req.GetSnapshotId() == "" {
		return nil, fmt.Errorf("%w: no snapshot id", errInvalid)
	}
	found, store, err := c.opts.Pools.Snapshot(req.GetSnapshotId())
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return &csi.DeleteSnapshotResponse{}, nil
	case err != nil:
		return nil, err
	}
	return &csi.DeleteSnapshotResponse{}, store.DeleteSnapshot(found.UUID)
}

// ListSnapshots pages by handle, as ListVolumes does.
func (c *unlockedController) ListSnapshots(_ context.Context, req *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	snapshots := c.opts.Pools.Snapshots()
	maps.DeleteFunc(snapshots, func(handle string, s volume.Volume) bool {
		of := req.GetSourceVolumeId()
		return req.GetSnapshotId() != "" && req.GetSnapshotId() != handle || of != "" && of != pool.OriginHandle(handle, s)
	})
	handles, next, err := page(slices.Sorted(maps.Keys(snapshots)), req.GetStartingToken(), int(req.GetMaxEntries()))
	if err != nil {
		return nil, err
	}
	resp := &csi.ListSnapshotsResponse{NextToken: next}
	for _, handle := range handles {
		resp.Entries = append(resp.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: describeSnapshot(handle, snapshots[handle])})
	}
	return resp, nil
}

func (c *unlockedController) GetSnapshot(_ context.Context, req *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	if req.GetSnapshotId() == "" {
		return nil, fmt.Errorf("%w: no snapshot id", errInvalid)
	}
	found, _, err := c.opts.Pools.Snapshot(req.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	return &csi.GetSnapshotResponse{Snapshot: describeSnapshot(req.GetSnapshotId(), found)}, nil
}

// page cuts a sorted list of handles. The token is the last handle of the page before, so that what comes and goes
// between two pages shifts nothing.
func page(handles []string, token string, limit int) (cut []string, next string, err error) {
	if token != "" {
		if len(token) != handleLength {
			return nil, "", fmt.Errorf("%w: %q", errToken, token)
		}
		at, found := slices.BinarySearch(handles, token)
		if found {
			at++
		}
		handles = handles[at:]
	}
	if limit > 0 && limit < len(handles) {
		handles = handles[:limit]
		next = handles[limit-1]
	}
	return handles, next, nil
}

// paramContentName is what csi-snapshotter adds with --extra-create-metadata: the VolumeSnapshotContent.
const paramContentName = "csi.storage.k8s.io/volumesnapshotcontent/name"

// parseSnapshotClass reads the parameters of a VolumeSnapshotClass (storage.md 2.3), as strictly as those of a StorageClass.
func parseSnapshotClass(params map[string]string) (quiescing, error) {
	parsed := quiescing{mode: quiesceAuto, timeout: freezeTimeout}
	known := []string{"freezeTimeout", "quiesce"}
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(params)) {
		value := params[key]
		switch {
		case strings.HasPrefix(key, reservedParams):
		case key == "quiesce":
			if modes := []string{quiesceAuto, quiesceOff, quiesceRequired}; !slices.Contains(modes, value) {
				errs = append(errs, fmt.Errorf("VolumeSnapshotClass: %w", notOneOf(key, value, modes)))
			}
			parsed.mode = value
		case key == "freezeTimeout":
			timeout, err := time.ParseDuration(value)
			if err != nil || timeout < minFreezeTimeout || timeout > maxFreezeTimeout {
				errs = append(errs, fmt.Errorf("VolumeSnapshotClass: freezeTimeout: %q: not a duration from 1s to 60s", value))
			}
			parsed.timeout = timeout
		default:
			errs = append(errs, fmt.Errorf("VolumeSnapshotClass: %s: unknown parameter; nearest: %s", key, words.Nearest(key, known)))
		}
	}
	return parsed, invalid(errors.Join(errs...))
}
