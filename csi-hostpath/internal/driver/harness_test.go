package driver

import (
	"context"
	"maps"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"podvirt.dev/csi-hostpath/internal/pool"
	"podvirt.dev/csi-hostpath/internal/poolconfig"
	"podvirt.dev/csi-hostpath/internal/pooltest"
)

func TestMain(m *testing.M) { pooltest.Main(m) }

// bench is a running driver with one pool, called test, and a client of it.
type bench struct {
	t      testing.TB
	dir    string // of the pool
	paths  string // staging and target paths lie below
	claims fakeClaims
	stop   func()

	driver   *Driver
	imports  *fakeImports
	guests   Guests
	quiesced func(ctx context.Context, q QuiescedSnapshot)
	csi.ControllerClient
	csi.NodeClient
}

// fakeClaims are claims by NAMESPACE/NAME.
type fakeClaims map[string]ClaimInfo

func (f fakeClaims) Claim(_ context.Context, namespace, name string) (ClaimInfo, error) {
	return f[namespace+"/"+name], nil
}

func newBench(t testing.TB, fsType string) *bench {
	t.Helper()
	b := &bench{t: t, dir: pooltest.FileSystem(t, fsType, 64<<30), paths: t.TempDir(), claims: fakeClaims{}}
	t.Cleanup(func() {
		b.stop()
		pooltest.Unmount(t, b.paths)
	})
	b.start()
	return b
}

// start starts a driver, as after a restart of its container: nothing of an earlier one is in memory.
func (b *bench) start() {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	pools := pool.New(pool.Options{Node: "n1", Scratch: filepath.Join(b.paths, "scratch")})
	pools.Apply(ctx, []poolconfig.Pool{{Name: "test", Path: b.dir, Overcommit: 1, HardSize: "auto", Default: true}})
	socket := filepath.Join(b.paths, "csi.sock")
	options := Options{Node: "n1", Version: "test", Socket: socket, Pools: pools, Claims: b.claims, Guests: b.guests, Quiesced: b.quiesced}
	if b.imports != nil {
		options.Imports, options.ImportTuning = b.imports, b.imports.tuning
	}
	d, err := New(options)
	if err != nil {
		b.t.Fatal(err)
	}
	b.driver = d
	done := make(chan error, 2)
	go func() { done <- d.Run(ctx, func() {}) }()
	go func() { done <- pools.Run(ctx) }()
	pooltest.Eventually(b.t, func() error { // before gRPC sees it: its second attempt comes a second later
		probe, err := net.Dial("unix", socket)
		if err != nil {
			return err
		}
		return probe.Close()
	})
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := csi.NewIdentityClient(conn).Probe(ctx, &csi.ProbeRequest{}, grpc.WaitForReady(true)); err != nil {
		b.t.Fatal(err)
	}
	b.ControllerClient, b.NodeClient = csi.NewControllerClient(conn), csi.NewNodeClient(conn)
	b.stop = func() {
		b.stop = func() {}
		conn.Close()
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				b.t.Error(err)
			}
		}
	}
}

func (b *bench) restart() {
	b.stop()
	b.start()
}

// request describes one volume and one use of it.
type request struct {
	name       string
	size       int64
	block      bool
	mode       csi.VolumeCapability_AccessMode_Mode // 0: SINGLE_NODE_MULTI_WRITER
	fsType     string
	group      string
	flags      []string
	parameters map[string]string
	readOnly   bool
	pod        string
}

func (r request) capability() *csi.VolumeCapability {
	mode := r.mode
	if mode == csi.VolumeCapability_AccessMode_UNKNOWN {
		mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	}
	c := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode}}
	if r.block {
		c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
		return c
	}
	c.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: r.fsType, VolumeMountGroup: r.group, MountFlags: r.flags}}
	return c
}

// tryCreate calls CreateVolume as external-provisioner does, for claim shop/NAME.
func (b *bench) tryCreate(r request) (*csi.Volume, error) {
	return b.tryCreateContext(b.t.Context(), r)
}

func (b *bench) tryCreateContext(ctx context.Context, r request) (*csi.Volume, error) {
	params := map[string]string{paramClaimNamespace: "shop", paramClaimName: r.name}
	maps.Copy(params, r.parameters)
	resp, err := b.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: "pvc-" + r.name, CapacityRange: &csi.CapacityRange{RequiredBytes: r.size},
		VolumeCapabilities: []*csi.VolumeCapability{r.capability()}, Parameters: params,
	})
	return resp.GetVolume(), err
}

// create makes a volume. Like the provisioner it asks again where there is no room: btrfs gives back what was deleted a
// moment later.
func (b *bench) create(r request) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		made, err := b.tryCreate(r)
		if err == nil {
			return made.GetVolumeId()
		}
		if status.Code(err) != codes.ResourceExhausted {
			b.t.Fatal(err)
		}
		select {
		case <-ctx.Done():
			b.t.Fatal(err)
		case <-tick.C:
		}
	}
}

func (b *bench) staging(r request) string { return filepath.Join(b.paths, "staging", r.name) }
func (b *bench) target(r request) string  { return filepath.Join(b.paths, "pods", r.pod, r.name) }

func (b *bench) stage(handle string, r request) {
	b.t.Helper()
	_, err := b.NodeStageVolume(b.t.Context(), &csi.NodeStageVolumeRequest{
		VolumeId: handle, StagingTargetPath: b.staging(r), VolumeCapability: r.capability(),
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) tryPublish(handle string, r request) error {
	_, err := b.NodePublishVolume(b.t.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: handle, StagingTargetPath: b.staging(r), TargetPath: b.target(r), VolumeCapability: r.capability(), Readonly: r.readOnly,
		VolumeContext: map[string]string{contextPodNamespace: "shop", contextPodName: r.pod, contextPodUID: "uid-" + r.pod},
	})
	return err
}

// publish stages and publishes, and returns the target path.
func (b *bench) publish(handle string, r request) string {
	b.t.Helper()
	b.stage(handle, r)
	if err := b.tryPublish(handle, r); err != nil {
		b.t.Fatal(err)
	}
	return b.target(r)
}

func (b *bench) unpublish(handle string, r request) {
	b.t.Helper()
	if _, err := b.NodeUnpublishVolume(b.t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: handle, TargetPath: b.target(r)}); err != nil {
		b.t.Fatal(err)
	}
}

// remove takes everything down and deletes the volume.
func (b *bench) remove(handle string, r request) {
	b.t.Helper()
	b.unpublish(handle, r)
	if _, err := b.NodeUnstageVolume(b.t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: handle, StagingTargetPath: b.staging(r)}); err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.DeleteVolume(b.t.Context(), &csi.DeleteVolumeRequest{VolumeId: handle}); err != nil {
		b.t.Fatal(err)
	}
	pooltest.ExpectNothingLeft(b.t, b.dir)
}

// expect fails unless err has the code and says the text.
func expect(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), text) {
		t.Errorf("error = %v; want code %s and %q", err, code, text)
	}
}
