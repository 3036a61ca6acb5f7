package initramfs

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/internal/require"
)

// TestArchiveUnpacks has cpio(1) unpack what Writer wrote.
func TestArchiveUnpacks(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	require.Feature(t, err == nil, "cpio")
	var archive bytes.Buffer
	w := NewWriter(&archive)
	for _, err := range []error{
		w.File("etc/deep/file", 0o640, []byte("content")), w.File("odd", 0o600, []byte("x")),
		w.Symlink("bin/link", "../etc/deep/file"), w.Dir("empty", 0o755), w.Dir("etc", 0o755), w.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), cpio, "--extract", "--quiet", "--no-absolute-filenames")
	cmd.Dir, cmd.Stdin = dir, &archive
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	got, err := os.ReadFile(filepath.Join(dir, "bin", "link"))
	if err != nil || string(got) != "content" {
		t.Errorf("through the link: %q, %v; want the content", got, err)
	}
	info, err := os.Stat(filepath.Join(dir, "etc", "deep", "file"))
	if err != nil || info.Mode() != 0o640 {
		t.Errorf("mode = %v, %v; want 0640", info, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "empty")); err != nil || !info.IsDir() {
		t.Errorf("empty directory: %v, %v", info, err)
	}
}

func TestWriterRefusesNamesOutside(t *testing.T) {
	for _, name := range []string{"/etc/passwd", "../up", "a/../../up"} {
		if err := NewWriter(&bytes.Buffer{}).File(name, 0o600, nil); err == nil {
			t.Errorf("File(%q) = nil; want an error", name)
		}
	}
}

func TestModuleNames(t *testing.T) {
	tests := map[string]string{
		"kernel/drivers/block/virtio_blk.ko.xz": "virtio_blk",
		"kernel/net/8021q/8021q.ko":             "8021q",
		"vfio-pci":                              "vfio_pci",
	}
	for file, want := range tests {
		if got := moduleName(file); got != want {
			t.Errorf("moduleName(%q) = %q; want %q", file, got, want)
		}
	}
}

func TestResolveWithoutModules(t *testing.T) {
	tree := fstest.MapFS{
		"modules.builtin": {Data: []byte("kernel/drivers/virtio/virtio.ko\n")},
		"kernel":          {Mode: fs.ModeDir},
	}
	modules, err := OpenModules(tree)
	if err != nil {
		t.Fatal(err)
	}
	got, err := modules.Resolve("virtio")
	if diff := cmp.Diff([]Module(nil), got); diff != "" || err != nil {
		t.Errorf("a built-in module: %v (-want,+got)\n%s", err, diff)
	}
	if _, err := modules.Resolve("nonsense"); !errors.Is(err, ErrNoModule) {
		t.Errorf("Resolve(nonsense) = %v; want %v", err, ErrNoModule)
	}
}
