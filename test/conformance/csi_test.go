// Package conformance drives built programs through the suites that their interfaces come with.
package conformance

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
)

// Environment of the child process that runs one suite: Ginkgo runs one suite per process.
const (
	envSocket = "PODVIRT_SANITY_SOCKET"
	envAccess = "PODVIRT_SANITY_ACCESS"
	envDir    = "PODVIRT_SANITY_DIR"
)

// undeclared are the parts of csi-sanity that belong to capabilities the driver does not declare yet; nothing else may
// be skipped.
var undeclared = []string{
	"ControllerPublishVolume", "ControllerUnpublishVolume", "volume lifecycle", // no attach, for good
	"GroupController", "SnapshotMetadata", "snapshot with accessibility requirements",
	"pagination should detect", // switched off in csi-sanity itself
	"ModifyVolume", "volume attribute class", "ListVolumeHealth", "NodeGetVolumeHealth", "NodeGetStorageHealth",
}

// envPrivate marks the process that has a mount namespace of its own.
const envPrivate = "PODVIRT_TEST_PRIVATE_MOUNTS"

// TestMain moves the tests into a mount namespace of their own: in the machine's, every program that makes a namespace
// meanwhile would keep a copy of their mounts, and with it their loop devices, alive.
func TestMain(m *testing.M) {
	unshare, err := exec.LookPath("unshare")
	if os.Getuid() == 0 && os.Getenv(envPrivate) == "" && err == nil {
		argv := append([]string{unshare, "--mount", "--propagation=private", "--"}, os.Args...)
		err = syscall.Exec(unshare, argv, append(os.Environ(), envPrivate+"=1"))
		fmt.Fprintln(os.Stderr, "running the tests in a namespace of their own:", err)
	}
	m.Run()
}

// TestSanity runs csi-sanity against the built driver: Filesystem and Block mode on a pool of each file system.
func TestSanity(t *testing.T) {
	needRoot(t)
	binary := buildDriver(t)
	for _, fsType := range []string{"ext4", "xfs", "btrfs"} {
		pool := newPool(t, fsType)
		socket := startDriver(t, binary, pool)
		for _, access := range []string{"mount", "block"} {
			t.Run(fsType+"/"+access, func(t *testing.T) { runSuite(t, socket, access) })
		}
		t.Run(fsType+"/leaves nothing", func(t *testing.T) { expectEmpty(t, pool) })
	}
}

// TestSuite is the child of TestSanity.
func TestSuite(t *testing.T) {
	socket := os.Getenv(envSocket)
	if socket == "" {
		t.Skip("runs as a child of TestSanity")
	}
	config := sanity.NewTestConfig()
	config.Address = "unix:" + socket
	config.TargetPath = filepath.Join(os.Getenv(envDir), "target")
	config.StagingPath = filepath.Join(os.Getenv(envDir), "staging")
	config.TestVolumeAccessType = os.Getenv(envAccess)
	config.TestVolumeSize = 1 << 30
	ginkgo.ReportAfterSuite("report", func(report types.Report) {
		var result suiteResult
		for _, spec := range report.SpecReports {
			if spec.LeafNodeType != types.NodeTypeIt {
				continue
			}
			name := spec.FullText()
			switch spec.State {
			case types.SpecStatePassed:
				result.Passed++
			case types.SpecStateSkipped, types.SpecStatePending:
				result.Skipped = append(result.Skipped, name)
			default:
				result.Failed = append(result.Failed, name)
			}
		}
		data, err := json.Marshal(result)
		if err == nil {
			err = os.WriteFile(filepath.Join(os.Getenv(envDir), "result.json"), data, 0o600)
		}
		if err != nil {
			t.Errorf("writing the result: %v", err)
		}
	})
	sanity.Test(t, config)
}

type suiteResult struct {
	Passed          int
	Skipped, Failed []string
}

func runSuite(t *testing.T, socket, access string) {
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSuite$", "-test.v", "-ginkgo.no-color")
	cmd.Env = append(os.Environ(), envSocket+"="+socket, envAccess+"="+access, envDir+"="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(filepath.Join(dir, "result.json"))
	if err != nil {
		t.Fatal(err)
	}
	var result suiteResult
	if err := json.Unmarshal(data, &result); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d specs passed, %d skipped, %d failed", result.Passed, len(result.Skipped), len(result.Failed))
	if result.Passed == 0 {
		t.Error("no spec ran")
	}
	for _, name := range result.Skipped {
		if !slices.ContainsFunc(undeclared, func(part string) bool { return strings.Contains(name, part) }) {
			t.Errorf("a spec of a declared capability was skipped: %s", name)
		}
	}
}

// testPool is a loop-mounted file system with one pool, called test.
type testPool struct{ dir, path string }

func newPool(t *testing.T, fsType string) testPool {
	t.Helper()
	dir := t.TempDir()
	image, path := filepath.Join(dir, "pool.img"), filepath.Join(dir, "pools", "test")
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 64<<30); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs."+fsType, "-q", image)
	run(t, "mount", "-o", "loop", image, path)
	t.Cleanup(func() { run(t, "umount", "--lazy", path) }) // whoever looks at all file systems keeps each busy for a moment
	return testPool{dir: dir, path: path}
}

// startDriver starts the driver on the pool and stops it at the end.
func startDriver(t *testing.T, binary string, pool testPool) string {
	t.Helper()
	pools, socket := filepath.Join(pool.dir, "pools.yaml"), filepath.Join(pool.dir, "csi.sock")
	text := fmt.Sprintf("[{name: test, path: %s, default: true}]", pool.path)
	if err := os.WriteFile(pools, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(pool.dir, "driver.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "--node-name=n1", "--socket="+socket, "--registration-dir=", "--status-address=", "--pools-root="+pool.dir,
		"--pools-file="+pools, "--scratch="+filepath.Join(pool.dir, "scratch"))
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the driver ended with %v", err)
		}
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("driver log:\n%s", text)
		}
	})
	waitFor(t, "the driver's socket", func() bool {
		return exec.Command(binary, "--socket="+socket, "probe").Run() == nil
	})
	return socket
}

// expectEmpty fails when volumes, unfinished work or loop devices are left.
func expectEmpty(t *testing.T, pool testPool) {
	for _, name := range []string{"volumes", "snapshots", "tmp", "trash"} {
		waitFor(t, "an empty "+name, func() bool {
			entries, err := os.ReadDir(filepath.Join(pool.path, name))
			return err == nil && len(entries) == 0
		})
	}
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range backing {
		if data, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(data), pool.path) {
			t.Errorf("%s: still over %s", name, data)
		}
	}
}

func buildDriver(t *testing.T) string {
	t.Helper()
	if binary := os.Getenv("PODVIRT_CSI_HOSTPATH"); binary != "" {
		return binary
	}
	binary := filepath.Join(t.TempDir(), "csi-hostpath")
	cmd := exec.Command("go", "build", "-o", binary, "./csi-hostpath")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the driver: %v\n%s", err, out)
	}
	return binary
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(30 * time.Second)
	for !done() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("no %s after 30 s", what)
		}
	}
}

func run(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

// needRoot skips a run without root, and fails it where root is promised (PODVIRT_REQUIRE=1).
func needRoot(t *testing.T) {
	t.Helper()
	switch {
	case os.Getuid() == 0:
	case os.Getenv("PODVIRT_REQUIRE") == "1":
		t.Fatal("this level of tests promises root")
	default:
		t.Skip("needs root")
	}
}
