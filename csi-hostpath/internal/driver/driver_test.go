package driver

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/pooltest"
	"podvirt.dev/csi-hostpath/internal/volume"
	"podvirt.dev/internal/require"
)

// TestDiskHasItsSizeAndKeepsIt is ST-016: disk.img is as large as asked for, alone in its directory, and whoever has
// it can neither add files nor grow it by more than one percent of the pool.
func TestDiskHasItsSizeAndKeepsIt(t *testing.T) {
	for _, fsType := range pooltest.Types() {
		b := newBench(t, fsType)
		for _, size := range []int64{64 << 20, 300 << 20, 1 << 30, 1000000001, 20 << 30} {
			t.Run(fmt.Sprintf("%s/%d", fsType, size), func(t *testing.T) {
				r := request{name: "root", pod: "a", size: size, parameters: map[string]string{"content": "disk"}}
				handle := b.create(r)
				target := b.publish(handle, r)
				disk := filepath.Join(target, "disk.img")
				var stat unix.Stat_t
				if err := unix.Stat(disk, &stat); err != nil {
					t.Fatal(err)
				}
				if want := (size + 4095) / 4096 * 4096; stat.Size != want || stat.Uid != 107 || stat.Gid != 107 || stat.Mode != unix.S_IFREG|0o660 {
					t.Errorf("disk.img: size %d, owner %d:%d, mode %o; want %d, 107:107, 0660", stat.Size, stat.Uid, stat.Gid, stat.Mode, want)
				}
				for _, err := range []error{os.WriteFile(filepath.Join(target, "more"), nil, 0o600), addBound(t, target)} {
					if !errors.Is(err, unix.EROFS) {
						t.Errorf("adding a file = %v; want it refused", err)
					}
				}
				if size <= 64<<20 || size <= 300<<20 && fsType == "xfs" {
					writeInPieces(t, disk, size)
				}
				if size <= 64<<20 {
					growAsFarAsPossible(t, disk, size)
				}
				b.remove(handle, r)
			})
		}
	}
}

// addBound adds a file by way of a mount that a container runtime makes of a volume which is not read-only.
func addBound(t *testing.T, dir string) error {
	t.Helper()
	again := t.TempDir()
	writable := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	err := errors.Join(unix.Mount(dir, again, "", unix.MS_BIND, ""), unix.MountSetattr(unix.AT_FDCWD, again, 0, &writable))
	if err != nil {
		t.Fatal(err)
	}
	return errors.Join(os.WriteFile(filepath.Join(again, "more"), nil, 0o600), unix.Unmount(again, 0))
}

// writeInPieces writes every second block and then the others: a guest may do that and must not run out of space.
func writeInPieces(t *testing.T, disk string, size int64) {
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := bytes.Repeat([]byte("x"), 4096)
	for half := range int64(2) {
		for at := half * 4096; at < size; at += 2 * 4096 {
			if _, err := f.WriteAt(block, at); err != nil {
				t.Fatalf("writing at %d of %d: %v", at, size, err)
			}
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
	}
}

func growAsFarAsPossible(t *testing.T, disk string, size int64) {
	f, err := os.OpenFile(disk, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk := make([]byte, 1<<20); err == nil; {
		_, err = f.Write(chunk)
	}
	err = errors.Join(err, f.Sync())
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("growing disk.img ended with %v; want ENOSPC", err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if limit := size + (64<<30)/100; info.Size() > limit {
		t.Errorf("disk.img grew to %d; want at most its size and one percent of the pool, %d", info.Size(), limit)
	}
}

// TestFilesVolumeIsFull: a Pod that writes more than its volume has gets ENOSPC, and the pool stays.
func TestFilesVolumeIsFull(t *testing.T) {
	b := newBench(t, "xfs")
	r := request{name: "data", pod: "a", size: 64 << 20, flags: []string{"noatime"}}
	handle := b.create(r)
	target := b.publish(handle, r)
	written := int64(0)
	chunk := make([]byte, 1<<20)
	for i := 0; ; i++ {
		err := os.WriteFile(filepath.Join(target, fmt.Sprint(i)), chunk, 0o600)
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		written += int64(len(chunk))
	}
	if written < 40<<20 || written > 64<<20 {
		t.Errorf("%d bytes could be written to a volume of 64 MiB", written)
	}
	stats, err := b.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: handle, VolumePath: target})
	if err != nil || len(stats.GetUsage()) != 2 || stats.GetUsage()[0].GetAvailable() > 1<<20 {
		t.Errorf("usage of a full volume = %v, %v", stats, err)
	}
	b.remove(handle, r)
}

// TestBlockDevice is ST-019 as far as one machine shows it: exact size, owner and mode for the unprivileged launcher,
// direct I/O, discard that reaches the pool, and the same device after the driver was restarted.
func TestBlockDevice(t *testing.T) {
	b := newBench(t, "xfs")
	r := request{name: "data", pod: "a", size: 100 << 20, block: true}
	handle := b.create(r)
	target := b.publish(handle, r)
	var stat unix.Stat_t
	if err := unix.Stat(target, &stat); err != nil {
		t.Fatal(err)
	}
	if stat.Mode != unix.S_IFBLK|0o660 || stat.Uid != 107 || stat.Gid != 107 {
		t.Errorf("device: mode %o, owner %d:%d; want a block device, 0660, 107:107", stat.Mode, stat.Uid, stat.Gid)
	}
	loop := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
	for file, want := range map[string]string{
		"size": fmt.Sprint(100 << 20 / 512), "loop/dio": "1", "queue/logical_block_size": "512", "ro": "0",
	} {
		if got, err := os.ReadFile(filepath.Join(loop, file)); err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s = %q, %v; want %s", file, got, err, want)
		}
	}
	if node, err := os.Stat("/dev/" + filepath.Base(resolve(t, loop))); err != nil || node.Mode().Perm() == 0 {
		t.Errorf("the node in /dev: %v, %v", node, err)
	}
	writeAndDiscard(t, b, handle, target)
	verifyAsLauncher(t, target)

	b.restart()
	other := r
	other.pod = "b"
	expect(t, b.tryPublish(handle, other), codes.FailedPrecondition, "VolumeInUse: data is written by Pod shop/a")
	other.readOnly = true
	if err := b.tryPublish(handle, other); err != nil {
		t.Fatal(err)
	}
	if f, err := os.OpenFile(b.target(other), os.O_WRONLY, 0); err == nil {
		_, err = f.Write(make([]byte, 4096))
		if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
			t.Error("a read-only device took a write")
		}
	}
	if devices := pooltest.LoopDevices(t, b.dir); len(devices) != 2 {
		t.Errorf("loop devices after a restart of the driver: %v; want the one for writers and the one for readers", devices)
	}
	b.unpublish(handle, other)
	b.remove(handle, r)
}

func resolve(t *testing.T, path string) string {
	t.Helper()
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func writeAndDiscard(t *testing.T, b *bench, handle, target string) {
	t.Helper()
	used := func() int64 {
		stats, err := b.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: handle, VolumePath: target})
		if err != nil {
			t.Fatal(err)
		}
		return stats.GetUsage()[0].GetUsed()
	}
	pooltest.Run(t, "dd", "if=/dev/urandom", "of="+target, "bs=1M", "count=50", "conv=fsync,notrunc", "status=none")
	if got := used(); got < 50<<20 {
		t.Errorf("used after writing 50 MiB: %d", got)
	}
	pooltest.Run(t, "blkdiscard", target)
	if got := used(); got > 1<<20 {
		t.Errorf("used after discarding everything: %d", got)
	}
}

// verifyAsLauncher lets fio write the device and read it back with checksums, as the launcher's user does: unprivileged,
// and by direct I/O.
func verifyAsLauncher(t *testing.T, target string) {
	t.Helper()
	_, err := exec.LookPath("fio")
	require.Feature(t, err == nil, "fio")
	for dir := filepath.Dir(target); strings.Contains(dir, "Test"); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("fio", "--name=verify", "--filename="+target, "--rw=randwrite", "--bs=4k", "--size=32m", "--direct=1",
		"--ioengine=libaio", "--iodepth=16", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--output-format=terse")
	cmd.Dir = t.TempDir()
	if err := os.Chmod(cmd.Dir, 0o777); err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 107, Gid: 107}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("fio as user 107: %v\n%s", err, out)
	}
}

// TestSecondWriter is ST-018.
func TestSecondWriter(t *testing.T) {
	b := newBench(t, "xfs")
	disk := map[string]string{"content": "disk"}
	for name, test := range map[string]struct {
		first, second request
		shareable     string
		refused       string
	}{
		"files are for many":  {first: request{size: 64 << 20}, second: request{}},
		"a disk is for one":   {first: request{size: 64 << 20, parameters: disk}, refused: "VolumeInUse: v is written by Pod shop/a"},
		"a reader beside":     {first: request{size: 64 << 20, parameters: disk}, second: request{readOnly: true}},
		"ReadWriteMany":       {first: request{size: 64 << 20, block: true, mode: csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER}},
		"marked as shareable": {first: request{size: 64 << 20, block: true}, shareable: "true"},
		"ReadWriteOncePod": {
			first:   request{size: 64 << 20, mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER},
			refused: "VolumeInUse: v is ReadWriteOncePod and used by Pod shop/a",
		},
		"ReadWriteOncePod, reader": {
			first:  request{size: 64 << 20, mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER},
			second: request{readOnly: true}, refused: "VolumeInUse",
		},
	} {
		t.Run(name, func(t *testing.T) {
			b.claims["shop/v"] = ClaimInfo{Annotations: map[string]string{annotationShareable: test.shareable}}
			first := test.first
			first.name, first.pod = "v", "a"
			second := first
			second.pod, second.readOnly = "b", test.second.readOnly
			handle := b.create(first)
			b.publish(handle, first)
			b.restart() // who writes is not remembered in memory

			err := b.tryPublish(handle, second)
			if test.refused != "" {
				expect(t, err, codes.FailedPrecondition, test.refused)
				b.unpublish(handle, first)
				err = b.tryPublish(handle, second)
			}
			if err != nil {
				t.Error(err)
			}
			b.unpublish(handle, second)
			b.remove(handle, first)
		})
	}
}

// TestGroup: the Pod's group may write, and nothing outside the volume is touched.
func TestGroup(t *testing.T) {
	b := newBench(t, "xfs")
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := request{name: "data", pod: "a", size: 64 << 20}
	handle := b.create(r)
	target := b.publish(handle, r)
	inside := filepath.Join(target, "dir", "file")
	made := errors.Join(os.Mkdir(filepath.Dir(inside), 0o700), os.WriteFile(inside, nil, 0o600))
	if err := errors.Join(made, os.Symlink(outside, filepath.Join(target, "link"))); err != nil {
		t.Fatal(err)
	}
	b.unpublish(handle, r)

	r.group = "2000"
	if err := b.tryPublish(handle, r); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		target: "2000 2775", filepath.Dir(inside): "2000 2770", inside: "2000 660", outside: "0 600",
	} {
		var stat unix.Stat_t
		if err := unix.Stat(path, &stat); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%d %o", stat.Gid, stat.Mode&0o7777); got != want {
			t.Errorf("%s: group and mode %s; want %s", path, got, want)
		}
	}
	b.remove(handle, r)
}

// TestRefusals: every refusal has its code and says what is wrong, and nothing is left behind.
func TestRefusals(t *testing.T) {
	b := newBench(t, "xfs")
	const size = 64 << 20
	for name, test := range map[string]struct {
		request     request
		annotations map[string]string
		code        codes.Code
		text        string
	}{
		"unknown parameter": {
			request{size: size, parameters: map[string]string{"pol": "x"}}, nil,
			codes.InvalidArgument, "StorageClass podvirt-fast: pol: unknown parameter; nearest: pool",
		},
		"bad word": {
			request{size: size, parameters: map[string]string{"content": "disc"}}, nil,
			codes.InvalidArgument, `content: "disc": not one of auto, disk, files; nearest: disk`,
		},
		"two mistakes": {
			request{size: size, parameters: map[string]string{"contend": "disk", "preallocation": "some"}}, nil,
			codes.InvalidArgument, "nearest: content\nStorageClass podvirt-fast: preallocation",
		},
		"unknown pool": {
			request{size: size, parameters: map[string]string{"pool": "fast"}}, nil,
			codes.ResourceExhausted, `node n1 has no pool "fast"; pools here: test`,
		},
		"too small":         {request{size: 1 << 20}, nil, codes.OutOfRange, "the smallest volume has 16777216"},
		"negative":          {request{size: -1}, nil, codes.InvalidArgument, "size -1"},
		"too large":         {request{size: 1 << 40}, nil, codes.ResourceExhausted, "pool test on node n1 has"},
		"too small for xfs": {request{size: size, fsType: "xfs"}, nil, codes.InvalidArgument, "fstype xfs needs 300Mi; use ext4"},
		"unknown file system": {
			request{size: size, fsType: "zfs"}, nil,
			codes.InvalidArgument, `fstype "zfs": not one of xfs, ext4, btrfs`,
		},
		"a disk in btrfs": {
			request{size: size, fsType: "btrfs", parameters: map[string]string{"content": "disk"}}, nil,
			codes.InvalidArgument, "fstype btrfs: not for content disk; use xfs or ext4",
		},
		"mount option": {request{size: size, flags: []string{"dax"}}, nil, codes.InvalidArgument, `mount option: "dax": not one of`},
		"readers only": {
			request{size: size, mode: csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY}, nil,
			codes.InvalidArgument, "would stay empty",
		},
		"files in a Block": {
			request{size: size, block: true}, map[string]string{annotationContent: "files"},
			codes.FailedPrecondition, `podvirt.dev/content: "files": a Block volume is always content disk`,
		},
		"unknown content": {
			request{size: size}, map[string]string{annotationContent: "dsk"},
			codes.FailedPrecondition, `podvirt.dev/content: "dsk": not one of disk, files; nearest: disk`,
		},
		"an import": {
			request{size: size}, map[string]string{api.KeyImportSource: "https://example.org/x"},
			codes.InvalidArgument, "podvirt.dev/import-source",
		},
		"project quota": {
			request{size: size, parameters: map[string]string{"hardSize": "project"}}, nil,
			codes.InvalidArgument, "pool test enforces sizes by image",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := test.request
			r.name = "v"
			b.claims["shop/v"] = ClaimInfo{Class: "podvirt-fast", Annotations: test.annotations}
			_, err := b.tryCreate(r)
			expect(t, err, test.code, test.text)
		})
	}
	pooltest.ExpectNothingLeft(t, b.dir)
}

// TestClaimShapesTheVolume: what the claim says wins over the class, and both are kept in meta.json (ST-007).
func TestClaimShapesTheVolume(t *testing.T) {
	b := newBench(t, "ext4")
	b.claims["shop/v"] = ClaimInfo{UID: "u1", Annotations: map[string]string{annotationContent: "disk", annotationPreallocation: "falloc"}}
	r := request{name: "v", pod: "a", size: 64 << 20, parameters: map[string]string{"content": "files", "preallocation": "none", "directIO": "off"}}
	handle := b.create(r)
	files, err := filepath.Glob(filepath.Join(b.dir, "volumes", "*", "meta.json"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"content": "disk"`, `"preallocation": "falloc"`, `"directIO": "off"`, `"uid": "u1"`, `"namespace": "shop"`, `"state": "ready"`,
	} {
		if !strings.Contains(string(data), want) {
			t.Errorf("meta.json lacks %s:\n%s", want, data)
		}
	}
	target := b.publish(handle, r)
	stats, err := b.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: handle, VolumePath: target})
	if err != nil || stats.GetUsage()[0].GetUsed() != 64<<20 {
		t.Errorf("usage of a preallocated disk = %v, %v; want all of it", stats, err)
	}
	b.remove(handle, r)
}

// TestInUse: a volume is not deleted or unstaged under its user, also when the driver does not remember (ST-026).
func TestInUse(t *testing.T) {
	b := newBench(t, "xfs")
	r := request{name: "v", pod: "a", size: 64 << 20, block: true}
	handle := b.create(r)
	b.publish(handle, r)
	b.restart()
	_, err := b.NodeUnstageVolume(t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: handle, StagingTargetPath: b.staging(r)})
	expect(t, err, codes.FailedPrecondition, "still published")
	_, err = b.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: handle})
	expect(t, err, codes.FailedPrecondition, "shop/v is still staged")
	_, err = b.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: handle, StagingTargetPath: t.TempDir(), TargetPath: filepath.Join(b.paths, "x"), VolumeCapability: r.capability(),
	})
	expect(t, err, codes.FailedPrecondition, "not staged")
	r2 := r
	r2.block = false
	_, err = b.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: handle, StagingTargetPath: b.staging(r), VolumeCapability: r2.capability()})
	expect(t, err, codes.InvalidArgument, "has mode Block, not Filesystem")
	b.remove(handle, r)
}

// TestUnstageAfterThePoolWentAway: a pool that was unmounted underneath must not keep a node from being cleaned up.
func TestUnstageAfterThePoolWentAway(t *testing.T) {
	b := newBench(t, "xfs")
	r := request{name: "v", pod: "a", size: 64 << 20, block: true}
	handle := b.create(r)
	b.publish(handle, r)
	pooltest.Run(t, "umount", "--lazy", b.dir)
	_, err := b.tryCreate(request{name: "w", size: 64 << 20})
	expect(t, err, codes.ResourceExhausted, "another file system")
	capacity, err := b.GetCapacity(t.Context(), &csi.GetCapacityRequest{})
	if err == nil && capacity.GetAvailableCapacity() != 0 {
		t.Errorf("capacity of a pool that is gone = %v, %v; want none", capacity, err)
	}
	b.unpublish(handle, r)
	if _, err := b.NodeUnstageVolume(t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: handle, StagingTargetPath: b.staging(r)}); err != nil {
		t.Fatal(err)
	}
	_, err = b.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: handle})
	expect(t, err, codes.Unavailable, "another file system")
	pooltest.Eventually(t, func() error {
		if devices := pooltest.LoopDevices(t, b.dir); len(devices) > 0 {
			return fmt.Errorf("loop devices are left: %v", devices)
		}
		return nil
	})
}

// TestSizes: a limit is honoured, and a request without a size gets one.
func TestSizes(t *testing.T) {
	for name, test := range map[string]struct {
		required, limit int64
		want            int64
		err             error
	}{
		"none":                    {0, 0, 1 << 30, nil},
		"exact":                   {64 << 20, 64 << 20, 64 << 20, nil},
		"rounded up":              {64<<20 + 1, 0, 64<<20 + 4096, nil},
		"rounded above its limit": {64<<20 + 1, 64<<20 + 1, 0, volume.ErrTooLarge},
		"only a limit":            {0, 100<<20 + 1, 100 << 20, nil},
		"above the limit":         {64 << 20, 32 << 20, 0, volume.ErrTooLarge},
		"negative":                {-1, 0, 0, errInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := sizeOf(&csi.CapacityRange{RequiredBytes: test.required, LimitBytes: test.limit})
			if got != test.want || !errors.Is(err, test.err) {
				t.Errorf("size = %d, %v; want %d, %v", got, err, test.want, test.err)
			}
		})
	}
}
