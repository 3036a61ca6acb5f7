// Package registration makes the driver known to kubelet by kubelet's plugin registration API
// (k8s.io/kubelet/pkg/apis/pluginregistration/v1): kubelet watches a directory for sockets and asks each who it is.
package registration

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"podvirt.dev/internal/unixgrpc"
)

const (
	socketMode fs.FileMode = 0o600
	// retryPause is the wait before the socket is offered again after a refusal.
	retryPause = 2 * time.Second
)

// Options of a registration.
type Options struct {
	Name     string // of the CSI driver
	Endpoint string // path of its socket, as kubelet sees it
	Dir      string // kubelet's directory for registration sockets, the same path here as for kubelet
}

// Run offers the driver until ctx ends. When kubelet refuses it, or somebody removes the socket, it is offered again.
func Run(ctx context.Context, opts Options) error {
	logger := klog.FromContext(ctx)
	for ctx.Err() == nil {
		if err := offer(ctx, opts); err != nil {
			return err
		}
		if ctx.Err() == nil {
			logger.Info("Registering with kubelet again")
			pause(ctx)
		}
	}
	return nil
}

// offer serves the registration socket until ctx ends, kubelet refuses, or the socket is gone.
func offer(ctx context.Context, opts Options) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	socket := filepath.Join(opts.Dir, opts.Name+"-reg.sock")
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching %s: %w", opts.Dir, err)
	}
	defer watcher.Close()
	if err := watcher.Add(opts.Dir); err != nil {
		return fmt.Errorf("watching %s: %w", opts.Dir, err)
	}
	server := unixgrpc.NewServer(ctx)
	registerapi.RegisterRegistrationServer(server, &service{opts: opts, refused: cancel})
	go endWhenRemoved(ctx, cancel, watcher, socket)
	return unixgrpc.Serve(ctx, server, socket, socketMode)
}

// endWhenRemoved cancels when the socket disappears; Serve's own replacing of a stale one happens before it is created.
func endWhenRemoved(ctx context.Context, cancel context.CancelFunc, watcher *fsnotify.Watcher, socket string) {
	created := false
	for {
		select {
		case <-ctx.Done():
			return
		case event, open := <-watcher.Events:
			if !open {
				return
			}
			if event.Name != socket {
				continue
			}
			created = created || event.Has(fsnotify.Create)
			if created && (event.Has(fsnotify.Remove) || event.Has(fsnotify.Rename)) {
				cancel()
				return
			}
		}
	}
}

type service struct {
	registerapi.UnimplementedRegistrationServer
	opts    Options
	refused context.CancelFunc
}

var _ registerapi.RegistrationServer = (*service)(nil)

// GetInfo says which plugin this is.
func (s *service) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{
		Type: registerapi.CSIPlugin, Name: s.opts.Name, Endpoint: s.opts.Endpoint, SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus hears whether kubelet took the plugin.
func (s *service) NotifyRegistrationStatus(
	ctx context.Context, status *registerapi.RegistrationStatus,
) (*registerapi.RegistrationStatusResponse, error) {
	logger := klog.FromContext(ctx)
	if status.GetPluginRegistered() {
		logger.Info("Registered with kubelet")
		return &registerapi.RegistrationStatusResponse{}, nil
	}
	logger.Info("Kubelet refused the registration", "err", status.GetError())
	s.refused()
	return &registerapi.RegistrationStatusResponse{}, nil
}

func pause(ctx context.Context) {
	timer := time.NewTimer(retryPause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
