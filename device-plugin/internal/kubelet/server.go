// Package kubelet serves resources to the kubelet: one socket per resource in its plugin registry, where the kubelet
// finds it by itself, also after its own restart, and registers it as a device plugin
// (k8s.io/kubelet/pkg/apis/pluginregistration/v1, k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1).
package kubelet

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"podvirt.dev/device-plugin/internal/device"
)

// sendInterval is the shortest time between two messages of one stream: a flapping device costs one message a second.
const sendInterval = time.Second

var (
	_ pluginapi.DevicePluginServer   = (*server)(nil)
	_ registerapi.RegistrationServer = (*server)(nil)
)

// Observer hears what happens on the sockets, for metrics. Its methods are called concurrently and must not block.
type Observer interface {
	// Registered is called when the kubelet took or refused a resource; reason is "registered", "again" or "refused".
	Registered(resource, reason string)
	// Allocated is called after each Allocate; err is nil when it succeeded.
	Allocated(resource string, took time.Duration, err error)
}

// Preparer makes units ready that a container is about to get. It returns an error where one cannot be handed out.
type Preparer interface {
	Prepare(ctx context.Context, resource string, ids []string) error
}

// server speaks both protocols for one resource.
type server struct {
	pluginapi.UnimplementedDevicePluginServer
	registerapi.UnimplementedRegistrationServer

	board    *device.Board
	resource string
	observer Observer
	preparer Preparer // nil: nothing needs it

	mu         sync.Mutex
	stopping   <-chan struct{} // closed when the streams shall end; nil: no socket
	registered int             // how often the kubelet has taken the resource
	connected  bool            // the kubelet has taken it and has not refused it since
}

func newServer(resource string, o Options) *server {
	return &server{board: o.Board, resource: resource, observer: o.Observer, preparer: o.Preparer}
}

// begin says that a socket is about to be served until stopping is closed.
func (s *server) begin(stopping <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = stopping
}

// end says that the socket is gone.
func (s *server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping, s.connected = nil, false
}

func (s *server) register(registrar grpc.ServiceRegistrar) {
	registerapi.RegisterRegistrationServer(registrar, s)
	pluginapi.RegisterDevicePluginServer(registrar, s)
}

// GetInfo tells the kubelet what the socket is. No endpoint: the kubelet uses the path by which it sees this socket,
// which is not the path by which we see it.
func (s *server) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{
		Type:              registerapi.DevicePlugin,
		Name:              s.resource,
		SupportedVersions: []string{pluginapi.Version},
	}, nil
}

// NotifyRegistrationStatus hears whether the kubelet took the resource. It tries again by itself after a refusal.
func (s *server) NotifyRegistrationStatus(ctx context.Context, st *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	logger := klog.FromContext(ctx).WithValues("resource", s.resource)
	s.connected = st.PluginRegistered
	switch {
	case !st.PluginRegistered:
		logger.Info("The kubelet refused the resource", "err", st.Error)
		s.observer.Registered(s.resource, "refused")
	case s.registered > 0:
		s.registered++
		logger.Info("The kubelet registered the resource again", "times", s.registered)
		s.observer.Registered(s.resource, "again")
	default:
		s.registered++
		logger.Info("The kubelet registered the resource")
		s.observer.Registered(s.resource, "registered")
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}

// isConnected says whether the kubelet has taken the resource.
func (s *server) isConnected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connected
}

// GetDevicePluginOptions tells the kubelet which optional calls to make: none where units do not differ.
func (s *server) GetDevicePluginOptions(context.Context, *pluginapi.Empty) (*pluginapi.DevicePluginOptions, error) {
	resource, _, _ := s.board.Resource(s.resource)
	return &pluginapi.DevicePluginOptions{GetPreferredAllocationAvailable: resource.Differs()}, nil
}

// GetPreferredAllocation chooses units for each container. It never refuses: an error would fail the Pod, and any choice
// of what is available works.
func (s *server) GetPreferredAllocation(_ context.Context, req *pluginapi.PreferredAllocationRequest) (*pluginapi.PreferredAllocationResponse, error) {
	resource, _, _ := s.board.Resource(s.resource)
	resp := &pluginapi.PreferredAllocationResponse{}
	for _, c := range req.ContainerRequests {
		resp.ContainerResponses = append(resp.ContainerResponses, &pluginapi.ContainerPreferredAllocationResponse{
			DeviceIDs: resource.Prefer(c.AvailableDeviceIDs, c.MustIncludeDeviceIDs, int(c.AllocationSize)),
		})
	}
	return resp, nil
}

// ListAndWatch sends the units at once and then whenever they changed. It never sends an empty list because the plugin
// stops: the stream just ends, and the kubelet waits for the next plugin.
func (s *server) ListAndWatch(_ *pluginapi.Empty, stream grpc.ServerStreamingServer[pluginapi.ListAndWatchResponse]) error {
	ctx := stream.Context()
	s.mu.Lock()
	stopping := s.stopping
	s.mu.Unlock()
	for {
		resource, changed, ok := s.board.Resource(s.resource)
		if !ok {
			return nil // the class is gone, and so will be the socket
		}
		if err := stream.Send(&pluginapi.ListAndWatchResponse{Devices: devices(resource)}); err != nil {
			return err
		}
		healthy, unhealthy := resource.Counts()
		klog.FromContext(ctx).V(2).Info("Told the kubelet", "resource", s.resource, "healthy", healthy, "unhealthy", unhealthy)
		quiet := time.NewTimer(sendInterval)
		goOn := await(ctx, stopping, changed) && await(ctx, stopping, quiet.C)
		quiet.Stop()
		if !goOn {
			return nil
		}
	}
}

// await returns true when c is ready, false when the stream shall end.
func await[T any](ctx context.Context, stopping <-chan struct{}, c <-chan T) bool {
	select {
	case <-c:
		return true
	case <-stopping:
	case <-ctx.Done():
	}
	return false
}

// Allocate answers with CDI device names and variables; the devices themselves were prepared before they were offered.
// The same units give the same answer every time.
func (s *server) Allocate(ctx context.Context, req *pluginapi.AllocateRequest) (*pluginapi.AllocateResponse, error) {
	start := time.Now()
	resp, err := s.allocate(ctx, req)
	s.observer.Allocated(s.resource, time.Since(start), err)
	return resp, err
}

func (s *server) allocate(ctx context.Context, req *pluginapi.AllocateRequest) (*pluginapi.AllocateResponse, error) {
	resource, _, ok := s.board.Resource(s.resource)
	if !ok {
		return nil, status.Errorf(codes.Unavailable, "%s is not offered any more", s.resource)
	}
	resp := &pluginapi.AllocateResponse{}
	for _, container := range req.ContainerRequests {
		answer, err := answer(resource, container.DevicesIds)
		if err != nil {
			return nil, err
		}
		if s.preparer != nil {
			if err := s.preparer.Prepare(ctx, s.resource, container.DevicesIds); err != nil {
				return nil, status.Error(codes.FailedPrecondition, err.Error())
			}
		}
		resp.ContainerResponses = append(resp.ContainerResponses, answer)
	}
	return resp, nil
}

// answer joins the grants of several units: each CDI device once, values of one variable in the order of the units.
func answer(resource device.Resource, ids []string) (*pluginapi.ContainerAllocateResponse, error) {
	ids = slices.Sorted(slices.Values(ids)) // the kubelet sends them in any order, and a restart must get the same answer
	resp := &pluginapi.ContainerAllocateResponse{}
	given := map[string]bool{}
	for _, id := range ids {
		unit, ok := resource.Unit(id)
		if !ok {
			return nil, status.Errorf(codes.NotFound, "%s: no unit of %s", id, resource.Name)
		}
		if !unit.Healthy() {
			return nil, status.Errorf(codes.FailedPrecondition, "%s of %s is unhealthy: %s", id, resource.Name, unit.Reason)
		}
		for _, name := range unit.Grant.CDI {
			if !given[name] {
				given[name] = true
				resp.CdiDevices = append(resp.CdiDevices, &pluginapi.CDIDevice{Name: name})
			}
		}
		for name, value := range unit.Grant.Env {
			if resp.Envs == nil {
				resp.Envs = map[string]string{}
			}
			if earlier, ok := resp.Envs[name]; ok {
				value = fmt.Sprintf("%s,%s", earlier, value)
			}
			resp.Envs[name] = value
		}
	}
	return resp, nil
}

func devices(resource device.Resource) []*pluginapi.Device {
	list := make([]*pluginapi.Device, len(resource.Units))
	for i, unit := range resource.Units {
		d := &pluginapi.Device{ID: unit.ID, Health: pluginapi.Healthy}
		if !unit.Healthy() {
			d.Health = pluginapi.Unhealthy
		}
		if len(unit.Cells) > 0 {
			d.Topology = &pluginapi.TopologyInfo{}
			for _, cell := range unit.Cells {
				d.Topology.Nodes = append(d.Topology.Nodes, &pluginapi.NUMANode{ID: int64(cell)})
			}
		}
		list[i] = d
	}
	return list
}
