package oci_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"podvirt.dev/images/internal/oci"
)

const epoch = 1000

func entries(t *testing.T) []oci.Entry {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("program"), 0o600); err != nil {
		t.Fatal(err)
	}
	return []oci.Entry{
		{Path: "/usr/bin/program", Mode: 0o755, Source: program},
		{Path: "/etc/config", Mode: 0o644, UID: 107, GID: 107, Data: []byte("config")},
		{Path: "/tmp", Mode: 0o777 | os.ModeSticky, Dir: true},
		{Path: "/etc/link", Link: "config"},
	}
}

func image(t *testing.T, entries []oci.Entry) v1.Image {
	t.Helper()
	layer, err := oci.FilesLayer(entries, epoch)
	if err != nil {
		t.Fatal(err)
	}
	img, err := oci.Image([]v1.Layer{layer}, oci.Config{Entrypoint: []string{"/usr/bin/program"}, User: "107:107"}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestFilesLayer(t *testing.T) {
	layer, err := oci.FilesLayer(entries(t), epoch)
	if err != nil {
		t.Fatal(err)
	}
	content, err := layer.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	type header struct {
		Name, Link string
		Mode       int64
		UID        int
		Type       byte
	}
	var got []header
	reader := tar.NewReader(content)
	for {
		h, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.Unix() != epoch {
			t.Errorf("%s: time = %v", h.Name, h.ModTime)
		}
		got = append(got, header{h.Name, h.Linkname, h.Mode, h.Uid, h.Typeflag})
	}
	want := []header{
		{"etc/", "", 0o755, 0, tar.TypeDir},
		{"etc/config", "", 0o644, 107, tar.TypeReg},
		{"etc/link", "config", 0, 0, tar.TypeSymlink},
		{"tmp/", "", 0o1777, 0, tar.TypeDir},
		{"usr/", "", 0o755, 0, tar.TypeDir},
		{"usr/bin/", "", 0o755, 0, tar.TypeDir},
		{"usr/bin/program", "", 0o755, 0, tar.TypeReg},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("layer (-want,+got)\n%s", diff)
	}
}

// TestArchiveIsValid reads the archive back as Docker does, with every digest checked.
func TestArchiveIsValid(t *testing.T) {
	target := filepath.Join(t.TempDir(), "image.tar")
	if err := oci.WriteArchive(target, image(t, entries(t)), "localhost/test:dev"); err != nil {
		t.Fatal(err)
	}
	read, err := tarball.ImageFromPath(target, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(read); err != nil {
		t.Error(err)
	}
	config, err := read.ConfigFile()
	if err != nil || config.Config.User != "107:107" {
		t.Errorf("configuration = %+v, %v; want user 107:107", config, err)
	}
}

func TestArchivesAreReproducible(t *testing.T) {
	var archives [2][]byte
	for i := range archives {
		target := filepath.Join(t.TempDir(), "image.tar")
		if err := oci.WriteArchive(target, image(t, entries(t)), "localhost/test:dev"); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(target)
		if err != nil {
			t.Fatal(err)
		}
		archives[i] = data
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two archives of equal images differ")
	}
}
