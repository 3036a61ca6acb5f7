package harness

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// Forward is "kubectl port-forward": it returns the port of 127.0.0.1 that leads to a port of the Pod until the test ends.
func (n *Namespace) Forward(t testing.TB, pod string, port int) int {
	t.Helper()
	transport, upgrader, err := spdy.RoundTripperFor(n.Config)
	if err != nil {
		t.Fatal(err)
	}
	url := n.Client.CoreV1().RESTClient().Post().Namespace(n.Name).Resource("pods").Name(pod).SubResource("portforward").URL()
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	stop, ready, failed := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(stop) })
	go func() { failed <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-failed:
		t.Fatalf("port-forward: %v", err)
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	return int(ports[0].Local)
}
