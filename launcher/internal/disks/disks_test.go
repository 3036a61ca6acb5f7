package disks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/internal/require"
	"podvirt.dev/launcher/internal/domain"
)

// qcow2 is the header of an image.
func qcow2(version uint32, backing, incompatible uint64) []byte {
	raw := make([]byte, 512)
	binary.BigEndian.PutUint32(raw, qcow2Magic)
	binary.BigEndian.PutUint32(raw[4:], version)
	binary.BigEndian.PutUint64(raw[qcow2BackingOffset:], backing)
	binary.BigEndian.PutUint64(raw[qcow2Incompatible:], incompatible)
	return raw
}

func put(t *testing.T, path string, content []byte, mode os.FileMode) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, mode), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

// TestLocate finds what is behind a path, or says what is wrong with it.
func TestLocate(t *testing.T) {
	for _, test := range []struct {
		name   string
		files  []string
		option api.Disk
		want   string // relative to the volume
		fails  string
	}{
		{"claim", []string{"disk.img"}, api.Disk{}, "disk.img", ""},
		{"claim with lost+found", []string{"lost+found/x", "disk.img"}, api.Disk{}, "disk.img", ""},
		{"image", []string{"disk/any.qcow2"}, api.Disk{}, "disk/any.qcow2", ""},
		{"image of two", []string{"disk/a.raw", "disk/b.raw"}, api.Disk{}, "", "file: disk/ holds a.raw and b.raw; one must be named"},
		{"one of two", []string{"disk/a.raw", "disk/b.raw"}, api.Disk{File: "b.raw"}, "disk/b.raw", ""},
		{"a named file", []string{"sub/x.iso", "disk.img"}, api.Disk{File: "sub/x.iso"}, "sub/x.iso", ""},
		{"a named file that is not there", []string{"disk.img"}, api.Disk{File: "y"}, "", "file=y: no such file or directory; the volume holds disk.img"},
		{"a named file outside", []string{"disk.img"}, api.Disk{File: "../../etc/passwd"}, "", "path escapes"},
		{"something else", []string{"readme", "data/x"}, api.Disk{}, "", "no disk.img; the volume holds data/, readme"},
		{"empty drive", nil, api.Disk{Type: api.DiskTypeCDROM}, "", ""},
		{"the only ISO", []string{"x.iso"}, api.Disk{Type: api.DiskTypeCDROM}, "x.iso", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, f := range test.files {
				put(t, filepath.Join(dir, f), []byte("x"), 0o644)
			}
			d := domain.Disk{Options: test.option}
			d.Options.Path = dir
			err := locate(&d)
			if test.fails != "" {
				if err == nil || !strings.Contains(err.Error(), test.fails) {
					t.Errorf("error %v, want %q", err, test.fails)
				}
				return
			}
			want := ""
			if test.want != "" {
				want = filepath.Join(dir, test.want)
			}
			if err != nil || d.Source != want {
				t.Errorf("found %q (%v), want %q", d.Source, err, want)
			}
		})
	}
}

func TestEmptyVolumeGetsImage(t *testing.T) {
	dir := t.TempDir()
	d := domain.Disk{Options: api.Disk{Path: dir}}
	if err := locate(&d); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(d.Source)
	if err != nil || info.Size() == 0 || info.Size()%(1<<20) != 0 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestFormat(t *testing.T) {
	for _, test := range []struct {
		name    string
		content []byte
		option  api.Disk
		image   bool
		want    string
		fails   error
	}{
		{"a claim is never looked into", qcow2(3, 1, 4), api.Disk{}, false, "raw", nil},
		{"raw image", []byte("MBR"), api.Disk{}, true, "raw", nil},
		{"qcow2 image", qcow2(3, 0, 0), api.Disk{}, true, "qcow2", nil},
		{"version 2 has no features", qcow2(2, 0, 4), api.Disk{}, true, "qcow2", nil},
		{"backing file", qcow2(3, 0x200, 0), api.Disk{}, true, "", errBackingFile},
		{"external data", qcow2(3, 0, 4), api.Disk{}, true, "", errExternalData},
		{"asked for", qcow2(3, 0x200, 0), api.Disk{Format: "qcow2"}, false, "", errBackingFile},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x")
			put(t, path, test.content, 0o644)
			d := domain.Disk{Options: test.option, Source: path}
			if test.image {
				d.Options.Source = api.SourceImage
			}
			err := setFormat(&d)
			if !errors.Is(err, test.fails) || (err == nil && d.Format != test.want) {
				t.Errorf("format %q (%v), want %q (%v)", d.Format, err, test.want, test.fails)
			}
		})
	}
}

// TestOverlays runs the real qemu-img.
func TestOverlays(t *testing.T) {
	tool, err := exec.LookPath("qemu-img")
	require.Feature(t, err == nil, "qemu-img")
	dir, scratch := t.TempDir(), t.TempDir()
	put(t, filepath.Join(dir, "disk", "base.raw"), make([]byte, 1<<20), 0o444)
	m := Maker{Scratch: scratch, QemuImg: tool}
	vm := api.Machine{VM: api.VM{Disks: []api.Disk{
		{Name: "root", Path: dir, Source: api.SourceImage, Overlay: api.OverlayOn},
		{Name: "fresh", Path: dir, Source: api.SourceImage, Overlay: api.OverlayStart},
		{Name: "tmp", Empty: 1 << 30},
	}}}
	inodes := map[string]os.FileInfo{}
	for round := range 2 {
		list, err := m.Prepare(t.Context(), vm)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range list {
			info, err := os.Stat(d.Source)
			if err != nil || d.Format != "qcow2" {
				t.Fatalf("%s: %v, format %s", d.Source, err, d.Format)
			}
			kept := round == 1 && info.ModTime().Equal(inodes[d.Source].ModTime())
			if round == 1 && kept == (d.Options.Overlay == api.OverlayStart) {
				t.Errorf("%s: kept: %t", d.Options.Name, kept)
			}
			inodes[d.Source] = info
		}
		if b := list[0].Backing; b == nil || b.Format != "raw" || b.Source != filepath.Join(dir, "disk", "base.raw") {
			t.Errorf("backing %+v", b)
		}
	}
	vm.Disks[2].Name, vm.Disks[2].Empty = "huge", 1<<62
	if _, err := m.Prepare(t.Context(), vm); err == nil || !strings.Contains(err.Error(), "/vm/disks/huge: empty=") {
		t.Errorf("a disk larger than the volume: %v", err)
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	vm := api.Machine{VM: api.VM{Disks: []api.Disk{{Name: "a", Path: "/nonexistent/a"}, {Name: "b", Path: "/nonexistent/b"}}}}
	_, err := Maker{}.Prepare(t.Context(), vm)
	var problem *Error
	if !errors.As(err, &problem) || strings.Count(fmt.Sprint(err), "no such file") != 2 {
		t.Errorf("error %v", err)
	}
}

// TestClaim on a real loop device: one VM writes it, another waits and is refused (VM-083).
func TestClaim(t *testing.T) {
	require.Root(t)
	file := filepath.Join(t.TempDir(), "disk.img")
	put(t, file, make([]byte, 1<<20), 0o600)
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	require.Feature(t, err == nil, "loop devices")
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	list := []domain.Disk{{Options: api.Disk{Name: "root"}, Source: device, Block: true}}
	first, err := Claim(t.Context(), list, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(t.Context(), list, 50*time.Millisecond); !errors.Is(err, ErrLocked) {
		t.Errorf("a second writer: %v", err)
	}
	yes := true
	shared := []domain.Disk{{Options: api.Disk{Name: "root", Shareable: &yes}, Source: device, Block: true}}
	if c, err := Claim(t.Context(), shared, 0); err != nil {
		t.Errorf("a shareable disk: %v", err)
	} else if err := c.Close(); err != nil {
		t.Error(err)
	}
	released := time.AfterFunc(100*time.Millisecond, func() { _ = first.Close() })
	defer released.Stop()
	second, err := Claim(t.Context(), list, 10*time.Second)
	if err != nil {
		t.Fatalf("after the first has gone: %v", err)
	}
	if err := errors.Join(second.Close(), second.Close()); err != nil {
		t.Error(err)
	}
}
