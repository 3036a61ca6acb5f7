package kubelet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"

	"podvirt.dev/device-plugin/internal/device"
	"podvirt.dev/internal/unixgrpc"
)

const (
	// checkInterval is how often the sockets are looked for besides the kernel's notices, which may be lost.
	checkInterval = 30 * time.Second
	// appearTimeout is how long a new socket file may take to appear before it counts as missing.
	appearTimeout = 5 * time.Second
	// retryInterval is the time between two attempts to listen.
	retryInterval = time.Second
	// socketMode lets the kubelet alone in: it runs as root.
	socketMode = 0o600

	socketPrefix = "podvirt-"
	socketSuffix = ".sock"
)

// Options are what a [Manager] needs; all but Preparer are required.
type Options struct {
	Dir      string // the kubelet's plugin registry
	Instance string // UID of our Pod: the sockets of two plugin Pods on one node differ during an upgrade
	Board    *device.Board
	Observer Observer
	Preparer Preparer
}

// Manager serves every resource on the board, each on a socket of its own.
type Manager struct {
	Options

	mu      sync.Mutex
	running map[string]*service // by resource
}

// service is one resource being served.
type service struct {
	server *server
	socket string
	cancel context.CancelFunc // stops for good
	renew  chan struct{}      // asks for a new socket file; capacity 1

	seen  bool      // the file has been there since the last renewal; guarded by Manager.mu
	since time.Time // of the last renewal; guarded by Manager.mu
}

// NewManager checks the options; it serves nothing yet.
func NewManager(options Options) (*Manager, error) {
	if options.Instance == "" || strings.ContainsAny(options.Instance, "/\x00") {
		return nil, fmt.Errorf("instance %q: want the UID of the Pod", options.Instance)
	}
	m := &Manager{Options: options, running: map[string]*service{}}
	if socket := m.socket("podvirt.dev/any"); len(socket) >= len(syscall.RawSockaddrUnix{}.Path) {
		return nil, fmt.Errorf("socket path %s is longer than the kernel allows", socket)
	}
	return m, nil
}

// Run serves until ctx ends. On its way out it sends nothing: an empty list would be a lie, and the kubelet keeps what
// it knows until the next plugin speaks.
func (m *Manager) Run(ctx context.Context) error {
	if err := os.MkdirAll(m.Dir, 0o750); err != nil {
		return fmt.Errorf("plugin registry: %w", err)
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching the plugin registry: %w", err)
	}
	defer watcher.Close()
	if err := watcher.Add(m.Dir); err != nil {
		return fmt.Errorf("watching the plugin registry: %w", err)
	}
	m.removeDeadSockets(ctx)

	var services sync.WaitGroup
	defer services.Wait()
	check := time.NewTicker(checkInterval)
	defer check.Stop()
	for {
		names, changed := m.Board.Names()
		m.adjust(ctx, names, &services)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-check.C:
			m.renewMissing()
		case <-watcher.Events:
			m.renewMissing()
		case err := <-watcher.Errors:
			klog.FromContext(ctx).Info("Watching the plugin registry", "err", err)
			m.renewMissing()
		}
	}
}

// Unregistered returns the resources on the board that the kubelet has not taken yet.
func (m *Manager) Unregistered() []string {
	names, _ := m.Board.Names()
	m.mu.Lock()
	defer m.mu.Unlock()
	var missing []string
	for _, name := range names {
		if s, ok := m.running[name]; !ok || !s.server.isConnected() {
			missing = append(missing, name)
		}
	}
	return missing
}

// adjust starts and stops services so that exactly the named resources are served.
func (m *Manager) adjust(ctx context.Context, names []string, services *sync.WaitGroup) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wanted := map[string]bool{}
	for _, name := range names {
		wanted[name] = true
		if m.running[name] != nil {
			continue
		}
		serviceCtx, cancel := context.WithCancel(ctx)
		s := &service{
			server: newServer(name, m.Options),
			socket: m.socket(name),
			cancel: cancel,
			renew:  make(chan struct{}, 1),
			since:  time.Now(),
		}
		m.running[name] = s
		services.Go(func() {
			defer cancel()
			s.run(serviceCtx)
		})
	}
	for name, s := range m.running {
		if !wanted[name] {
			s.cancel()
			delete(m.running, name)
		}
	}
}

// renewMissing asks for new sockets where the file is gone; the kubelet has noticed and forgotten the resource. A file
// that was never seen may just not be there yet.
func (m *Manager) renewMissing() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.running {
		_, err := os.Lstat(s.socket)
		switch missing := errors.Is(err, fs.ErrNotExist); {
		case !missing:
			s.seen = true
		case s.seen || time.Since(s.since) > appearTimeout:
			s.seen, s.since = false, time.Now()
			select {
			case s.renew <- struct{}{}:
			default: // already asked
			}
		}
	}
}

func (m *Manager) socket(resource string) string {
	hash := sha256.Sum256([]byte(resource))
	return filepath.Join(m.Dir, socketPrefix+hex.EncodeToString(hash[:4])+"-"+m.Instance+socketSuffix)
}

// removeDeadSockets removes what plugin Pods left behind that were killed: the kubelet would try them for ever. A socket
// that somebody listens on belongs to a living plugin and stays.
func (m *Manager) removeDeadSockets(ctx context.Context) {
	logger := klog.FromContext(ctx)
	sockets, err := filepath.Glob(filepath.Join(m.Dir, socketPrefix+"*"+socketSuffix))
	if err != nil {
		logger.Error(err, "Looking for dead sockets")
	}
	for _, socket := range sockets {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil {
			_ = conn.Close() // only its being there mattered
			continue
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			continue
		}
		if err := os.Remove(socket); err != nil {
			logger.Error(err, "Removing a dead socket", "socket", socket)
		}
	}
}

// run serves until ctx ends, on a new socket file each time one is asked for or listening failed.
func (s *service) run(ctx context.Context) {
	logger := klog.FromContext(ctx).WithValues("resource", s.server.resource)
	for ctx.Err() == nil {
		if err := s.serveOnce(ctx); err != nil {
			logger.Error(err, "Serving the resource")
			select {
			case <-ctx.Done():
			case <-time.After(retryInterval):
			}
		}
	}
}

// serveOnce serves on one socket file until ctx ends or a new file is asked for.
func (s *service) serveOnce(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-s.renew:
			klog.FromContext(ctx).Info("The socket is gone, making a new one", "resource", s.server.resource)
			cancel()
		case <-done:
		}
	}()
	grpcServer := unixgrpc.NewServer(ctx)
	s.server.begin(ctx.Done())
	defer s.server.end()
	s.server.register(grpcServer)
	return unixgrpc.Serve(ctx, grpcServer, s.socket, socketMode)
}
