package allotment

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"
)

// askTimeout bounds the questions of one look.
const askTimeout = 5 * time.Second

// memoryType is how the memory manager calls memory that is not huge pages (kubernetes pkg/kubelet/cm/memorymanager).
const memoryType = "memory"

// ask fills in who has what, by the kubelet's socket.
func ask(ctx context.Context, socket string, given *Given) error {
	conn, err := grpc.NewClient("passthrough:///"+socket, grpc.WithAuthority("localhost"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", address)
		}))
	if err != nil {
		return fmt.Errorf("asking the kubelet who has what: %w", err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	client := podresources.NewPodResourcesListerClient(conn)
	list, err := client.List(ctx, &podresources.ListPodResourcesRequest{})
	if err != nil {
		return fmt.Errorf("asking the kubelet who has what: %w", err)
	}
	allocatable, err := client.GetAllocatableResources(ctx, &podresources.AllocatableResourcesRequest{})
	if err != nil {
		return fmt.Errorf("asking the kubelet what it can give: %w", err)
	}
	given.Allocatable = sorted(allocatable.CpuIds)
	var exclusive []int64
	for _, pod := range list.PodResources {
		for _, c := range pod.Containers {
			exclusive = append(exclusive, c.CpuIds...)
			given.addMemory(c.Memory)
			given.addUnits(c.Devices)
		}
	}
	given.Exclusive = sorted(exclusive)
	for _, ids := range given.Units {
		slices.Sort(ids)
	}
	return nil
}

func (g *Given) addMemory(blocks []*podresources.ContainerMemory) {
	for _, block := range blocks {
		nodes := block.GetTopology().GetNodes()
		if block.MemoryType != memoryType || len(nodes) == 0 {
			continue
		}
		if g.Memory == nil {
			g.Memory = map[int]int64{}
		}
		g.Memory[int(nodes[0].ID)] += int64(block.Size) //nolint:gosec // the kernel has no more memory than that
	}
}

func (g *Given) addUnits(devices []*podresources.ContainerDevices) {
	for _, device := range devices {
		if g.Units == nil {
			g.Units = map[string][]string{}
		}
		g.Units[device.ResourceName] = append(g.Units[device.ResourceName], device.DeviceIds...)
	}
}
