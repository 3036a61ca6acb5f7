// Package holders asks the kubelet which container has which unit (k8s.io/kubelet/pkg/apis/podresources/v1). What a
// container has is never taken away.
package holders

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"podvirt.dev/api"
)

// askTimeout bounds one question.
const askTimeout = 5 * time.Second

// Holders says who has which unit, by its id.
type Holders map[string]Holder

// Holder is a container with a unit.
type Holder struct {
	Pod      string // NAMESPACE/NAME
	Resource string
}

// Ask returns the units of every container on the node that are no base devices, by the kubelet's socket.
func Ask(ctx context.Context, socket string) (Holders, error) {
	conn, err := grpc.NewClient("passthrough:///"+socket, grpc.WithAuthority("localhost"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", address)
		}))
	if err != nil {
		return nil, fmt.Errorf("asking the kubelet who has what: %w", err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	list, err := podresources.NewPodResourcesListerClient(conn).List(ctx, &podresources.ListPodResourcesRequest{})
	if err != nil {
		return nil, fmt.Errorf("asking the kubelet who has what: %w", err)
	}
	holders := Holders{}
	for _, pod := range list.PodResources {
		for _, container := range pod.Containers {
			for _, device := range container.Devices {
				if strings.HasPrefix(device.ResourceName, api.Prefix) {
					continue
				}
				for _, id := range device.DeviceIds {
					holders[id] = Holder{Pod: pod.Namespace + "/" + pod.Name, Resource: device.ResourceName}
				}
			}
		}
	}
	return holders, nil
}
