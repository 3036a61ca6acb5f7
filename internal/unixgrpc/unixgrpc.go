// Package unixgrpc serves gRPC on a unix socket: one listener that survives an unclean end, one logging interceptor,
// and a stop that lets running calls finish.
package unixgrpc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// stopGrace is how long calls in flight may go on after the context ended.
const stopGrace = 5 * time.Second

// NewServer returns a server whose unary calls carry the logger of ctx; each failed call is logged once, here, with its method.
func NewServer(ctx context.Context, opts ...grpc.ServerOption) *grpc.Server {
	logger := klog.FromContext(ctx)
	logging := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		logger := logger.WithValues("method", info.FullMethod)
		resp, err := handle(klog.NewContext(ctx, logger), req)
		if err != nil {
			logger.Info("Call failed", "code", status.Code(err).String(), "err", err)
		}
		return resp, err
	}
	return grpc.NewServer(append([]grpc.ServerOption{grpc.ChainUnaryInterceptor(logging)}, opts...)...)
}

// Serve listens on the socket and serves until ctx ends or the server stops. A socket file left by a dead process is
// replaced; the file is gone when Serve returns. mode is the file's permission.
func Serve(ctx context.Context, server *grpc.Server, socket string, mode fs.FileMode) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the stale socket: %w", err)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	if err := os.Chmod(socket, mode); err != nil {
		return errors.Join(fmt.Errorf("opening the socket to its users: %w", err), listener.Close())
	}
	stopped := context.AfterFunc(ctx, func() {
		force := time.AfterFunc(stopGrace, server.Stop)
		defer force.Stop()
		server.GracefulStop()
	})
	defer stopped()
	if err := server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serving on %s: %w", socket, err)
	}
	return nil
}
