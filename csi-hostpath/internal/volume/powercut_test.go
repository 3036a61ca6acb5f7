package volume

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"podvirt.dev/csi-hostpath/internal/filesystem"
	"podvirt.dev/csi-hostpath/internal/pooltest"
)

// cut is what the disk under a pool held at one moment: what the file system had only in memory is not in it.
type cut struct {
	when    string
	image   string
	acked   []string // names of volumes whose creation was acknowledged, and not yet their removal
	pending string   // name of the volume that was being made or removed
}

// TestPowerCut takes the disk away before every durable step and after every answer. On what is left the pool must open
// with every acknowledged volume whole, none that was removed, and nothing half made (ST-023).
func TestPowerCut(t *testing.T) {
	for _, fsType := range []string{"xfs", "ext4"} {
		t.Run(fsType, func(t *testing.T) {
			dir, image := pooltest.FileSystemWithImage(t, fsType, 512<<20)
			cuts := cutsOfALife(t, dir, image)
			for _, c := range cuts {
				t.Run(c.when, func(t *testing.T) { c.check(t, fsType) })
			}
			t.Logf("%d power cuts", len(cuts))
		})
	}
}

func cutsOfALife(t *testing.T, dir, image string) []cut {
	t.Helper()
	var cuts []cut
	acked := map[string]string{} // name to uuid
	pending := ""
	take := func(when string) {
		copied := fmt.Sprintf("%s.%d", image, len(cuts))
		pooltest.Run(t, "cp", "--sparse=always", image, copied)
		names := slices.Sorted(maps.Keys(acked))
		cuts = append(cuts, cut{when: fmt.Sprintf("%d %s %s", len(cuts), when, pending), image: copied, acked: names, pending: pending})
	}
	store := open(t, dir, func(step string) error {
		take(step)
		return nil
	})
	create := func(r Request) {
		pending = r.Name
		made, err := store.Create(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		acked[r.Name], pending = made.UUID, ""
		take("after creating " + r.Name)
	}
	remove := func(name string) {
		id := acked[name]
		pending = name
		delete(acked, name)
		if err := store.Delete(id); err != nil {
			t.Fatal(err)
		}
		pending = ""
		take("after removing " + name)
	}
	create(request("a", ContentDisk, ModeBlock, ""))
	create(request("b", ContentDisk, ModeFilesystem, filesystem.Ext4))
	remove("a")
	create(request("c", ContentFiles, ModeFilesystem, filesystem.Ext4))
	remove("b")
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	return cuts
}

// check opens the pool on what was left of the disk.
func (c cut) check(t *testing.T, fsType string) {
	dir := t.TempDir()
	options := "loop"
	if fsType == filesystem.XFS {
		options += ",nouuid"
	}
	pooltest.Run(t, "mount", "-o", options, c.image, dir)
	t.Cleanup(func() {
		pooltest.Unmount(t, dir)
		if err := os.Remove(c.image); err != nil {
			t.Error(err)
		}
	})
	store := open(t, dir, nil)
	var names []string
	for _, volume := range store.List() {
		names = append(names, volume.Name)
		if volume.Problem != nil {
			t.Errorf("volume %s: %v", volume.Name, volume.Problem)
			continue
		}
		expectWhole(t, volume)
	}
	for _, name := range c.acked {
		if !slices.Contains(names, name) {
			t.Errorf("volume %s was acknowledged and is gone; there are %v", name, names)
		}
	}
	for _, name := range names {
		if name != c.pending && !slices.Contains(c.acked, name) {
			t.Errorf("volume %s is there; acknowledged are %v", name, c.acked)
		}
	}
	entries, err := os.ReadDir(filepath.Join(dir, tmpDir))
	if err != nil || len(entries) > 0 {
		t.Errorf("tmp = %v, %v; want it empty", entries, err)
	}
	if err := store.Close(); err != nil {
		t.Error(err)
	}
}

// expectWhole looks into a volume.
func expectWhole(t *testing.T, volume Volume) {
	t.Helper()
	file, size := volume.Data(), volume.Promised
	if volume.FSType != "" {
		at := t.TempDir()
		if err := filesystem.MountImage(file, at, filesystem.MountOptions{Type: volume.FSType}); err != nil {
			t.Errorf("volume %s: %v", volume.Name, err)
			return
		}
		defer pooltest.Unmount(t, at)
		if volume.Content == ContentFiles {
			return
		}
		file, size = filepath.Join(at, diskFile), volume.Size
	}
	info, err := os.Stat(file)
	if err != nil || info.Size() != size || info.Mode() != 0o660 {
		t.Errorf("volume %s: %v, %v; want a file of %d bytes", volume.Name, info, err, size)
	}
}
