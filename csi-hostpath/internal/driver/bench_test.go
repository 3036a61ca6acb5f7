package driver

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"podvirt.dev/csi-hostpath/internal/pooltest"
)

// BenchmarkVolumes measures what a user waits for: a volume of 10 GiB with 1 GiB in it is made, snapshot, cloned, grown
// and deleted; beside it the same by hand. Clone and snapshot on shared blocks are to take 50 ms at most (storage.md 4).
func BenchmarkVolumes(b *testing.B) {
	for _, fsType := range []string{"xfs", "btrfs"} {
		d := newBench(b, fsType)
		r := request{name: "origin", pod: "a", size: 10 << 30, block: true}
		origin := d.create(r)
		target := d.publish(origin, r)
		pooltest.Run(b, "dd", "if=/dev/urandom", "of="+target, "bs=1M", "count=1024", "conv=fsync,notrunc", "status=none")
		n := 0
		measure := func(name string, limit time.Duration, do, undo func(i int)) {
			b.Run(fsType+"/"+name, func(b *testing.B) {
				var took time.Duration
				for range b.N {
					n++
					begin := time.Now()
					do(n)
					took += time.Since(begin)
					undo(n)
				}
				average := took / time.Duration(b.N)
				b.ReportMetric(float64(average.Microseconds())/1000, "ms")
				b.ReportMetric(0, "ns/op")
				if limit > 0 && average > limit {
					b.Errorf("%v on average; want at most %v", average, limit)
				}
			})
		}
		const atOnce = 50 * time.Millisecond
		handles := map[int]string{}
		drop := func(i int) {
			if _, err := d.DeleteVolume(b.Context(), &csi.DeleteVolumeRequest{VolumeId: handles[i]}); err != nil {
				b.Fatal(err)
			}
		}
		blank := func(i int) { handles[i] = d.create(request{name: fmt.Sprint("v", i), size: 10 << 30, block: true}) }
		measure("create", 0, blank, drop)
		measure("delete", 0, func(i int) { blank(i); drop(i) }, func(int) {})
		measure("snapshot", atOnce, func(i int) { handles[i] = d.snapshot(fmt.Sprint("s", i), origin) }, func(i int) { d.deleteSnapshot(handles[i]) })
		measure("clone", atOnce, func(i int) {
			made, err := d.CreateVolume(b.Context(), clone(fmt.Sprint("c", i), 10<<30, origin, r))
			if err != nil {
				b.Fatal(err)
			}
			handles[i] = made.GetVolume().GetVolumeId()
		}, drop)
		size := int64(10 << 30)
		measure("expand", 0, func(int) {
			size += 1 << 20
			_, err := d.ControllerExpandVolume(b.Context(), &csi.ControllerExpandVolumeRequest{
				VolumeId: origin, CapacityRange: &csi.CapacityRange{RequiredBytes: size},
			})
			if err != nil {
				b.Fatal(err)
			}
		}, func(int) {})
		hand := filepath.Join(d.dir, "by-hand")
		disk := pooltest.Run(b, "sh", "-c", "ls "+d.dir+"/volumes/*/disk.img | head -n 1")
		measure("clone by hand", 0, func(int) {
			pooltest.Run(b, "sh", "-c", "cp --reflink=always "+disk[:len(disk)-1]+" "+hand+" && sync "+hand)
		}, func(int) { _ = os.Remove(hand) })
		d.remove(origin, r)
	}
}

// BenchmarkDeleteUnderLoad measures the synced writes of one volume's user while a large volume beside it is deleted:
// they are to take at most twice as long as before (ST-026).
func BenchmarkDeleteUnderLoad(b *testing.B) {
	for _, fsType := range pooltest.Types() {
		b.Run(fsType, func(b *testing.B) {
			d := newBench(b, fsType)
			r := request{name: "user", pod: "a", size: 256 << 20, block: true}
			handle := d.create(r)
			f, err := os.OpenFile(d.publish(handle, r), os.O_RDWR|unix.O_DIRECT, 0)
			if err != nil {
				b.Fatal(err)
			}
			for range b.N {
				large := d.create(request{name: "large", size: 2 << 30, block: true, parameters: map[string]string{"preallocation": "full"}})
				idle := writes(b, f, time.Second)
				if _, err := d.DeleteVolume(b.Context(), &csi.DeleteVolumeRequest{VolumeId: large}); err != nil {
					b.Fatal(err)
				}
				busy := writes(b, f, time.Second)
				ratio := float64(busy) / float64(idle)
				b.ReportMetric(ratio, "times")
				b.Logf("99 of 100 writes took %v before and %v while deleting", idle, busy)
				if ratio > 2 {
					b.Errorf("writes took %.1f times as long while a volume was deleted; want 2 at most", ratio)
				}
			}
			if err := f.Close(); err != nil {
				b.Fatal(err)
			}
			d.remove(handle, r)
		})
	}
}

// writes writes and syncs blocks for a while and returns what 99 of 100 did not exceed.
func writes(b *testing.B, f *os.File, during time.Duration) time.Duration {
	b.Helper()
	block, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned, for direct I/O
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = unix.Munmap(block) }()
	var took []time.Duration
	for end := time.Now().Add(during); time.Now().Before(end); {
		begin := time.Now()
		if _, err := f.WriteAt(block, int64(len(took)%1024)*4096); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	return took[len(took)*99/100]
}
