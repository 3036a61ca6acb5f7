// Package pooltest gives tests real file systems for pools: image files mounted by loop, gone when the test ends.
package pooltest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"podvirt.dev/csi-hostpath/internal/importer"
	"podvirt.dev/csi-hostpath/internal/mounts"
	"podvirt.dev/csi-hostpath/internal/sandbox"
	"podvirt.dev/internal/cli"
	"podvirt.dev/internal/require"
)

// Types are the file systems that pools are tested on.
func Types() []string { return []string{"xfs", "ext4", "btrfs"} }

// newImage returns where the image of a file system goes: in memory where that is possible, since what is tested is
// what is written and not how fast the machine's disk syncs.
func newImage(t testing.TB, fsType string) string {
	t.Helper()
	name := fsType + ".img"
	dir, err := os.MkdirTemp("/dev/shm", "podvirt-pool.") //nolint:usetesting // t.TempDir is not in memory
	if err != nil {
		return filepath.Join(t.TempDir(), name)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, name)
}

// FileSystem mounts a new file system of the type and size in bytes and returns its directory. The path is
// ROOT/pools/NAME, so that ROOT can be the root of pools.
func FileSystem(t testing.TB, fsType string, size int64) string {
	t.Helper()
	dir, _ := FileSystemWithImage(t, fsType, size)
	return dir
}

// FileSystemWithImage is FileSystem for tests that unmount it and mount the image again.
func FileSystemWithImage(t testing.TB, fsType string, size int64) (dir, image string) {
	t.Helper()
	require.Root(t)
	_, err := exec.LookPath("mkfs." + fsType)
	require.Feature(t, err == nil, "mkfs."+fsType)
	root := t.TempDir()
	image, dir = newImage(t, fsType), filepath.Join(root, "pools", fsType)
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(image, nil, 0o600), os.Truncate(image, size)); err != nil {
		t.Fatal(err)
	}
	Run(t, "mkfs."+fsType, "-q", image)
	Run(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { Unmount(t, dir) })
	return dir, image
}

// Unmount unmounts what is at a directory and below it. Whoever looks at all file systems of the machine, as df and kubelets
// do, keeps each busy for a moment, so that it is tried for a while.
func Unmount(t testing.TB, dir string) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	patience := time.After(patience)
	for {
		err := mounts.UnmountTree(dir)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
			if errors.Is(err, syscall.EBUSY) {
				continue
			}
		case <-patience:
		}
		t.Error(err)
		return
	}
}

// Run runs a program that must succeed.
func Run(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput() //nolint:noctx // ends by itself, before the test does
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// patience is how long a machine that is busy may take.
const patience = 3 * time.Minute

// Eventually polls until done returns nil, for some minutes.
func Eventually(t testing.TB, done func() error) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(patience)
	for {
		err := done()
		if err == nil {
			return
		}
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("after %v still: %v", patience, err)
		}
	}
}

// ExpectNothingLeft waits until the pool holds no volume, no snapshot and nothing unfinished, and fails when a loop device or a
// mount of it remains.
func ExpectNothingLeft(t testing.TB, pool string) {
	t.Helper()
	Eventually(t, func() error {
		var errs []error
		for _, name := range []string{"volumes", "snapshots", "tmp", "trash"} {
			entries, err := os.ReadDir(filepath.Join(pool, name))
			if err != nil && !errors.Is(err, fs.ErrNotExist) || len(entries) > 0 {
				errs = append(errs, fmt.Errorf("%s: %v, %w", name, entries, err))
			}
		}
		// The kernel lets a device that clears itself go a moment after its file system was unmounted.
		if devices := LoopDevices(t, pool); len(devices) > 0 {
			errs = append(errs, fmt.Errorf("loop devices are left over files of the pool: %v", devices))
		}
		return errors.Join(errs...)
	})
	table, err := mounts.Read()
	if err != nil {
		t.Fatal(err)
	}
	for _, mount := range table {
		if strings.Contains(mount.Source, "hostpath.csi.podvirt.dev/") || strings.HasPrefix(mount.Point, pool+"/") {
			t.Errorf("a mount is left: %+v", mount)
		}
	}
}

// LoopDevices returns the names of devices over files below a directory, also of files that were removed.
func LoopDevices(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	var devices []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err == nil && strings.HasPrefix(string(data), dir+"/") {
			devices = append(devices, filepath.Base(filepath.Dir(filepath.Dir(file))))
		}
	}
	return devices
}

// envPrivate marks the process that has a mount namespace of its own.
const envPrivate = "PODVIRT_TEST_PRIVATE_MOUNTS"

// Main runs the tests of a package in a mount namespace of their own. In the machine's namespace every program that
// makes a namespace meanwhile would keep a copy of the tests' mounts, and with it their loop devices, alive.
//
// The confined process of an import is the program itself, here the test binary: Main is that process where it is asked to.
func Main(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == sandbox.Command {
		cli.Main(func(ctx context.Context, args []string, std cli.Streams) int {
			if err := importer.Child(ctx, args[1:], std.In, std.Out); err != nil {
				fmt.Fprintln(std.Err, err)
			}
			return 0
		})
		return
	}
	unshare, err := exec.LookPath("unshare")
	if os.Getuid() == 0 && os.Getenv(envPrivate) == "" && err == nil {
		argv := append([]string{unshare, "--mount", "--propagation=private", "--"}, os.Args...)
		err = syscall.Exec(unshare, argv, append(os.Environ(), envPrivate+"=1"))
		fmt.Fprintln(os.Stderr, "running the tests in a namespace of their own:", err)
	}
	m.Run()
}
