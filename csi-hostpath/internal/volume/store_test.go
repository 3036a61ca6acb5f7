package volume

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podvirt.dev/csi-hostpath/internal/fault"
	"podvirt.dev/csi-hostpath/internal/pooltest"
)

func TestMain(m *testing.M) { pooltest.Main(m) }

func open(t *testing.T, dir string, hook fault.Hook) *Store {
	t.Helper()
	store, err := Open(t.Context(), Options{Path: dir, Node: "n1", Scratch: filepath.Join(t.TempDir(), "scratch"), Fault: hook})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() }) // closed by the test already, or not
	return store
}

func request(name string, content Content, mode Mode, fsType string) Request {
	return Request{Name: name, Size: 64 << 20, Content: content, Mode: mode, FSType: fsType}
}

// TestFailureAtEveryStep lets each step of a creation fail, as a full or broken disk does: the error comes back,
// nothing is left, and the next attempt succeeds.
func TestFailureAtEveryStep(t *testing.T) {
	dir := pooltest.FileSystem(t, "xfs", 1<<30)
	for failing := 1; ; failing++ {
		steps := 0
		store := open(t, dir, func(step string) error {
			if steps++; steps == failing && step != "create.answer" {
				return fmt.Errorf("%s: %w", step, unix.ENOSPC)
			}
			return nil
		})
		r := request("v", ContentDisk, ModeFilesystem, "ext4")
		_, err := store.Create(t.Context(), r)
		if err != nil {
			if !errors.Is(err, ErrNoSpace) || len(store.List()) != 0 {
				t.Errorf("failing step %d: %v, volumes %v; want ErrNoSpace and none", failing, err, store.List())
			}
			pooltest.ExpectNothingLeft(t, dir)
			if _, err := store.Create(t.Context(), r); err != nil {
				t.Errorf("the attempt after failing step %d: %v", failing, err)
			}
		}
		for _, volume := range store.List() {
			if err := errors.Join(store.Delete(volume.UUID), store.Delete(volume.UUID), store.emptyTrash(t.Context())); err != nil {
				t.Fatal(err)
			}
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		if err == nil {
			t.Logf("%d steps", failing-1)
			return
		}
	}
}

// TestDamagedVolumesAreKept: a meta.json that cannot be trusted makes the volume unusable, never absent (ST-023).
func TestDamagedVolumesAreKept(t *testing.T) {
	dir := pooltest.FileSystem(t, "ext4", 1<<30)
	for name, damage := range map[string]func(meta string) error{
		"cut":          func(meta string) error { return os.Truncate(meta, 20) },
		"removed":      os.Remove,
		"one digit":    func(meta string) error { return replace(meta, `"size": 67108864`, `"size": 67108865`) },
		"another's":    func(meta string) error { return replace(meta, `"uuid": "`, `"uuid": "x`) },
		"newer format": func(meta string) error { return replace(meta, `"format": 1`, `"format": 2`) },
		"no data":      func(meta string) error { return os.Remove(filepath.Join(filepath.Dir(meta), diskFile)) },
	} {
		t.Run(name, func(t *testing.T) {
			store := open(t, dir, nil)
			made, err := store.Create(t.Context(), request(name, ContentDisk, ModeBlock, ""))
			if err := errors.Join(err, store.Close(), damage(filepath.Join(made.Dir, metaFile))); err != nil {
				t.Fatal(err)
			}
			store = open(t, dir, nil)
			found, err := store.Get(made.UUID)
			if err != nil || !errors.Is(found.Problem, ErrDamaged) {
				t.Errorf("the volume = %+v, %v; want it with a problem", found, err)
			}
			if err := store.Delete(made.UUID); !errors.Is(err, ErrDamaged) {
				t.Errorf("Delete = %v; want ErrDamaged", err)
			}
			if _, err := os.Stat(made.Dir); err != nil {
				t.Errorf("the damaged volume is gone: %v", err)
			}
			if err := store.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func replace(file, old, by string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if !bytes.Contains(data, []byte(old)) {
		return fmt.Errorf("%s does not contain %s", file, old)
	}
	return os.WriteFile(file, bytes.Replace(data, []byte(old), []byte(by), 1), 0o600)
}

func TestOpenRefuses(t *testing.T) {
	dir := pooltest.FileSystem(t, "ext4", 1<<30)
	first := open(t, dir, nil)
	for name, test := range map[string]struct {
		node, path string
		want       error
	}{
		"a second driver": {"n1", dir, ErrLocked},
		"another node":    {"n2", dir, ErrForeign},
		"a missing path":  {"n1", filepath.Join(dir, "absent"), ErrNotReady},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Open(t.Context(), Options{Path: test.path, Node: test.node}); !errors.Is(err, test.want) {
				t.Errorf("Open = %v; want %v", err, test.want)
			}
		})
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := replace(filepath.Join(dir, controlDir, poolFile), `"format": 1`, `"format": 9`); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), Options{Path: dir, Node: "n1"})
	if !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "has format 9, this driver knows up to 1") {
		t.Errorf("a pool of a newer driver = %v", err)
	}
}

// TestPreallocation: the blocks are there when Create returns.
func TestPreallocation(t *testing.T) {
	dir := pooltest.FileSystem(t, "xfs", 1<<30)
	store := open(t, dir, nil)
	for how, want := range map[Preallocation]int64{PreallocateNone: 0, PreallocateFalloc: 64 << 20, PreallocateFull: 64 << 20} {
		r := request(string(how), ContentDisk, ModeBlock, "")
		r.Preallocation = how
		made, err := store.Create(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if got := allocated(made.Data()); got < want || got > want+1<<20 {
			t.Errorf("%s: %d bytes are allocated; want %d", how, got, want)
		}
	}
	r := request("too much", ContentDisk, ModeBlock, "")
	r.Size, r.Preallocation = 2<<30, PreallocateFalloc
	if _, err := store.Create(t.Context(), r); !errors.Is(err, ErrNoSpace) {
		t.Errorf("preallocating more than there is = %v; want ErrNoSpace", err)
	}
}

// TestSameNameOtherVolume: one name is one volume.
func TestSameNameOtherVolume(t *testing.T) {
	store := open(t, pooltest.FileSystem(t, "xfs", 1<<30), nil)
	first := request("v", ContentDisk, ModeBlock, "")
	made, err := store.Create(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := store.Create(t.Context(), first); err != nil || again.UUID != made.UUID {
		t.Errorf("the same again = %v, %v; want %s", again.UUID, err, made.UUID)
	}
	for name, change := range map[string]func(*Request){
		"size":       func(r *Request) { r.Size *= 2 },
		"mode":       func(r *Request) { r.Mode = ModeFilesystem },
		"parameters": func(r *Request) { r.Parameters = map[string]string{"pool": "x"} },
	} {
		other := first
		change(&other)
		if _, err := store.Create(t.Context(), other); !errors.Is(err, ErrIncompatible) {
			t.Errorf("the same name with another %s = %v; want ErrIncompatible", name, err)
		}
	}
}
