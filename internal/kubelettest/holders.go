package kubelettest

import (
	"context"
	"net"
	"slices"
	"testing"

	"google.golang.org/grpc"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"
)

// ServeHolders answers on a socket who has what, as the kubelet's pod resources API does: containers get units by
// [Kubelet.Give] and have them until [Kubelet.End].
func (k *Kubelet) ServeHolders(t testing.TB, socket string) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	podresources.RegisterPodResourcesListerServer(server, lister{k: k})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
}

// Give allocates units for a Pod, as the device manager does for its one container.
func (k *Kubelet) Give(ctx context.Context, pod, resource string, ids ...string) (*pluginapi.ContainerAllocateResponse, error) {
	resp, err := k.Allocate(ctx, resource, ids...)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.given = append(k.given, given{pod: pod, resource: resource, ids: slices.Clone(ids)})
	return resp, nil
}

// GiveCPUs says that a Pod's one container has CPUs for itself.
func (k *Kubelet) GiveCPUs(pod string, cpus ...int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.given = append(k.given, given{pod: pod, cpus: cpus})
}

// Allocatable sets the CPUs that containers may have for themselves.
func (k *Kubelet) Allocatable(cpus ...int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.allocatable = cpus
}

// End says that a Pod has ended.
func (k *Kubelet) End(pod string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.given = slices.DeleteFunc(k.given, func(g given) bool { return g.pod == pod })
}

type given struct {
	pod, resource string
	ids           []string
	cpus          []int64
}

type lister struct {
	podresources.UnimplementedPodResourcesListerServer
	k *Kubelet
}

// List implements the API.
func (l lister) List(context.Context, *podresources.ListPodResourcesRequest) (*podresources.ListPodResourcesResponse, error) {
	l.k.mu.Lock()
	defer l.k.mu.Unlock()
	resp := &podresources.ListPodResourcesResponse{}
	for _, g := range l.k.given {
		c := &podresources.ContainerResources{Name: "vm", CpuIds: g.cpus}
		if g.resource != "" {
			c.Devices = []*podresources.ContainerDevices{{ResourceName: g.resource, DeviceIds: g.ids}}
		}
		resp.PodResources = append(resp.PodResources, &podresources.PodResources{
			Name: g.pod, Namespace: "default", Containers: []*podresources.ContainerResources{c},
		})
	}
	return resp, nil
}

// Health returns what is known of a unit: Healthy, Unhealthy, or "" where there is none.
func (k *Kubelet) Health(resource, id string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.units[resource][id]
}

// Units returns the ids of a resource's units, sorted.
func (k *Kubelet) Units(resource string) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var ids []string
	for id := range k.units[resource] {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Prefer asks the plugin which of all units a container that wants size of them had better get.
func (k *Kubelet) Prefer(ctx context.Context, resource string, size int) ([]string, error) {
	available := k.Units(resource)
	client, err := k.client(resource)
	if err != nil {
		return nil, err
	}
	resp, err := client.GetPreferredAllocation(ctx, &pluginapi.PreferredAllocationRequest{
		ContainerRequests: []*pluginapi.ContainerPreferredAllocationRequest{{AvailableDeviceIDs: available, AllocationSize: int32(size)}},
	})
	if err != nil {
		return nil, err
	}
	return resp.ContainerResponses[0].DeviceIDs, nil
}

// GetAllocatableResources implements the API.
func (l lister) GetAllocatableResources(
	context.Context, *podresources.AllocatableResourcesRequest,
) (*podresources.AllocatableResourcesResponse, error) {
	l.k.mu.Lock()
	defer l.k.mu.Unlock()
	return &podresources.AllocatableResourcesResponse{CpuIds: l.k.allocatable}, nil
}
