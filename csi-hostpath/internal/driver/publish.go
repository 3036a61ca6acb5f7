package driver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/mounts"
	"podvirt.dev/csi-hostpath/internal/volume"
	"podvirt.dev/internal/atomicfile"
)

// Keys that kubelet adds to the volume context (CSIDriver podInfoOnMount).
const (
	contextPodName      = "csi.storage.k8s.io/pod.name"
	contextPodNamespace = "csi.storage.k8s.io/pod.namespace"
	contextPodUID       = "csi.storage.k8s.io/pod.uid"
	contextEphemeral    = "csi.storage.k8s.io/ephemeral"
)

// publication is one record of who has a staged volume. Only one whose target really is mounted counts.
type publication struct {
	Target   string `json:"target"`
	Pod      string `json:"pod"` // namespace/name
	PodUID   string `json:"podUID"`
	ReadOnly bool   `json:"readOnly"`
	Single   bool   `json:"single"` // the claim is ReadWriteOncePod
}

func (p publication) file(staging string) string {
	digest := sha256.Sum256([]byte(p.Target))
	return filepath.Join(staging, publishDir, hex.EncodeToString(digest[:12])+".json")
}

// livePublications returns the records of a staging whose targets are mounted.
func livePublications(staging string, table mounts.Table) ([]publication, error) {
	files, err := filepath.Glob(filepath.Join(staging, publishDir, "*.json"))
	if err != nil {
		return nil, err
	}
	var live []publication
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var p publication
		if err := json.Unmarshal(data, &p); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if _, mounted := table.At(p.Target); mounted {
			live = append(live, p)
		}
	}
	return live, nil
}

func (n *unlockedNode) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if err := checkPublish(req); err != nil {
		return nil, err
	}
	found, err := n.usable(req.GetVolumeId(), req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	staging := req.GetStagingTargetPath()
	table, err := mounts.Read()
	if err != nil {
		return nil, err
	}
	if mount, mounted := table.At(staging); !mounted || mount.Source != sourceName(req.GetVolumeId()) {
		return nil, fmt.Errorf("%w: %s at %q", errNotStaged, req.GetVolumeId(), staging)
	}
	wanted := publicationOf(req)
	live, err := livePublications(staging, table)
	if err != nil {
		return nil, err
	}
	if err := n.admit(ctx, found, req.GetVolumeCapability(), wanted, live); err != nil {
		return nil, err
	}
	if err := n.record(staging, wanted); err != nil {
		return nil, err
	}
	if err := n.publish(req, found, wanted); err != nil {
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, n.opts.Fault.At("publish.answer")
}

func checkPublish(req *csi.NodePublishVolumeRequest) error {
	switch {
	case req.GetVolumeContext()[contextEphemeral] == "true":
		return fmt.Errorf("%w: inline volumes (role: hotplug) are not served by this version of the driver", errInvalid)
	case req.GetVolumeId() == "" || req.GetTargetPath() == "" || req.GetVolumeCapability() == nil:
		return fmt.Errorf("%w: a volume id, a target path and a capability are needed", errInvalid)
	case req.GetStagingTargetPath() == "":
		return fmt.Errorf("%w: no staging path", errNotStaged)
	}
	return nil
}

func publicationOf(req *csi.NodePublishVolumeRequest) publication {
	pod := req.GetVolumeContext()
	return publication{
		Target: filepath.Clean(req.GetTargetPath()), Pod: pod[contextPodNamespace] + "/" + pod[contextPodName], PodUID: pod[contextPodUID],
		ReadOnly: req.GetReadonly() || readerOnly(req.GetVolumeCapability()), Single: oneWriter(req.GetVolumeCapability()),
	}
}

// admit refuses a second writer of a VM disk, and any second user of a ReadWriteOncePod claim (ST-018).
func (n *unlockedNode) admit(
	ctx context.Context, v volume.Volume, capability *csi.VolumeCapability, wanted publication, live []publication,
) error {
	for _, other := range live {
		switch {
		case other.Target == wanted.Target:
			continue
		case wanted.Single || other.Single:
			return fmt.Errorf("%w: %s is ReadWriteOncePod and used by Pod %s", errInUse, v.Claim.Name, other.Pod)
		case v.Content != volume.ContentDisk || wanted.ReadOnly || other.ReadOnly || manyWriters(capability):
			continue
		}
		shareable, err := n.shareable(ctx, v.Claim)
		if err != nil {
			return err
		}
		if !shareable {
			return fmt.Errorf("%w: %s is written by Pod %s", errInUse, v.Claim.Name, other.Pod)
		}
	}
	return nil
}

func (n *unlockedNode) shareable(ctx context.Context, claim volume.Claim) (bool, error) {
	info, err := claimInfo(ctx, n.opts.Claims, claim)
	return info.Annotations[annotationShareable] == "true", err
}

// record notes who is about to have the volume.
func (n *unlockedNode) record(staging string, p publication) error {
	if err := n.opts.Fault.At("publish.record"); err != nil {
		return err
	}
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return atomicfile.Write(p.file(staging), data, 0o600)
}

// publish is repeatable: each step looks whether it is done already.
func (n *unlockedNode) publish(req *csi.NodePublishVolumeRequest, v volume.Volume, p publication) error {
	if err := os.MkdirAll(filepath.Dir(p.Target), 0o750); err != nil {
		return err
	}
	if err := n.opts.Fault.At("publish.mount"); err != nil {
		return err
	}
	if v.Mode == volume.ModeBlock {
		return n.publishDevice(req.GetStagingTargetPath(), v, p)
	}
	inside := filepath.Join(req.GetStagingTargetPath(), fsDir)
	group, err := mountGroup(req.GetVolumeCapability())
	if err != nil {
		return err
	}
	if v.Content == volume.ContentDisk {
		return n.publishDisk(filepath.Join(inside, diskFile), group, p)
	}
	if group >= 0 && !p.ReadOnly {
		if err := applyGroup(inside, group); err != nil {
			return fmt.Errorf("giving the volume to group %d: %w", group, err)
		}
	}
	if err := os.MkdirAll(p.Target, 0o750); err != nil {
		return err
	}
	if err := bindOnce(inside, p.Target); err != nil {
		return err
	}
	return readOnlyIf(p.ReadOnly, p.Target)
}

func (n *unlockedNode) publishDevice(staging string, v volume.Volume, p publication) error {
	name := deviceNode
	if p.ReadOnly {
		name = deviceNodeR
		if err := n.ensureDevice(staging, v, true); err != nil {
			return err
		}
	}
	if err := touch(p.Target); err != nil {
		return err
	}
	return bindOnce(filepath.Join(staging, name), p.Target)
}

// publishDisk shows disk.img alone in a read-only directory (ST-016): whoever has the volume can add nothing.
func (n *unlockedNode) publishDisk(disk string, group int, p publication) error {
	if group < 0 {
		group = api.LauncherUID
	}
	if err := errors.Join(os.Chown(disk, api.LauncherUID, group), os.Chmod(disk, 0o660)); err != nil && !p.ReadOnly {
		return err
	}
	if err := os.MkdirAll(p.Target, 0o750); err != nil {
		return err
	}
	table, err := mounts.Read()
	if err != nil {
		return err
	}
	file := filepath.Join(p.Target, diskFile)
	if _, complete := table.At(file); !complete {
		// What an interrupted call left here has no disk in it; begin anew.
		if err := mounts.UnmountTree(p.Target); err != nil {
			return err
		}
		if err := mounts.Tmpfs("podvirt-disk", p.Target); err != nil {
			return err
		}
		if err := n.opts.Fault.At("publish.disk"); err != nil {
			return err
		}
		if err := touch(file); err != nil {
			return err
		}
		if err := mounts.Bind(disk, file); err != nil {
			return err
		}
	}
	return errors.Join(readOnlyIf(p.ReadOnly, file), mounts.Seal(p.Target))
}

func (n *unlockedNode) NodeUnpublishVolume(_ context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	handle, target := req.GetVolumeId(), req.GetTargetPath()
	if handle == "" || target == "" {
		return nil, fmt.Errorf("%w: a volume id and a target path are needed", errInvalid)
	}
	if err := n.opts.Fault.At("unpublish.unmount"); err != nil {
		return nil, err
	}
	if err := mounts.RemovePoint(filepath.Clean(target)); err != nil {
		return nil, err
	}
	if err := n.opts.Fault.At("unpublish.record"); err != nil {
		return nil, err
	}
	staged, err := stagings(handle)
	if err != nil {
		return nil, err
	}
	for _, staging := range staged {
		gone := publication{Target: filepath.Clean(target)}
		if err := os.Remove(gone.file(staging)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return &csi.NodeUnpublishVolumeResponse{}, n.opts.Fault.At("unpublish.answer")
}

// mountGroup is the Pod's fsGroup, or -1.
func mountGroup(capability *csi.VolumeCapability) (int, error) {
	text := capability.GetMount().GetVolumeMountGroup()
	if text == "" {
		return -1, nil
	}
	group, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%w: volume_mount_group %q is not a group id", errInvalid, text)
	}
	return int(group), nil
}

// applyGroup gives a file tree to a group, unless its top says that this was done before. The tree belongs to Pods
// that may change it meanwhile, so nothing is followed out of it.
func applyGroup(dir string, group int) error {
	top, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if groupOf(top) == group && top.Mode()&fs.ModeSetgid != 0 && top.Mode().Perm()&0o070 == 0o070 {
		return nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	// The top comes last: it is the mark that everything below is done.
	err = fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		return ignoreGone(giveToGroup(root, name, entry.Type(), group))
	})
	if err != nil {
		return err
	}
	return giveToGroup(root, ".", fs.ModeDir, group)
}

func giveToGroup(root *os.Root, name string, kind fs.FileMode, group int) error {
	if err := root.Lchown(name, -1, group); err != nil {
		return err
	}
	if kind&fs.ModeSymlink != 0 {
		return nil
	}
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	mode := info.Mode().Perm() | 0o060
	if kind.IsDir() {
		mode |= 0o010 | fs.ModeSetgid
	}
	return root.Chmod(name, mode)
}

// groupOf is the group that owns a file.
func groupOf(info fs.FileInfo) int {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(stat.Gid)
	}
	return -1
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// bindOnce binds unless something is mounted at the target already: only this driver mounts there.
func bindOnce(source, target string) error {
	table, err := mounts.Read()
	if err != nil {
		return err
	}
	if _, mounted := table.At(target); mounted {
		return nil
	}
	return mounts.Bind(source, target)
}

func readOnlyIf(readOnly bool, path string) error {
	if !readOnly {
		return nil
	}
	return mounts.ReadOnly(path)
}

// touch makes an empty file to mount onto, if there is nothing yet. What is there is not opened: it may be a device.
func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}
