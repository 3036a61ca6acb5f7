// Package kubelettest is a kubelet's side of the device plugin protocol for tests.
package kubelettest

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// Kubelet does what the kubelet's plugin watcher and device manager do (kubernetes v1.37, pkg/kubelet/pluginmanager
// and pkg/kubelet/cm/devicemanager): it watches the registry, dials every socket that appears, asks what it is, checks
// the answer, connects, reports back, and follows the stream of units. Several endpoints may serve one resource; when
// the last one ends, the resource's units become unhealthy.
type Kubelet struct {
	dir    string
	refuse string // resource that is refused, with a reason

	mu          sync.Mutex
	endpoints   map[string]map[string]*endpoint // resource, socket
	units       map[string]map[string]string    // resource, id: health
	messages    map[string]int                  // stream messages, by resource
	given       []given
	allocatable []int64        // CPUs
	minimum     map[string]int // lowest number of healthy units since the first message
}

type endpoint struct {
	client pluginapi.DevicePluginClient
}

// Start runs a kubelet over the registry dir until the test ends or stop is called. The resource refuse is refused.
func Start(t testing.TB, dir, refuse string) (k *Kubelet, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	k = &Kubelet{
		dir: dir, refuse: refuse,
		endpoints: map[string]map[string]*endpoint{},
		units:     map[string]map[string]string{},
		messages:  map[string]int{},
		minimum:   map[string]int{},
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	if err := watcher.Add(dir); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { k.watch(ctx, watcher, &wg) })
	stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		_ = watcher.Close()
	})
	t.Cleanup(stop)
	return k, stop
}

func (k *Kubelet) watch(ctx context.Context, watcher *fsnotify.Watcher, wg *sync.WaitGroup) {
	sockets := map[string]context.CancelFunc{}
	add := func(socket string) {
		if info, err := os.Lstat(socket); err != nil || info.Mode()&os.ModeSocket == 0 {
			return
		}
		if forget := sockets[socket]; forget != nil {
			forget()
		}
		socketCtx, cancel := context.WithCancel(ctx)
		sockets[socket] = cancel
		wg.Go(func() { k.plugin(socketCtx, socket) })
	}
	existing, _ := filepath.Glob(filepath.Join(k.dir, "*"))
	for _, socket := range existing {
		add(socket)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-watcher.Events:
			switch {
			case event.Has(fsnotify.Create):
				add(event.Name)
			case event.Has(fsnotify.Remove) && sockets[event.Name] != nil:
				sockets[event.Name]()
				delete(sockets, event.Name)
			}
		}
	}
}

// plugin registers the plugin behind a socket, trying again as the kubelet does, and follows it.
func (k *Kubelet) plugin(ctx context.Context, socket string) {
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		if k.follow(ctx, socket) == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-retry.C:
		}
	}
}

func (k *Kubelet) follow(ctx context.Context, socket string) error {
	conn, err := dial(socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	info, err := registerapi.NewRegistrationClient(conn).GetInfo(ctx, &registerapi.InfoRequest{})
	if err != nil {
		return err
	}
	if problem := k.validate(info, socket); problem != "" {
		_, _ = registerapi.NewRegistrationClient(conn).NotifyRegistrationStatus(ctx, &registerapi.RegistrationStatus{Error: problem})
		return errors.New(problem)
	}
	client := pluginapi.NewDevicePluginClient(conn)
	if _, err := client.GetDevicePluginOptions(ctx, &pluginapi.Empty{}); err != nil {
		return err
	}
	k.connect(info.Name, socket, client)
	defer k.disconnect(info.Name, socket)
	if _, err := registerapi.NewRegistrationClient(conn).NotifyRegistrationStatus(ctx, &registerapi.RegistrationStatus{PluginRegistered: true}); err != nil {
		return err
	}
	stream, err := client.ListAndWatch(ctx, &pluginapi.Empty{})
	if err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return nil // the kubelet waits for a new socket file
		}
		k.receive(info.Name, resp.Devices)
	}
}

func (k *Kubelet) validate(info *registerapi.PluginInfo, socket string) string {
	switch {
	case info.Type != registerapi.DevicePlugin:
		return "no handler registered for plugin type: " + info.Type
	case !slices.Contains(info.SupportedVersions, pluginapi.Version):
		return "version not supported"
	case info.Endpoint != "" && info.Endpoint != socket:
		return "endpoint is not the socket"
	case info.Name == k.refuse:
		return "refused by the test"
	}
	return ""
}

func (k *Kubelet) connect(resource, socket string, client pluginapi.DevicePluginClient) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.endpoints[resource] == nil {
		k.endpoints[resource] = map[string]*endpoint{}
	}
	k.endpoints[resource][socket] = &endpoint{client: client}
}

func (k *Kubelet) disconnect(resource, socket string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.endpoints[resource], socket)
	if len(k.endpoints[resource]) > 0 {
		return
	}
	for id := range k.units[resource] {
		k.units[resource][id] = pluginapi.Unhealthy
	}
	k.note(resource)
}

func (k *Kubelet) receive(resource string, devices []*pluginapi.Device) {
	k.mu.Lock()
	defer k.mu.Unlock()
	units := map[string]string{}
	for _, d := range devices {
		units[d.ID] = d.Health
	}
	k.units[resource] = units
	k.messages[resource]++
	k.note(resource)
}

func (k *Kubelet) note(resource string) {
	n := k.healthyLocked(resource)
	if lowest, ok := k.minimum[resource]; !ok || n < lowest {
		k.minimum[resource] = n
	}
}

func (k *Kubelet) healthyLocked(resource string) int {
	n := 0
	for _, health := range k.units[resource] {
		if health == pluginapi.Healthy {
			n++
		}
	}
	return n
}

// Healthy returns what would be allocatable, or -1 for a resource that never registered.
func (k *Kubelet) Healthy(resource string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.units[resource]; !ok {
		return -1
	}
	return k.healthyLocked(resource)
}

// Resources returns the names of all resources that ever registered.
func (k *Kubelet) Resources() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Sorted(maps.Keys(k.units))
}

// Count returns how many messages a resource's streams brought, the lowest number of healthy units ever seen, and the
// number of endpoints now.
func (k *Kubelet) Count(resource string) (messages, minimum, endpoints int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.messages[resource], k.minimum[resource], len(k.endpoints[resource])
}

// Allocate asks one of the resource's endpoints, as the device manager does for one container.
func (k *Kubelet) Allocate(ctx context.Context, resource string, ids ...string) (*pluginapi.ContainerAllocateResponse, error) {
	client, err := k.client(resource)
	if err != nil {
		return nil, err
	}
	resp, err := client.Allocate(ctx, &pluginapi.AllocateRequest{
		ContainerRequests: []*pluginapi.ContainerAllocateRequest{{DevicesIds: ids}},
	})
	if err != nil {
		return nil, err
	}
	return resp.ContainerResponses[0], nil
}

func (k *Kubelet) client(resource string) (pluginapi.DevicePluginClient, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.endpoints[resource] {
		return e.client, nil
	}
	return nil, errors.New("unknown device plugin " + resource)
}

func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+socket,
		grpc.WithAuthority("localhost"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", addr)
		}))
}

// ShortDir returns a directory whose path leaves room for a socket's name.
func ShortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dp") //nolint:usetesting // the path of a test's own directory is too long for a socket below it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Eventually polls until ok or fails the test after limit.
func Eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(limit)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("not within %v: %s", limit, what)
		case <-tick.C:
		}
	}
}
