package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/filesystem"
	"podvirt.dev/csi-hostpath/internal/loop"
	"podvirt.dev/csi-hostpath/internal/mounts"
	"podvirt.dev/csi-hostpath/internal/volume"
)

// A staged volume is a tmpfs of ours at the staging path, named after the volume in the mount table. It holds what is
// true only until the node restarts, so it cannot outlive the mounts it describes:
//
//	publish/HASH.json  who has the volume, one file per target path
//	device, device-ro  Block: nodes of the loop devices, owned by the launcher's user; the nodes in /dev stay root's
//	fs/                Filesystem: the volume's file system
const (
	publishDir  = "publish"
	fsDir       = "fs"
	deviceNode  = "device"
	deviceNodeR = "device-ro"
	diskFile    = "disk.img"
)

// sourceName is how the staging tmpfs of a volume is called in the mount table.
func sourceName(handle string) string { return api.CSIDriver + "/" + handle }

// stagings returns the paths at which a volume is staged.
func stagings(handle string) ([]string, error) {
	table, err := mounts.Read()
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, mount := range table.WithSource(sourceName(handle)) {
		if mount.Type == "tmpfs" && mount.Root == "/" {
			paths = append(paths, mount.Point)
		}
	}
	return paths, nil
}

func (n *unlockedNode) NodeStageVolume(_ context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	handle, path, capability := req.GetVolumeId(), req.GetStagingTargetPath(), req.GetVolumeCapability()
	if handle == "" || path == "" || capability == nil {
		return nil, fmt.Errorf("%w: a volume id, a staging path and a capability are needed", errInvalid)
	}
	found, err := n.usable(handle, capability)
	if err != nil {
		return nil, err
	}
	if err := n.ensureStaging(handle, path); err != nil {
		return nil, err
	}
	if found.Mode == volume.ModeBlock {
		err = n.ensureDevice(path, found, readerOnly(capability))
	} else {
		err = n.ensureMounted(path, found, capability)
	}
	if err != nil {
		return nil, err
	}
	return &csi.NodeStageVolumeResponse{}, n.opts.Fault.At("stage.answer")
}

// ensureStaging mounts the tmpfs of the volume at the staging path.
func (n *unlockedNode) ensureStaging(handle, path string) error {
	if err := os.MkdirAll(path, 0o750); err != nil {
		return err
	}
	table, err := mounts.Read()
	if err != nil {
		return err
	}
	switch mount, mounted := table.At(path); {
	case mounted && mount.Source == sourceName(handle):
	case mounted:
		return fmt.Errorf("%w: something else is mounted at %s: %s", errInUse, path, mount.Source)
	default:
		if err := n.opts.Fault.At("stage.tmpfs"); err != nil {
			return err
		}
		if err := mounts.Tmpfs(sourceName(handle), path); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(path, publishDir), 0o700); err != nil {
		return err
	}
	return nil
}

// ensureDevice attaches the disk and makes a node for it that the launcher's user may open.
func (n *unlockedNode) ensureDevice(staging string, v volume.Volume, readOnly bool) error {
	if err := n.opts.Fault.At("stage.loop"); err != nil {
		return err
	}
	device, err := loop.Ensure(v.Data(), loop.Options{ReadOnly: readOnly, DirectIO: v.DirectIO != "off"})
	if err != nil {
		return err
	}
	if v.DirectIO == "on" && !device.DirectIO {
		return errors.Join(fmt.Errorf("directIO=on: the file system of %s cannot do direct I/O", v.Data()), loop.Detach(device))
	}
	if err := n.opts.Fault.At("stage.node"); err != nil {
		return err
	}
	name, mode := deviceNode, uint32(0o660)
	if readOnly {
		name, mode = deviceNodeR, 0o440
	}
	return ensureNode(filepath.Join(staging, name), device.Number, mode)
}

// ensureNode makes a block device node of the launcher's user; it replaces a node of another device.
func ensureNode(path string, number uint64, mode uint32) error {
	var stat unix.Stat_t
	if unix.Lstat(path, &stat) == nil && stat.Rdev == number && stat.Uid == api.LauncherUID && stat.Mode&0o777 == mode {
		return nil
	}
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := unix.Mknod(tmp, unix.S_IFBLK|mode, int(number)); err != nil {
		return &os.PathError{Op: "mknod", Path: tmp, Err: err}
	}
	if err := errors.Join(os.Chown(tmp, api.LauncherUID, api.LauncherUID), os.Chmod(tmp, os.FileMode(mode))); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// ensureMounted mounts the volume's file system below the staging path.
func (n *unlockedNode) ensureMounted(staging string, v volume.Volume, capability *csi.VolumeCapability) error {
	options, err := mountFlags(capability.GetMount().GetMountFlags())
	if err != nil {
		return err
	}
	at := filepath.Join(staging, fsDir)
	table, err := mounts.Read()
	if err != nil {
		return err
	}
	if _, mounted := table.At(at); mounted {
		return nil
	}
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := n.opts.Fault.At("stage.mount"); err != nil {
		return err
	}
	switch {
	case v.FSType != "":
		return filesystem.MountImage(v.Data(), at, filesystem.MountOptions{
			Type: v.FSType, DirectIO: v.DirectIO != "off", ReadOnly: readerOnly(capability), Flags: options.bits, Data: options.data,
			Discard: v.Preallocation == volume.PreallocateNone,
		})
	case v.Content == volume.ContentFiles:
		return mounts.Bind(v.Data(), at)
	default: // hardSize none: the disk lies in the pool itself and is bound alone
		file := filepath.Join(at, diskFile)
		if err := touch(file); err != nil {
			return err
		}
		return bindOnce(v.Data(), file)
	}
}

func (n *unlockedNode) NodeUnstageVolume(_ context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	handle, path := req.GetVolumeId(), req.GetStagingTargetPath()
	if handle == "" || path == "" {
		return nil, fmt.Errorf("%w: a volume id and a staging path are needed", errInvalid)
	}
	table, err := mounts.Read()
	if err != nil {
		return nil, err
	}
	if mount, mounted := table.At(path); mounted && mount.Source == sourceName(handle) {
		if err := n.unstage(path, table); err != nil {
			return nil, err
		}
	}
	// A process that died between unmounting and detaching left the devices; the volume itself may be gone by now.
	found, _, err := n.opts.Pools.Volume(handle)
	if err == nil {
		err = n.detachUnlessStaged(handle, found)
	} else if errors.Is(err, volume.ErrNotFound) || errors.Is(err, volume.ErrNotReady) {
		err = nil
	}
	if err != nil {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, n.opts.Fault.At("unstage.answer")
}

func (n *unlockedNode) detachUnlessStaged(handle string, v volume.Volume) error {
	staged, err := stagings(handle)
	if err != nil || len(staged) > 0 || v.Mode != volume.ModeBlock {
		return err
	}
	return detachAll(v)
}

// unstage takes down one staging; the loop devices are known by the nodes in it, also when the pool is gone.
func (n *unlockedNode) unstage(path string, table mounts.Table) error {
	published, err := livePublications(path, table)
	if err != nil {
		return err
	}
	if len(published) > 0 {
		return fmt.Errorf("%w: still published at %s", errInUse, published[0].Target)
	}
	devices, err := devicesOf(path)
	if err != nil {
		return err
	}
	if err := n.opts.Fault.At("unstage.unmount"); err != nil {
		return err
	}
	if err := mounts.UnmountTree(path); err != nil {
		return err
	}
	if err := n.opts.Fault.At("unstage.detach"); err != nil {
		return err
	}
	for _, device := range devices {
		if err := loop.Detach(device); err != nil {
			return err
		}
	}
	return nil
}

// devicesOf returns the loop devices behind the nodes of a staging.
func devicesOf(staging string) ([]loop.Device, error) {
	all, err := loop.List()
	if err != nil {
		return nil, err
	}
	var devices []loop.Device
	for _, name := range []string{deviceNode, deviceNodeR} {
		var stat unix.Stat_t
		if unix.Stat(filepath.Join(staging, name), &stat) != nil {
			continue
		}
		for _, device := range all {
			if device.Number == stat.Rdev {
				devices = append(devices, device)
			}
		}
	}
	return devices, nil
}
