package iso9660

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/diskfs/go-diskfs/backend/file"
	diskfs "github.com/diskfs/go-diskfs/filesystem/iso9660"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"podvirt.dev/internal/require"
)

func sample() []File {
	big := make([]byte, 70000)
	_, _ = rand.Read(big)
	files := []File{
		{"user-data", []byte("#cloud-config\n")}, {"meta-data", []byte("instance-id: a/b\n")}, {"network-config", big},
		{"vendor-data", nil}, {"ä ö.TXT", []byte("umlauts")}, {"UPPER and lower " + strings.Repeat("x", 40), []byte("long")},
	}
	for i := range 40 { // the directory needs more than one sector
		files = append(files, File{fmt.Sprintf("more-%02d", i), []byte{byte(i)}})
	}
	return files
}

func write(t *testing.T, files []File) string {
	t.Helper()
	var image bytes.Buffer
	if err := Write(&image, "cidata", time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC), files); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "seed.iso")
	if err := os.WriteFile(path, image.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestLinuxMountsIt has the kernel read the image through a loop device, once by each set of names.
func TestLinuxMountsIt(t *testing.T) {
	require.Root(t)
	device := attach(t, write(t, sample()))
	for _, options := range []string{"", "norock"} {
		t.Run("options="+options, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount(device, dir, "iso9660", unix.MS_RDONLY, options); err != nil {
				// The kernel level promises the mount; there the lack of it is a failure.
				if errors.Is(err, unix.ENODEV) && os.Getenv("PODVIRT_KERNEL_TEST") == "" {
					t.Skip("this kernel has no iso9660; level kernel mounts the image")
				}
				t.Fatal(err)
			}
			defer func() { _ = unix.Unmount(dir, 0) }()
			entries, err := os.ReadDir(dir)
			if err != nil || len(entries) != len(sample()) {
				t.Errorf("%d entries, %v; want %d", len(entries), err, len(sample()))
			}
			compare(t, dir)
		})
	}
}

// attach makes a loop device of a file.
func attach(t *testing.T, path string) string {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	require.Feature(t, err == nil, "loop devices")
	defer control.Close()
	number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		require.Feature(t, false, "loop devices: "+err.Error())
	}
	name := fmt.Sprintf("/dev/loop%d", number)
	loop, err := os.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	image, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	config := &unix.LoopConfig{Fd: uint32(image.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY}}
	if err := unix.IoctlLoopConfigure(int(loop.Fd()), config); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(func() {
		if loop, err := os.Open(name); err == nil {
			_ = unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0)
			_ = loop.Close()
		}
	})
	return name
}

// TestIsoinfo reads both sets of names with the tool of another implementation.
func TestIsoinfo(t *testing.T) {
	program, err := exec.LookPath("isoinfo")
	require.Feature(t, err == nil, "isoinfo (Debian package genisoimage)")
	path := write(t, []File{{"user-data", []byte("#cloud-config\n")}, {"network-config", []byte("version: 2\n")}})
	out, err := exec.Command(program, "-d", "-i", path).CombinedOutput()
	for _, want := range []string{"Volume id: cidata\n", "Joliet with UCS level 3 found", "Rock Ridge signatures version 1 found"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%v\n%s\nwant %q", err, out, want)
		}
	}
	for _, names := range []string{"-R", "-J"} {
		content, err := exec.Command(program, names, "-i", path, "-x", "/user-data").CombinedOutput()
		if err != nil || string(content) != "#cloud-config\n" {
			t.Errorf("%s: user-data = %q, %v", names, content, err)
		}
	}
}

// compare compares all files but the random one with the sample; that one's size only.
func compare(t *testing.T, dir string) {
	t.Helper()
	for _, f := range sample() {
		got, err := os.ReadFile(filepath.Join(dir, f.Name))
		if err != nil || len(got) != len(f.Content) || f.Name != "network-config" && !bytes.Equal(got, f.Content) {
			t.Errorf("%s: %d bytes, %v; want %d", f.Name, len(got), err, len(f.Content))
		}
	}
}

// TestAnotherReader reads the image with an independent implementation.
func TestAnotherReader(t *testing.T) {
	files := sample()
	path := write(t, files)
	backend, err := file.OpenFromPath(path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	fsys, err := diskfs.Read(backend, info.Size(), 0, sector)
	if err != nil {
		t.Fatal(err)
	}
	if label := strings.TrimRight(fsys.Label(), " \x00"); label != "cidata" {
		t.Errorf("label %q", label)
	}
	for _, f := range files {
		got, err := fsys.ReadFile(f.Name)
		if err != nil {
			t.Errorf("%s: %v", f.Name, err)
			continue
		}
		if diff := cmp.Diff(len(f.Content), len(got)); diff != "" || !bytes.Equal(got, f.Content) {
			t.Errorf("%s differs %s", f.Name, diff)
		}
	}
}

func TestDeterministic(t *testing.T) {
	files := []File{{"b", []byte("2")}, {"a", []byte("1")}}
	swapped := []File{files[1], files[0]}
	first, err1 := os.ReadFile(write(t, files))
	second, err2 := os.ReadFile(write(t, swapped))
	if err := errors.Join(err1, err2); err != nil || !bytes.Equal(first, second) {
		t.Errorf("the same files give other images: %v", err)
	}
}

func TestNames(t *testing.T) {
	for name, files := range map[string][]File{
		"empty":    {{Name: ""}},
		"slash":    {{Name: "a/b"}},
		"too long": {{Name: strings.Repeat("x", 65)}},
		"twice":    {{Name: "a"}, {Name: "a"}},
		"too many": make([]File, maxNames+1),
	} {
		t.Run(name, func(t *testing.T) {
			if err := Write(&bytes.Buffer{}, "l", time.Time{}, files); !errors.Is(err, ErrName) {
				t.Errorf("err = %v, want %v", err, ErrName)
			}
		})
	}
	if err := Write(&bytes.Buffer{}, strings.Repeat("l", 33), time.Time{}, nil); !errors.Is(err, ErrName) {
		t.Errorf("long label: err = %v, want %v", err, ErrName)
	}
}
