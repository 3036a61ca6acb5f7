package sandbox

import (
	"context"
	"net"
	"testing"
)

// greeting dials a server that says hello, or refuses.
func greeting(t *testing.T) func(context.Context, string) (net.Conn, error) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("hello")) // the other side tells
			_ = conn.Close()
		}
	}()
	return func(ctx context.Context, address string) (net.Conn, error) {
		if address != "server:80" {
			return nil, Forbidden("not there")
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", listener.Addr().String())
	}
}
