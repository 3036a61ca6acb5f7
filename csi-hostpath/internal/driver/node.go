package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"podvirt.dev/csi-hostpath/internal/loop"
	"podvirt.dev/csi-hostpath/internal/volume"
)

var _ csi.NodeServer = (*node)(nil)

// node takes the lock of a volume and hands on to unlockedNode. Stage, publish and their opposites of one volume
// never run at once: who may write is decided from what is published.
type node struct {
	*unlockedNode
	volumes locks
}

func newNode(opts Options) *node { return &node{unlockedNode: &unlockedNode{opts: opts}} }

func (n *node) NodeStageVolume(ctx context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	unlock, err := n.volumes.lock(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	return n.unlockedNode.NodeStageVolume(ctx, req)
}

func (n *node) NodeUnstageVolume(ctx context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	unlock, err := n.volumes.lock(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	return n.unlockedNode.NodeUnstageVolume(ctx, req)
}

func (n *node) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	unlock, err := n.volumes.lock(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	return n.unlockedNode.NodePublishVolume(ctx, req)
}

func (n *node) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	unlock, err := n.volumes.lock(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	return n.unlockedNode.NodeUnpublishVolume(ctx, req)
}

// sweep thaws what a killed process left frozen, and detaches loop devices of volumes that are staged nowhere: a process
// that was killed while it unstaged left them. It runs before calls are answered.
func (n *node) sweep(ctx context.Context) error {
	if err := n.thawAll(); err != nil {
		return err
	}
	devices, err := loop.List()
	if err != nil {
		return err
	}
	volumes := n.opts.Pools.Volumes()
	for handle, v := range volumes {
		backing, err := loop.BackingOf(v.Data())
		if err != nil {
			continue // reported by the pool already
		}
		for _, device := range devices {
			if device.Backing != backing || device.AutoClear {
				continue
			}
			staged, err := stagings(handle)
			if err != nil {
				return err
			}
			if len(staged) > 0 {
				continue
			}
			klog.FromContext(ctx).Info("Detaching a loop device of a volume that is staged nowhere", "device", device.Path, "volume", handle)
			if err := loop.Detach(device); err != nil {
				return err
			}
		}
	}
	return nil
}

// unlockedNode must be used through [node] only.
type unlockedNode struct {
	csi.UnimplementedNodeServer
	opts Options
}

func (n *unlockedNode) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	resp := &csi.NodeGetCapabilitiesResponse{}
	for _, capability := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		resp.Capabilities = append(resp.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: capability}},
		})
	}
	return resp, nil
}

func (n *unlockedNode) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{
		NodeId: n.opts.Node, AccessibleTopology: &csi.Topology{Segments: map[string]string{TopologyKey: n.opts.Node}},
	}, nil
}

// usable returns a whole volume whose mode fits the capability.
func (n *unlockedNode) usable(handle string, capability *csi.VolumeCapability) (volume.Volume, error) {
	found, _, err := n.opts.Pools.Volume(handle)
	if err != nil {
		return volume.Volume{}, err
	}
	if found.Problem != nil {
		return volume.Volume{}, found.Problem
	}
	mode, err := checkCapability(capability)
	if err != nil {
		return volume.Volume{}, err
	}
	if mode != found.Mode {
		return volume.Volume{}, fmt.Errorf("%w: volume %s has mode %s, not %s", errInvalid, handle, found.Mode, mode)
	}
	return found, nil
}

func (n *unlockedNode) NodeGetVolumeStats(_ context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	path := req.GetVolumePath()
	if req.GetVolumeId() == "" || path == "" {
		return nil, fmt.Errorf("%w: a volume id and a volume path are needed", errInvalid)
	}
	found, _, err := n.opts.Pools.Volume(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", volume.ErrNotFound, path, err)
	}
	if found.Content == volume.ContentFiles {
		return filesStats(path)
	}
	file := found.Data()
	if found.FSType != "" || found.Mode == volume.ModeFilesystem {
		file = filepath.Join(path, diskFile)
	}
	if err := unix.Stat(file, &stat); err != nil {
		return nil, &os.PathError{Op: "stat", Path: file, Err: err}
	}
	used := min(stat.Blocks*512, found.Size)
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: found.Size, Used: used, Available: found.Size - used},
	}}, nil
}

func filesStats(path string) (*csi.NodeGetVolumeStatsResponse, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{
			Unit: csi.VolumeUsage_BYTES, Total: int64(fs.Blocks) * fs.Bsize, Available: int64(fs.Bavail) * fs.Bsize,
			Used: int64(fs.Blocks-fs.Bfree) * fs.Bsize,
		},
		{Unit: csi.VolumeUsage_INODES, Total: int64(fs.Files), Available: int64(fs.Ffree), Used: int64(fs.Files - fs.Ffree)},
	}}, nil
}

// detachAll frees the loop devices over a volume's file.
func detachAll(v volume.Volume) error {
	if v.Content == volume.ContentFiles && v.FSType == "" {
		return nil
	}
	if err := loop.DetachFile(v.Data()); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}
