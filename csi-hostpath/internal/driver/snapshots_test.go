package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"podvirt.dev/csi-hostpath/internal/pooltest"
	"podvirt.dev/csi-hostpath/internal/quiesce"
)

// kinds of volumes, each with the file through which its user writes.
func kinds() map[string]request {
	return map[string]request{
		"Block": {block: true},
		"disk":  {parameters: map[string]string{"content": "disk"}},
		"files": {parameters: map[string]string{"content": "files"}},
	}
}

// content is the file of a published volume that holds its data.
func content(target string, r request) string {
	switch {
	case r.block:
		return target
	case r.parameters["content"] == "disk":
		return filepath.Join(target, "disk.img")
	default:
		return filepath.Join(target, "note")
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte(text), 0)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string, length int) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, length)
	if _, err := f.ReadAt(data, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return string(data)
}

func (b *bench) trySnapshot(name, of string, parameters map[string]string) (string, error) {
	resp, err := b.CreateSnapshot(b.t.Context(), &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: of, Parameters: parameters})
	return resp.GetSnapshot().GetSnapshotId(), err
}

func (b *bench) snapshot(name, of string) string {
	b.t.Helper()
	id, err := b.trySnapshot(name, of, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return id
}

func (b *bench) deleteSnapshot(id string) {
	b.t.Helper()
	if _, err := b.DeleteSnapshot(b.t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: id}); err != nil {
		b.t.Fatal(err)
	}
}

// down takes a published volume down.
func (b *bench) down(handle string, r request) {
	b.t.Helper()
	b.unpublish(handle, r)
	if _, err := b.NodeUnstageVolume(b.t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: handle, StagingTargetPath: b.staging(r)}); err != nil {
		b.t.Fatal(err)
	}
}

// TestSnapshotAndRestore: a snapshot keeps what the volume held, survives its volume, and becomes a larger volume; also
// on a file system that cannot share blocks (ST-028, ST-029, ST-033).
func TestSnapshotAndRestore(t *testing.T) {
	for _, fsType := range pooltest.Types() {
		b := newBench(t, fsType)
		for name, r := range kinds() {
			t.Run(fsType+"/"+name, func(t *testing.T) {
				r.name, r.pod, r.size = "v", "a", 64<<20
				handle := b.create(r)
				write(t, content(b.publish(handle, r), r), "before")
				if fsType == "ext4" {
					_, err := b.trySnapshot("s", handle, nil)
					expect(t, err, codes.FailedPrecondition, "cannot share blocks and the volume is in use; stop shop/a or use a reflink pool")
					b.down(handle, r)
				}
				id := b.snapshot("s", handle)
				if again := b.snapshot("s", handle); again != id {
					t.Errorf("the same request made %s and %s", id, again)
				}
				if fsType == "ext4" {
					b.publish(handle, r)
				}
				write(t, content(b.target(r), r), "after!")
				_, err := b.CreateVolume(t.Context(), restore("small", 32<<20, id, r))
				expect(t, err, codes.OutOfRange, "clone needs at least 64Mi, claim asks for 32Mi")
				b.deleteOnly(handle, r)

				listed, err := b.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{SourceVolumeId: handle})
				if err != nil || len(listed.GetEntries()) != 1 || listed.GetEntries()[0].GetSnapshot().GetSnapshotId() != id {
					t.Errorf("snapshots of the volume: %v, %v", listed, err)
				}
				b.restart()
				restored := r
				restored.name, restored.size = "again", 128<<20
				made, err := b.CreateVolume(t.Context(), restore(restored.name, restored.size, id, r))
				if err != nil {
					t.Fatal(err)
				}
				target := b.publish(made.GetVolume().GetVolumeId(), restored)
				if got := read(t, content(target, r), 6); got != "before" {
					t.Errorf("the restored volume holds %q", got)
				}
				checkSize(t, content(target, r), r, 128<<20)
				b.deleteOnly(made.GetVolume().GetVolumeId(), restored)
				b.deleteSnapshot(id)
				b.deleteSnapshot(id)
				pooltest.ExpectNothingLeft(t, b.dir)
			})
		}
	}
}

func restore(name string, size int64, snapshot string, r request) *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{
		Name: "pvc-" + name, CapacityRange: &csi.CapacityRange{RequiredBytes: size}, Parameters: r.parameters,
		VolumeCapabilities: []*csi.VolumeCapability{r.capability()},
		VolumeContentSource: &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: snapshot},
		}},
	}
}

func clone(name string, size int64, of string, r request) *csi.CreateVolumeRequest {
	req := restore(name, size, "", r)
	req.VolumeContentSource.Type = &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: of}}
	return req
}

// deleteOnly takes its mounts down and deletes the volume, while others stay.
func (b *bench) deleteOnly(handle string, r request) {
	b.t.Helper()
	b.down(handle, r)
	if _, err := b.DeleteVolume(b.t.Context(), &csi.DeleteVolumeRequest{VolumeId: handle}); err != nil {
		b.t.Fatal(err)
	}
}

// checkSize looks how large a volume is for its user.
func checkSize(t *testing.T, name string, r request, want int64) {
	t.Helper()
	if r.parameters["content"] == "files" {
		var fs unix.Statfs_t
		if err := unix.Statfs(name, &fs); err != nil {
			t.Fatal(err)
		}
		if size := int64(fs.Blocks) * fs.Bsize; size < want*8/10 || size > want {
			t.Errorf("the file system has %d bytes; want nearly %d", size, want)
		}
		return
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); size != want || err != nil {
		t.Errorf("the disk has %d bytes (%v); want %d", size, err, want)
	}
}

// TestClone: a volume in use is copied in a moment where blocks can be shared, the copy costs nothing and is as
// independent as any volume; and what it promises counts in full (ST-035, ST-010).
func TestClone(t *testing.T) {
	for _, fsType := range []string{"xfs", "btrfs"} {
		b := newBench(t, fsType)
		for name, r := range kinds() {
			t.Run(fsType+"/"+name, func(t *testing.T) {
				r.name, r.pod, r.size = "v", "a", 1<<30
				handle := b.create(r)
				target := b.publish(handle, r)
				write(t, content(target, r), strings.Repeat("0123456789abcdef", 4<<20)) // 64 MiB
				before := free(t, b.dir)
				const copies = 10
				handles := make([]string, copies)
				begin := time.Now()
				for i := range copies {
					made, err := b.CreateVolume(t.Context(), clone(fmt.Sprint("c", i), 1<<30, handle, r))
					if err != nil {
						t.Fatal(err)
					}
					handles[i] = made.GetVolume().GetVolumeId()
				}
				t.Logf("a clone took %v", time.Since(begin)/copies)
				if used := before - free(t, b.dir); used > 32<<20 {
					t.Errorf("%d clones of 64 MiB took %d bytes", copies, used)
				}
				copied := r
				copied.name, copied.pod = "c0", "b"
				other := b.publish(handles[0], copied) // beside the origin, which is still mounted
				if got := read(t, content(other, r), 16); got != "0123456789abcdef" {
					t.Errorf("the clone holds %q", got)
				}
				write(t, content(other, r), "the clone's own.")
				if got := read(t, content(target, r), 16); got != "0123456789abcdef" {
					t.Errorf("the origin holds %q after the clone was written", got)
				}
				b.down(handles[0], copied)
				b.deleteOnly(handle, r)
				for _, handle := range handles {
					if _, err := b.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: handle}); err != nil {
						t.Fatal(err)
					}
				}
				pooltest.ExpectNothingLeft(t, b.dir)
			})
		}
	}
}

func free(t *testing.T, dir string) int64 {
	t.Helper()
	pooltest.Run(t, "sync", "--file-system", dir)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	return int64(fs.Bfree) * fs.Bsize
}

// TestExpand: a volume grows under its user and at rest, never shrinks, and not beyond the pool (ST-024, ST-025). ext4,
// which small volumes have, grows under its user only where the machine gives CAP_SYS_RESOURCE.
func TestExpand(t *testing.T) {
	for _, fsType := range pooltest.Types() {
		b := newBench(t, fsType)
		for name, r := range growing() {
			t.Run(fsType+"/"+name, func(t *testing.T) {
				r.name, r.pod = "v", "a"
				handle := b.create(r)
				target := b.publish(handle, r)
				write(t, content(target, r), "kept")
				grow := func(size int64) (int64, error) {
					resp, err := b.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
						VolumeId: handle, CapacityRange: &csi.CapacityRange{RequiredBytes: size},
					})
					return resp.GetCapacityBytes(), err
				}
				if r.fsType == "ext4" && !capable() {
					b.down(handle, r)
				}
				if size, err := grow(400<<20 + 1); size != 400<<20+4096 || err != nil {
					t.Fatalf("growing: %d, %v", size, err)
				}
				if r.fsType == "ext4" && !capable() {
					b.publish(handle, r)
				}
				checkSize(t, content(target, r), r, 400<<20+4096)
				if size, err := grow(100 << 20); size != 400<<20+4096 || err != nil {
					t.Errorf("asking for less: %d, %v; want the size it has", size, err)
				}
				_, err := grow(100 << 40)
				expect(t, err, codes.ResourceExhausted, "not enough room in the pool")
				b.down(handle, r)
				if size, err := grow(1 << 30); size != 1<<30 || err != nil {
					t.Fatalf("growing at rest: %d, %v", size, err)
				}
				b.restart()
				target = b.publish(handle, r)
				checkSize(t, content(target, r), r, 1<<30)
				if got := read(t, content(target, r), 4); got != "kept" {
					t.Errorf("the volume holds %q", got)
				}
				b.remove(handle, r)
			})
		}
	}
}

// growing are kinds of volumes with the file systems inside.
func growing() map[string]request {
	all := map[string]request{"Block": {size: 64 << 20, block: true}}
	for _, inside := range []string{"xfs", "ext4"} {
		for _, content := range []string{"disk", "files"} {
			all[content+" "+inside] = request{size: 320 << 20, fsType: inside, parameters: map[string]string{"content": content}}
		}
	}
	all["files btrfs"] = request{size: 320 << 20, fsType: "btrfs", parameters: map[string]string{"content": "files"}}
	return all
}

// capable says whether this process may grow a mounted ext4.
func capable() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// guests is a launcher that remembers what it was asked.
type guests struct {
	calls []string
	fails error
}

func (g *guests) Freeze(_ context.Context, pod string, _ time.Duration) (func(context.Context) error, error) {
	g.calls = append(g.calls, "freeze "+pod)
	return func(context.Context) error {
		g.calls = append(g.calls, "thaw "+pod)
		return nil
	}, g.fails
}

// TestQuiesce: the guest of the writer is frozen for the moment of the snapshot, as the class says (ST-030).
func TestQuiesce(t *testing.T) {
	b := newBench(t, "xfs")
	b.stop()
	fake := &guests{}
	var told []string
	b.guests, b.quiesced = fake, func(_ context.Context, q QuiescedSnapshot) { told = append(told, q.Content+" "+q.How) }
	b.start()
	r := request{name: "v", pod: "a", size: 64 << 20, block: true}
	handle := b.create(r)
	b.publish(handle, r)
	for _, test := range []struct {
		name       string
		parameters map[string]string
		fails      error
		calls      string
		told       string
		refused    string
	}{
		{"agent", nil, nil, "freeze uid-a, thaw uid-a", "agent", ""},
		{"off", map[string]string{"quiesce": "off"}, nil, "", "none", ""},
		{"no agent", nil, quiesce.ErrNoAgent, "freeze uid-a", "none", ""},
		{"hangs", nil, context.DeadlineExceeded, "freeze uid-a", "failed", ""},
		{"required", map[string]string{"quiesce": "required"}, quiesce.ErrNoAgent, "freeze uid-a", "", "the guest of Pod shop/a was not frozen"},
	} {
		t.Run(test.name, func(t *testing.T) {
			fake.calls, fake.fails, told = nil, test.fails, nil
			parameters := map[string]string{paramContentName: "content-1"}
			maps.Copy(parameters, test.parameters)
			id, err := b.trySnapshot("s-"+test.name, handle, parameters)
			if test.refused != "" {
				expect(t, err, codes.FailedPrecondition, test.refused)
			} else if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(fake.calls, ", "); got != test.calls {
				t.Errorf("the launcher was asked: %q; want %q", got, test.calls)
			}
			if test.told != "" && (len(told) != 1 || told[0] != "content-1 "+test.told) {
				t.Errorf("told %q; want %q", told, test.told)
			}
			if id != "" {
				b.deleteSnapshot(id)
			}
		})
	}
	for parameters, want := range map[[2]string]string{
		{"quiesce", "never"}:       `VolumeSnapshotClass: quiesce: "never": not one of auto, off, required`,
		{"freezeTimeout", "5 min"}: `VolumeSnapshotClass: freezeTimeout: "5 min": not a duration from 1s to 60s`,
		{"quiece", "auto"}:         `VolumeSnapshotClass: quiece: unknown parameter; nearest: quiesce`,
	} {
		_, err := b.trySnapshot("bad", handle, map[string]string{parameters[0]: parameters[1]})
		expect(t, err, codes.InvalidArgument, want)
	}
	b.remove(handle, r)
}

// TestThawedAtStart: a file system that a killed driver left frozen goes on when the next one starts.
func TestThawedAtStart(t *testing.T) {
	b := newBench(t, "xfs")
	r := request{name: "v", pod: "a", size: 64 << 20}
	handle := b.create(r)
	target := b.publish(handle, r)
	pooltest.Run(t, "fsfreeze", "--freeze", filepath.Join(b.staging(r), "fs"))
	b.restart()
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(filepath.Join(target, "note"), bytes.Repeat([]byte("x"), 1<<20), 0o600) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		pooltest.Run(t, "fsfreeze", "--unfreeze", filepath.Join(b.staging(r), "fs"))
		t.Error("the file system is still frozen")
	}
	b.remove(handle, r)
}
