package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"podvirt.dev/csi-hostpath/internal/poolconfig"
	"podvirt.dev/csi-hostpath/internal/pooltest"
	"podvirt.dev/csi-hostpath/internal/volume"
)

func TestMain(m *testing.M) { pooltest.Main(m) }

func block(name string, size int64) volume.Request {
	return volume.Request{Name: name, Size: size, Content: volume.ContentDisk, Mode: volume.ModeBlock}
}

func newManager(t *testing.T, opts Options, pools ...poolconfig.Pool) *Manager {
	t.Helper()
	opts.Node, opts.Scratch = "n1", filepath.Join(t.TempDir(), "scratch")
	m := New(opts)
	m.Apply(t.Context(), pools)
	t.Cleanup(func() {
		if err := m.close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func spec(name, path string) poolconfig.Pool {
	return poolconfig.Pool{Name: name, Path: path, Overcommit: 1, HardSize: poolconfig.HardSizeAuto, Default: name == "a"}
}

// TestNeverOversold: forty creations at once in a pool with room for twenty-five get twenty-five (ST-010).
func TestNeverOversold(t *testing.T) {
	for _, fsType := range pooltest.Types() {
		t.Run(fsType, func(t *testing.T) {
			m := newManager(t, Options{}, spec("a", pooltest.FileSystem(t, fsType, 4<<30)))
			room, err := m.Room("a")
			if err != nil {
				t.Fatal(err)
			}
			const fit, asked = 25, 40
			size := room.Available / (fit + 1) / 4096 * 4096
			size += (room.Available - size*fit) / (fit + 1) / 4096 * 4096 // more than a 26th of the room, less than a 25th
			var mu sync.Mutex
			made, refused := 0, 0
			var group sync.WaitGroup
			for i := range asked {
				group.Go(func() {
					_, _, err := m.Create(t.Context(), "a", block(fmt.Sprint("v", i), size))
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						made++
					case errors.Is(err, volume.ErrNoSpace):
						refused++
					default:
						t.Error(err)
					}
				})
			}
			group.Wait()
			if made != fit || refused != asked-fit {
				t.Errorf("%d made, %d refused; want %d, %d", made, refused, fit, asked-fit)
			}
		})
	}
}

// TestRoomFollowsTheFileSystem: free capacity equals df less the reserve, promises and foreign files reduce it, and
// what a volume has written is counted once (ST-010).
func TestRoomFollowsTheFileSystem(t *testing.T) {
	dir := pooltest.FileSystem(t, "xfs", 4<<30)
	pool := spec("a", dir)
	pool.Reserve = poolconfig.Amount{Percent: 5}
	m := newManager(t, Options{}, pool)
	room := func() Room {
		t.Helper()
		r, err := m.Room("")
		if err != nil {
			t.Fatal(err)
		}
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err != nil {
			t.Fatal(err)
		}
		if free := int64(fs.Bavail) * fs.Bsize; max(r.Free, free)-min(r.Free, free) > 4096 {
			t.Errorf("free = %d; df says %d", r.Free, free)
		}
		return r
	}
	near := func(what string, got, want int64) {
		t.Helper()
		if diff := got - want; diff < -64<<10 || diff > 64<<10 {
			t.Errorf("%s = %d; want %d within 64 KiB", what, got, want)
		}
	}
	empty := room()
	near("available in an empty pool", empty.Available, empty.Free-empty.Size/20)

	_, made, err := m.Create(t.Context(), "a", block("v", 1<<30))
	if err != nil {
		t.Fatal(err)
	}
	near("available after promising 1 GiB", room().Available, empty.Available-1<<30)
	pooltest.Run(t, "dd", "if=/dev/urandom", "of="+made.Data(), "bs=1M", "count=100", "conv=fsync,notrunc", "status=none")
	near("available after the volume wrote 100 MiB of it", room().Available, empty.Available-1<<30)
	pooltest.Run(t, "dd", "if=/dev/urandom", "of="+dir+"/foreign", "bs=1M", "count=100", "conv=fsync", "status=none")
	near("available after 100 MiB of somebody else", room().Available, empty.Available-1<<30-100<<20)

	pool.Overcommit = 2
	m.Apply(t.Context(), []poolconfig.Pool{pool})
	r := room()
	near("available when sold twice", r.Available, r.Size-r.Reserved-r.Foreign)
}

// TestTwoPoolsOnOneFileSystem: the room is there once (ST-001).
func TestTwoPoolsOnOneFileSystem(t *testing.T) {
	for _, fsType := range []string{"xfs", "btrfs"} {
		t.Run(fsType, func(t *testing.T) {
			dir := pooltest.FileSystem(t, fsType, 4<<30)
			paths := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
			for _, path := range paths {
				if fsType == "btrfs" {
					pooltest.Run(t, "btrfs", "-q", "subvolume", "create", path) // subvolumes have device numbers of their own
				} else if err := os.Mkdir(path, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			m := newManager(t, Options{}, spec("a", paths[0]), spec("b", paths[1]))
			if _, _, err := m.Create(t.Context(), "a", block("v", 2<<30)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := m.Create(t.Context(), "b", block("v", 2<<30)); !errors.Is(err, volume.ErrNoSpace) {
				t.Errorf("selling the same room again = %v; want ErrNoSpace", err)
			}
		})
	}
}

// TestSharedWithTheOS is ST-005.
func TestSharedWithTheOS(t *testing.T) {
	dir := pooltest.FileSystem(t, "xfs", 1<<30)
	pool := spec("a", filepath.Join(dir, "pool"))
	if err := os.Mkdir(pool.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	m := newManager(t, Options{OSPaths: []string{"/absent", dir}}, pool)
	if _, _, err := m.Create(t.Context(), "a", block("v", 64<<20)); !errors.Is(err, volume.ErrShared) {
		t.Errorf("a volume beside the OS = %v; want ErrShared", err)
	}
	if _, err := os.Stat(filepath.Join(pool.Path, ".podvirt")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was written to the OS's file system: %v", err)
	}
	if reports := m.Reports(); len(reports) != 1 || reports[0].Ready || !reports[0].SharesOS {
		t.Errorf("reports = %+v", reports)
	}
	pool.AllowShared = true
	m.Apply(t.Context(), []poolconfig.Pool{pool})
	room, err := m.Room("a")
	if err != nil {
		t.Fatal(err)
	}
	full := block("v", room.Available/4096*4096)
	full.Preallocation = volume.PreallocateFalloc
	if _, _, err := m.Create(t.Context(), "a", full); err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	// kubelet evicts when less than 10 % of the blocks are free to users, or 15 % where images are kept.
	if share := 100 * float64(fs.Bavail) / float64(fs.Blocks); share < 15 {
		t.Errorf("a full pool leaves %.1f %% of the file system to the OS; want 15 at least", share)
	}
	if _, _, err := m.Create(t.Context(), "a", block("w", volume.MinSize)); !errors.Is(err, volume.ErrNoSpace) {
		t.Errorf("one more = %v; want ErrNoSpace", err)
	}
}

// TestRetiredPoolIsLetGo: a pool that is no longer configured can be unmounted when its last volume is gone.
func TestRetiredPoolIsLetGo(t *testing.T) {
	dir := pooltest.FileSystem(t, "xfs", 1<<30)
	m := newManager(t, Options{AdoptBelow: filepath.Dir(dir)}, spec("a", dir))
	handle, made, err := m.Create(t.Context(), "a", block("v", 64<<20))
	if err != nil {
		t.Fatal(err)
	}
	m.Apply(t.Context(), nil)
	_, store, err := m.Volume(handle)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		store.Run(ctx)
		close(done)
	}()
	if err := store.Delete(made.UUID); err != nil {
		t.Fatal(err)
	}
	pooltest.ExpectNothingLeft(t, dir)
	cancel()
	<-done
	m.Apply(t.Context(), nil)
	pooltest.Unmount(t, dir)
}

// TestPoolsComeAndGo: a pool taken out of the configuration keeps its volumes usable, also over a restart, a pool whose
// file system goes away is not ready and never begun anew on what lies below, and it is back when it is mounted again.
func TestPoolsComeAndGo(t *testing.T) {
	dir, image := pooltest.FileSystemWithImage(t, "ext4", 1<<30)
	other := pooltest.FileSystem(t, "xfs", 1<<30)
	ctx := t.Context()
	m := newManager(t, Options{AdoptBelow: filepath.Dir(dir)}, spec("a", dir), spec("b", other))
	handle, _, err := m.Create(ctx, "a", block("v", 64<<20))
	if err != nil {
		t.Fatal(err)
	}

	m.Apply(ctx, []poolconfig.Pool{spec("b", other)})
	if _, _, err := m.Create(ctx, "a", block("w", 64<<20)); !errors.Is(err, ErrNoPool) {
		t.Errorf("creating in a pool that was taken out = %v; want ErrNoPool", err)
	}
	if _, _, err := m.Volume(handle); err != nil {
		t.Errorf("a volume of the pool that was taken out: %v", err)
	}
	if err := m.close(); err != nil {
		t.Fatal(err)
	}
	m = newManager(t, Options{AdoptBelow: filepath.Dir(dir)}, spec("b", other))
	if _, _, err := m.Volume(handle); err != nil {
		t.Errorf("the same after a restart: %v", err)
	}

	m.Apply(ctx, []poolconfig.Pool{spec("a", dir), spec("b", other)})
	pooltest.Run(t, "umount", "--lazy", dir) // the lock keeps a file open
	m.Apply(ctx, []poolconfig.Pool{spec("a", dir), spec("b", other)})
	if _, _, err := m.Volume(handle); !errors.Is(err, volume.ErrNotReady) {
		t.Errorf("a volume whose pool was unmounted = %v; want ErrNotReady", err)
	}
	if _, err := os.Stat(filepath.Join(dir, ".podvirt")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pool was begun anew below its mount point: %v", err)
	}
	if _, _, err := m.Create(ctx, "b", block("x", 64<<20)); err != nil {
		t.Errorf("the other pool: %v", err)
	}
	pooltest.Run(t, "mount", "-o", "loop", image, dir)
	m.Apply(ctx, []poolconfig.Pool{spec("a", dir), spec("b", other)})
	if _, _, err := m.Volume(handle); err != nil {
		t.Errorf("the volume after its pool was mounted again: %v", err)
	}
}

// TestNotReady: one bad pool does not hinder the others, and its reason is told.
func TestNotReady(t *testing.T) {
	dir := pooltest.FileSystem(t, "xfs", 1<<30)
	device := poolconfig.Pool{Name: "d", Device: "/dev/sdz", Overcommit: 1}
	m := newManager(t, Options{}, spec("a", filepath.Join(dir, "absent")), spec("b", dir), device)
	want := map[string]bool{"a": false, "b": true, "d": false}
	for _, report := range m.Reports() {
		if report.Ready != want[report.Name] || report.Ready != (report.Message == "") {
			t.Errorf("report = %+v; want ready %v", report, want[report.Name])
		}
	}
	if got, err := m.ByName("b"); err != nil || got.Abilities != (volume.Abilities{FileSystem: "xfs", Reflink: true, DirectIO: true}) {
		t.Errorf("pool b = %+v, %v", got, err)
	}
}

// TestRunStops: Run frees what was deleted and ends with its context, leaving the pools to another driver.
func TestRunStops(t *testing.T) {
	dir := pooltest.FileSystem(t, "xfs", 1<<30)
	m := New(Options{Node: "n1", Scratch: t.TempDir()})
	m.Apply(t.Context(), []poolconfig.Pool{spec("a", dir)})
	if second := New(Options{Node: "n1"}); true {
		second.Apply(t.Context(), []poolconfig.Pool{spec("a", dir)})
		if _, err := second.ByName("a"); !errors.Is(err, volume.ErrLocked) {
			t.Errorf("a second driver on the pool = %v; want ErrLocked", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	_, made, err := m.Create(ctx, "a", block("v", 64<<20))
	if err != nil {
		t.Fatal(err)
	}
	_, store, err := m.Volume(Handle(m.pools["a"].store, made))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Delete(made.UUID); err != nil {
		t.Fatal(err)
	}
	pooltest.ExpectNothingLeft(t, dir)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	newManager(t, Options{}, spec("a", dir))
}
