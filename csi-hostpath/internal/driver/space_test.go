package driver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"podvirt.dev/csi-hostpath/internal/pooltest"
)

// occupied are the blocks of a pool that are in use.
func occupied(t *testing.T, dir string) int64 {
	t.Helper()
	pooltest.Run(t, "sync", "--file-system", dir)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	return int64(fs.Blocks-fs.Bfree) * fs.Bsize
}

// fillAndFree writes a file or device from its begin and gives the blocks back, as the discard of a guest does.
func fillAndFree(t *testing.T, name string, size int64, between func()) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte("guest data, 16 b"), int(size/16)), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	between()
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, size); err != nil &&
		!errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestSpaceComesBack: volumes take what is written to them, and give back what the guest frees, a disk also through the
// file system around it (ST-021).
func TestSpaceComesBack(t *testing.T) {
	const written = 200 << 20
	for _, fsType := range pooltest.Types() {
		b := newBench(t, fsType)
		for name, r := range map[string]request{
			"Block":     {block: true},
			"disk":      {parameters: map[string]string{"content": "disk"}},
			"disk ext4": {fsType: "ext4", parameters: map[string]string{"content": "disk"}},
		} {
			t.Run(fsType+"/"+name, func(t *testing.T) {
				r.name, r.pod, r.size = "v", "a", 1<<30
				handle := b.create(r)
				target := content(b.publish(handle, r), r)
				before := occupied(t, b.dir)
				fillAndFree(t, target, written, func() {
					if grown := occupied(t, b.dir) - before; grown < written-written/100 || grown > written+written/10 {
						t.Errorf("%d bytes were written and take %d", written, grown)
					}
				})
				pooltest.Eventually(t, func() error { // the file system inside may discard a moment later
					if left := occupied(t, b.dir) - before; left > written/20 {
						return fmt.Errorf("%d bytes are still taken after they were freed", left)
					}
					return nil
				})
				b.remove(handle, r)
			})
		}
	}
}

// TestReservedStaysReserved: what the guest frees in a disk that was preallocated stays the volume's (ST-021, ST-022).
func TestReservedStaysReserved(t *testing.T) {
	b := newBench(t, "xfs")
	r := request{name: "v", pod: "a", size: 320 << 20, parameters: map[string]string{"content": "disk", "preallocation": "falloc"}}
	handle := b.create(r)
	target := content(b.publish(handle, r), r)
	before := occupied(t, b.dir)
	fillAndFree(t, target, 64<<20, func() {})
	if freed := before - occupied(t, b.dir); freed > 1<<20 {
		t.Errorf("a preallocated volume gave %d bytes back", freed)
	}
	b.remove(handle, r)
}

// TestPreallocation: what is reserved is there, for blank volumes, clones and restored snapshots, and another user of the
// pool cannot take it (ST-022).
func TestPreallocation(t *testing.T) {
	for _, how := range []string{"falloc", "full"} {
		for name, r := range map[string]request{"Block": {block: true}, "disk": {parameters: map[string]string{"content": "disk"}}} {
			t.Run(how+"/"+name, func(t *testing.T) {
				b := newBench(t, "xfs")
				r.name, r.pod, r.size = "v", "a", 320<<20
				plain := b.create(r)
				write(t, content(b.publish(plain, r), r), "origin")
				id := b.snapshot("s", plain)
				thick := r
				thick.parameters = map[string]string{"preallocation": how}
				maps.Copy(thick.parameters, r.parameters)
				b.down(plain, r)
				for i, req := range []*csi.CreateVolumeRequest{
					{Name: "pvc-0", CapacityRange: &csi.CapacityRange{RequiredBytes: r.size}, Parameters: thick.parameters,
						VolumeCapabilities: []*csi.VolumeCapability{r.capability()}},
					clone("1", r.size, plain, thick), restore("2", r.size, id, thick),
				} {
					before := occupied(t, b.dir)
					if _, err := b.CreateVolume(t.Context(), req); err != nil {
						t.Fatal(err)
					}
					if taken := occupied(t, b.dir) - before; taken < r.size {
						t.Errorf("volume %d of %d bytes takes %d", i, r.size, taken)
					}
				}
			})
		}
	}
}

// TestOldBlocksAreGone: nobody reads what another volume held before, however the new one is made (ST-027).
func TestOldBlocksAreGone(t *testing.T) {
	pattern := []byte("SECRET-OF-ANOTHER-TENANT")
	for _, fsType := range pooltest.Types() {
		t.Run(fsType, func(t *testing.T) {
			b := &bench{t: t, dir: pooltest.FileSystem(t, fsType, 1<<30), paths: t.TempDir(), claims: fakeClaims{}}
			b.start()
			defer b.stop()
			old := request{name: "old", pod: "a", size: 600 << 20, block: true}
			handle := b.create(old)
			filled := bytes.Repeat(append(bytes.Clone(pattern), make([]byte, 4096-len(pattern))...), 256)
			f, err := os.OpenFile(b.publish(handle, old), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			for at := int64(0); at < old.size; at += int64(len(filled)) {
				if _, err := f.WriteAt(filled, at); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(f.Sync(), f.Close()); err != nil {
				t.Fatal(err)
			}
			b.remove(handle, old)
			for _, preallocation := range []string{"none", "falloc", "full"} {
				for name, r := range map[string]request{"block": {block: true}, "disk": {parameters: map[string]string{"content": "disk"}}} {
					if fsType == "btrfs" && preallocation == "falloc" {
						continue // refused
					}
					r.name, r.pod, r.size = "new", "a", 320<<20
					parameters := map[string]string{"preallocation": preallocation}
					maps.Copy(parameters, r.parameters)
					r.parameters = parameters
					handle := b.create(r)
					if scan(t, content(b.publish(handle, r), r), pattern) {
						t.Errorf("%s, %s: the new volume shows what the old one held", name, preallocation)
					}
					b.remove(handle, r)
				}
			}
		})
	}
}

// scan says whether a file or device holds the pattern at the begin of a block.
func scan(t *testing.T, name string, pattern []byte) bool {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(f, data)
		if bytes.Contains(data[:n], pattern) {
			return true
		}
		if err != nil {
			return !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF)
		}
	}
}
