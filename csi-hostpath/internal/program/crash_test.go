package program

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"podvirt.dev/csi-hostpath/internal/pooltest"
	"podvirt.dev/internal/cli"
)

// envKillAt makes the test binary the driver itself: it kills itself before the n-th durable step; 0: never.
const envKillAt = "PODVIRT_TEST_KILL_AT"

func TestMain(m *testing.M) {
	text, child := os.LookupEnv(envKillAt)
	if !child {
		pooltest.Main(m)
		return
	}
	killAt, err := strconv.Atoi(text)
	if err != nil {
		panic(err)
	}
	var mu sync.Mutex
	steps := 0
	hook := func(string) error {
		mu.Lock()
		defer mu.Unlock()
		if steps++; steps == killAt {
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	}
	cli.Main(func(ctx context.Context, args []string, std cli.Streams) int {
		return RunWithFault(ctx, args, std, hook)
	})
}

// process is a driver in a process of its own, on one pool.
type process struct {
	t    *testing.T
	pool string
	dir  string // sockets, staging and target paths
	cmd  *exec.Cmd
	log  *os.File
	// kubeconfig leads to the API server that has the pools; empty: they are in a file, and there is no API server.
	kubeconfig string
}

func newProcess(t *testing.T, pool string) *process {
	t.Helper()
	dir := t.TempDir()
	text := fmt.Sprintf("[{name: test, path: %s, default: true}]", pool)
	if err := os.WriteFile(filepath.Join(dir, "pools.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "driver.log"))
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, pool: pool, dir: dir, log: log}
	t.Cleanup(func() {
		p.kill()
		pooltest.Unmount(t, dir)
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("log of the driver:\n%s", text)
		}
	})
	return p
}

func (p *process) socket() string { return filepath.Join(p.dir, "csi.sock") }

func (p *process) start(killAt int) {
	p.t.Helper()
	p.prepare(killAt)
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

// prepare makes the command of a driver that kills itself before a durable step; 0: it does not.
func (p *process) prepare(killAt int) {
	pools := "--pools-file=" + filepath.Join(p.dir, "pools.yaml")
	if p.kubeconfig != "" {
		pools = "--kubeconfig=" + p.kubeconfig
	}
	p.cmd = exec.Command(os.Args[0], "--node-name=n1", "--socket="+p.socket(), "--registration-dir=", "--pools-root="+filepath.Dir(filepath.Dir(p.pool)),
		pools, "--scratch="+filepath.Join(p.dir, "scratch"), "--status-address=", "-v=0")
	p.cmd.Env = append(os.Environ(), envKillAt+"="+strconv.Itoa(killAt))
	p.cmd.Stderr = p.log
}

// kill ends the process, if it is not dead yet, and waits for it.
func (p *process) kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // it was killed; that is no news
	p.cmd = nil
}

// revive starts a new process if the last one is dead.
func (p *process) revive() {
	if p.dead() {
		p.kill()
		p.start(0)
	}
}

// call makes one call; errDied when the process ended before it answered.
func (p *process) call(do func(context.Context, grpc.ClientConnInterface) error) error {
	p.waitForSocket()
	conn, err := grpc.NewClient("unix://"+p.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	err = do(ctx, conn)
	if status.Code(err) == codes.Unavailable { // the connection broke a moment before the process is seen dead
		pooltest.Eventually(p.t, func() error {
			if !p.dead() {
				return err
			}
			return nil
		})
	}
	if p.dead() {
		return errDied
	}
	return err
}

// waitForSocket returns when the driver takes connections, or is dead.
func (p *process) waitForSocket() {
	pooltest.Eventually(p.t, func() error {
		if p.dead() {
			return nil
		}
		conn, err := net.Dial("unix", p.socket())
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// dead reports whether the process is a zombie: it was killed and nobody waited for it yet.
func (p *process) dead() bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	return err != nil || strings.Contains(string(data), ") Z ")
}

var errDied = errors.New("the driver died")

// shape is a kind of volume that the tests go through.
type shape struct {
	name       string
	block      bool
	size       int64 // 0: 64 MiB
	parameters map[string]string
}

func shapes() []shape {
	return []shape{
		{name: "Block", block: true},
		{name: "files", parameters: map[string]string{"content": "files"}},
		{name: "disk", parameters: map[string]string{"content": "disk"}},
	}
}

func (s shape) capability() *csi.VolumeCapability {
	c := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER}}
	if s.block {
		c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	} else {
		c.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{VolumeMountGroup: "2000"}}
	}
	return c
}

// file is where a Pod would write its data.
func (s shape) file(target string) string {
	switch {
	case s.block:
		return target
	case s.parameters["content"] == "disk":
		return filepath.Join(target, "disk.img")
	default:
		return filepath.Join(target, "note")
	}
}

// life is one volume on its way from creation to deletion.
type life struct {
	p       *process
	shape   shape
	name    string
	handle  string // set when the creation was acknowledged
	content string // written through the published volume and synced
	ending  bool   // the deletion was asked for: from now on the volume may be gone or not

	snapshot string // handle of a snapshot, once it was acknowledged
	restored string // handle of the volume made of it
	size     int64  // that was acknowledged
	going    bool   // the deletion of both was asked for
}

func (l *life) staging() string { return filepath.Join(l.p.dir, l.name+"-staging") }
func (l *life) target() string  { return filepath.Join(l.p.dir, l.name+"-target", "volume") }

func (l *life) create(ctx context.Context, conn grpc.ClientConnInterface) error {
	resp, err := csi.NewControllerClient(conn).CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: l.name, CapacityRange: &csi.CapacityRange{RequiredBytes: cmp.Or(l.shape.size, 64<<20)},
		VolumeCapabilities: []*csi.VolumeCapability{l.shape.capability()}, Parameters: l.shape.parameters,
	})
	if err == nil {
		l.handle = resp.GetVolume().GetVolumeId()
	}
	return err
}

func (l *life) stage(ctx context.Context, conn grpc.ClientConnInterface) error {
	_, err := csi.NewNodeClient(conn).NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: l.handle, StagingTargetPath: l.staging(), VolumeCapability: l.shape.capability(),
	})
	return err
}

func (l *life) publish(ctx context.Context, conn grpc.ClientConnInterface) error {
	_, err := csi.NewNodeClient(conn).NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: l.handle, StagingTargetPath: l.staging(), TargetPath: l.target(), VolumeCapability: l.shape.capability(),
	})
	return err
}

func (l *life) unpublish(ctx context.Context, conn grpc.ClientConnInterface) error {
	_, err := csi.NewNodeClient(conn).NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: l.handle, TargetPath: l.target()})
	return err
}

func (l *life) unstage(ctx context.Context, conn grpc.ClientConnInterface) error {
	_, err := csi.NewNodeClient(conn).NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: l.handle, StagingTargetPath: l.staging()})
	return err
}

func (l *life) delete(ctx context.Context, conn grpc.ClientConnInterface) error {
	l.ending = true
	_, err := csi.NewControllerClient(conn).DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: l.handle})
	return err
}

// keep takes a snapshot, which must be there from then on.
func (l *life) keep(ctx context.Context, conn grpc.ClientConnInterface) error {
	resp, err := csi.NewControllerClient(conn).CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: l.name + "-s", SourceVolumeId: l.handle})
	if err == nil {
		l.snapshot = resp.GetSnapshot().GetSnapshotId()
	}
	return err
}

// restore makes a larger volume of the snapshot.
func (l *life) restore(ctx context.Context, conn grpc.ClientConnInterface) error {
	resp, err := csi.NewControllerClient(conn).CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: l.name + "-r", CapacityRange: &csi.CapacityRange{RequiredBytes: 96 << 20}, Parameters: l.shape.parameters,
		VolumeCapabilities: []*csi.VolumeCapability{l.shape.capability()},
		VolumeContentSource: &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: l.snapshot},
		}},
	})
	if err == nil {
		l.restored = resp.GetVolume().GetVolumeId()
	}
	return err
}

// grow lets the volume grow at rest.
func (l *life) grow(ctx context.Context, conn grpc.ClientConnInterface) error {
	resp, err := csi.NewControllerClient(conn).ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: l.handle, CapacityRange: &csi.CapacityRange{RequiredBytes: 80 << 20},
	})
	if err == nil {
		l.size = resp.GetCapacityBytes()
	}
	return err
}

// forget deletes the snapshot and what was made of it.
func (l *life) forget(ctx context.Context, conn grpc.ClientConnInterface) error {
	l.going = true
	client := csi.NewControllerClient(conn)
	if _, err := client.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: l.restored}); err != nil {
		return err
	}
	_, err := client.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: l.snapshot})
	return err
}

// write puts content into the published volume, as a guest does that was told it is on disk.
func (l *life) write(context.Context, grpc.ClientConnInterface) error {
	l.content = "kept by " + l.name
	f, err := os.OpenFile(l.shape.file(l.target()), os.O_RDWR|os.O_CREATE, 0o660)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(l.content), 0)
	return errors.Join(err, f.Sync(), f.Close())
}

func (l *life) verify(context.Context, grpc.ClientConnInterface) error {
	f, err := os.Open(l.shape.file(l.target()))
	if err != nil {
		return err
	}
	data := make([]byte, len(l.content))
	_, err = f.ReadAt(data, 0)
	if string(data) != l.content {
		return errors.Join(fmt.Errorf("content = %q; want %q", data, l.content), err, f.Close())
	}
	return f.Close()
}

// listed checks what the driver says exists: what was acknowledged, and nothing half made.
func (l *life) listed(ctx context.Context, conn grpc.ClientConnInterface) error {
	client := csi.NewControllerClient(conn)
	resp, err := client.ListVolumes(ctx, &csi.ListVolumesRequest{})
	if err != nil {
		return err
	}
	found := false
	for _, entry := range resp.GetEntries() {
		id := entry.GetVolume().GetVolumeId()
		found = found || id == l.handle
		health, err := client.ControllerGetVolumeHealth(ctx, &csi.ControllerGetVolumeHealthRequest{VolumeId: id})
		if err != nil || len(health.GetVolumeHealth().GetHealthStatuses()) > 0 {
			return fmt.Errorf("volume %s is listed, but not whole: %v, %w", id, health, err)
		}
	}
	if l.handle != "" && !found && !l.ending {
		return fmt.Errorf("volume %s was acknowledged and is gone; there are %v", l.handle, resp.GetEntries())
	}
	return l.copiesListed(ctx, client)
}

// copiesListed checks the acknowledged snapshot, the volume made of it and the size.
func (l *life) copiesListed(ctx context.Context, client csi.ControllerClient) error {
	if l.snapshot != "" && !l.going {
		if _, err := client.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: l.snapshot}); err != nil {
			return fmt.Errorf("snapshot %s was acknowledged: %w", l.snapshot, err)
		}
	}
	for handle, size := range map[string]int64{l.restored: 96 << 20, l.handle: l.size} {
		if handle == "" || size == 0 || l.ending || l.going {
			continue
		}
		resp, err := client.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: handle})
		if err != nil || resp.GetVolume().GetCapacityBytes() != size {
			return fmt.Errorf("volume %s: %v, %w; want %d bytes", handle, resp, err, size)
		}
	}
	return nil
}

type step func(context.Context, grpc.ClientConnInterface) error

// whole is a life with everything in it; each call is made twice somewhere.
func (l *life) whole() []step {
	return []step{
		l.create, l.create, l.stage, l.publish, l.publish, l.write, l.unpublish, l.unstage,
		l.stage, l.stage, l.publish, l.verify, l.unpublish, l.unpublish, l.unstage, l.unstage, l.delete,
	}
}

// copied is a life with a snapshot, a restored volume and growth in it.
func (l *life) copied() []step {
	return []step{
		l.create, l.stage, l.publish, l.write, l.keep, l.keep, l.unpublish, l.unstage, l.restore, l.restore, l.grow, l.grow,
		l.stage, l.publish, l.verify, l.unpublish, l.unstage, l.forget, l.delete,
	}
}

// TestKilledAtEveryStep kills the driver before each durable step of a volume's life in turn. After each death a new
// process must show every acknowledged volume and no half one, the interrupted call must succeed when it is repeated,
// synced data must be there, and in the end nothing is left (ST-023).
func TestKilledAtEveryStep(t *testing.T) {
	for fsType, kinds := range map[string][]string{"xfs": {"Block", "disk"}, "ext4": {"files"}, "btrfs": {"Block"}} {
		pool := pooltest.FileSystem(t, fsType, 4<<30)
		for _, shape := range shapes() {
			if !slices.Contains(kinds, shape.name) {
				continue // the steps are the same on every file system; each kind is killed on one, each file system sees one
			}
			killedAtEveryStep(t, pool, fsType+"/"+shape.name, shape, (*life).whole)
		}
	}
}

// TestCopiesKilledAtEveryStep is the same for snapshots, restored volumes and growth.
func TestCopiesKilledAtEveryStep(t *testing.T) {
	pool := pooltest.FileSystem(t, "xfs", 4<<30)
	for _, shape := range shapes() {
		if shape.name == "disk" { // the others have fewer steps of the same kind; system calls kill each of them
			killedAtEveryStep(t, pool, shape.name, shape, (*life).copied)
		}
	}
}

func killedAtEveryStep(t *testing.T, pool, name string, shape shape, steps func(*life) []step) {
	t.Run(name, func(t *testing.T) {
		killAt := 1
		for ; lifeWithDeath(t, pool, shape, steps, func(p *process) { p.start(killAt) }); killAt++ {
			pooltest.ExpectNothingLeft(t, pool)
			if t.Failed() {
				t.Fatalf("the driver had been killed before step %d", killAt)
			}
		}
		t.Logf("killed at each of %d steps", killAt-1)
		pooltest.ExpectNothingLeft(t, pool)
	})
}

// lifeWithDeath reports whether the driver that was started really died; false means that it got through a life.
func lifeWithDeath(t *testing.T, pool string, shape shape, steps func(*life) []step, start func(*process)) bool {
	p := newProcess(t, pool)
	defer p.kill()
	start(p)
	l := &life{p: p, shape: shape, name: "v"}
	died := false
	for i, step := range steps(l) {
		err := p.call(step)
		if errors.Is(err, errDied) || (p.dead() && !died) {
			died = true
			p.kill()
			p.start(0)
			if err := p.call(l.listed); err != nil {
				t.Fatalf("killed in or before call %d: %v", i, err)
			}
			err = p.call(step)
		}
		if err != nil {
			t.Fatalf("killed in or before call %d: %v", i, err)
		}
	}
	pooltest.Eventually(t, func() error { // the background removal has steps too
		entries, err := os.ReadDir(filepath.Join(pool, "trash"))
		if err == nil && len(entries) > 0 && !p.dead() {
			return errors.New("trash is not empty")
		}
		return err
	})
	if p.dead() && !died {
		died = true
		p.kill()
		p.start(0)
		if err := p.call(l.listed); err != nil {
			t.Fatal(err)
		}
		pooltest.ExpectNothingLeft(t, pool)
	}
	return died
}

// attachOnce attaches a volume, looks whether its data are there and detaches it, whatever happens to the driver.
func attachOnce(t *testing.T, l *life) {
	t.Helper()
	for _, step := range []step{l.stage, l.publish, l.verify, l.unpublish, l.unstage} {
		err := l.p.call(step)
		for errors.Is(err, errDied) || l.p.dead() {
			l.p.revive()
			err = l.p.call(step)
		}
		if err != nil {
			t.Fatalf("volume %s: %v", l.name, err)
		}
	}
}

// TestKilledAtRandom kills the driver at random moments while several volumes are attached and detached, and looks for
// leaks and for devices over a wrong file (ST-019, ST-023).
func TestKilledAtRandom(t *testing.T) {
	pool := pooltest.FileSystem(t, "xfs", 4<<30)
	p := newProcess(t, pool)
	defer p.kill()
	p.start(0)
	lives := make([]*life, 0, 4)
	for i, shape := range append(shapes(), shapes()[0]) {
		lives = append(lives, &life{p: p, shape: shape, name: "v" + strconv.Itoa(i)})
	}
	for _, l := range lives {
		for _, step := range []step{l.create, l.stage, l.publish, l.write, l.unpublish, l.unstage} {
			if err := p.call(step); err != nil {
				t.Fatal(err)
			}
		}
	}
	const rounds = 50 // of four volumes each: 200 attachments
	for range rounds {
		pid := p.cmd.Process.Pid
		killer := time.AfterFunc(time.Duration(rand.IntN(60))*time.Millisecond, func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
		for _, l := range lives {
			attachOnce(t, l)
		}
		killer.Stop()
		p.revive()
		if devices := pooltest.LoopDevices(t, pool); len(devices) > 0 {
			t.Fatalf("loop devices are left: %v", devices)
		}
	}
	for _, l := range lives {
		if err := p.call(l.delete); err != nil {
			t.Fatal(err)
		}
	}
	pooltest.ExpectNothingLeft(t, pool)
}
