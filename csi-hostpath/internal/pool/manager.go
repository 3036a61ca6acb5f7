// Package pool keeps the pools of one node: opens what the configuration names, refuses a file system that belongs to
// the OS, follows what is mounted and unmounted underneath, and hands out room so that no pool is oversold.
package pool

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"podvirt.dev/csi-hostpath/internal/fault"
	"podvirt.dev/csi-hostpath/internal/poolconfig"
	"podvirt.dev/csi-hostpath/internal/volume"
)

// ErrNoPool says that the node has no pool of the name.
var ErrNoPool = errors.New("no such pool")

const (
	// checkInterval is how often pools are looked at without being asked; a mount that goes away or comes back is seen then.
	checkInterval = 10 * time.Second
	// sharedReserve is the least share, in percent of the whole file system, kept free in a pool that shares the OS's:
	// above the kubelet's thresholds for eviction, 10 for its own files and 15 for images (ST-005).
	sharedReserve = 16
)

// Options of a manager.
type Options struct {
	Node string
	// AdoptBelow is a directory whose sub-directories are searched for pools that are no longer configured: their
	// volumes stay usable (ST-001). Empty: none.
	AdoptBelow string
	// Scratch is a private directory for mounts while volumes are made.
	Scratch string
	// OSPaths lie on the file systems of the OS, of kubelet and of the container runtime.
	OSPaths []string
	Fault   fault.Hook
}

// Manager holds the node's pools. It is safe for concurrent use.
type Manager struct {
	opts    Options
	changed chan struct{}

	mu       sync.Mutex
	wanted   []poolconfig.Pool
	pools    map[string]*entry // by name; configured ones only
	retired  map[string]*volume.Store
	inflight map[*reservation]struct{}
}

// reservation is room for a volume that is being made.
type reservation struct {
	store *volume.Store
	name  string
	bytes int64
}

// entry is one configured pool.
type entry struct {
	spec     poolconfig.Pool
	store    *volume.Store // nil until it could be opened
	problem  error         // why the pool cannot serve
	sharesOS bool
}

// New returns a manager without pools.
func New(opts Options) *Manager {
	return &Manager{
		opts: opts, changed: make(chan struct{}, 1),
		pools: map[string]*entry{}, retired: map[string]*volume.Store{}, inflight: map[*reservation]struct{}{},
	}
}

// Apply makes these the configured pools and opens what can be opened. A pool that cannot be is reported as not ready
// and tried again by Run; the others are unaffected.
func (m *Manager) Apply(ctx context.Context, pools []poolconfig.Pool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wanted = pools
	m.reconcile(ctx)
}

// Run follows the state of the pools and frees deleted volumes until ctx ends. It closes the pools.
func (m *Manager) Run(ctx context.Context) error {
	ticker := time.NewTicker(checkInterval)
	defer ticker.Stop()
	removers := removers{running: map[*volume.Store]context.CancelFunc{}}
	for {
		m.mu.Lock()
		stores := m.stores()
		m.mu.Unlock()
		removers.follow(ctx, stores)
		select {
		case <-ctx.Done():
			removers.wait()
			return m.close()
		case <-m.changed:
		case <-ticker.C:
			m.mu.Lock()
			m.reconcile(ctx)
			m.mu.Unlock()
		}
	}
}

func (m *Manager) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, store := range m.stores() {
		errs = append(errs, store.Close())
	}
	m.pools, m.retired = map[string]*entry{}, map[string]*volume.Store{}
	return errors.Join(errs...)
}

// stores returns every open pool, configured or not.
func (m *Manager) stores() []*volume.Store {
	var stores []*volume.Store
	for _, e := range m.pools {
		if e.store != nil {
			stores = append(stores, e.store)
		}
	}
	for _, store := range m.retired {
		stores = append(stores, store)
	}
	slices.SortFunc(stores, func(a, b *volume.Store) int { return strings.Compare(a.Path(), b.Path()) })
	return stores
}

// reconcile brings the open pools in line with the wanted ones.
func (m *Manager) reconcile(ctx context.Context) {
	m.retire()
	m.release(ctx)
	for _, spec := range m.wanted {
		e := m.pools[spec.Name]
		if e == nil {
			e = &entry{}
			m.pools[spec.Name] = e
		}
		e.spec = spec
		problem := m.ensureOpen(ctx, e)
		if (problem == nil) != (e.problem == nil) || (problem != nil && problem.Error() != e.problem.Error()) {
			logState(ctx, spec, problem)
		}
		e.problem = problem
	}
	m.adopt(ctx)
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

func logState(ctx context.Context, spec poolconfig.Pool, problem error) {
	logger := klog.FromContext(ctx).WithValues("pool", spec.Name, "path", spec.Path)
	if problem != nil {
		logger.Info("The pool is not ready", "err", problem)
		return
	}
	logger.Info("The pool is ready")
}

// retire keeps a pool that is no longer configured, or configured otherwise, open under its id alone.
func (m *Manager) retire() {
	for name, e := range m.pools {
		at := slices.IndexFunc(m.wanted, func(p poolconfig.Pool) bool { return p.Name == name })
		if at >= 0 && m.wanted[at].Path == e.spec.Path {
			continue
		}
		if e.store != nil {
			m.retired[e.store.Identity().ID] = e.store
		}
		delete(m.pools, name)
	}
}

// release closes retired pools that have no volume left or are not there any more, so that they can be unmounted.
func (m *Manager) release(ctx context.Context) {
	for id, store := range m.retired {
		busy := false
		for r := range m.inflight {
			busy = busy || r.store == store
		}
		if busy || store.Check() == nil && !store.Empty() {
			continue
		}
		delete(m.retired, id)
		if err := store.Close(); err != nil {
			klog.FromContext(ctx).Error(err, "Closing a pool that is no longer configured", "path", store.Path())
		}
	}
}

// ensureOpen opens a pool or checks the open one.
func (m *Manager) ensureOpen(ctx context.Context, e *entry) error {
	if e.spec.Path == "" {
		return fmt.Errorf("%w: pools on a device or a claim are not served by this version; use path", volume.ErrNotReady)
	}
	if e.spec.HardSize == poolconfig.HardSizeProject {
		return fmt.Errorf("%w: hardSize=project: the owner of a file may change its project; use image", volume.ErrNotReady)
	}
	shares, err := m.sharesOS(e.spec.Path)
	if err != nil {
		return fmt.Errorf("%w: %w", volume.ErrNotReady, err)
	}
	e.sharesOS = shares
	if shares && !e.spec.AllowShared {
		return fmt.Errorf("%w: %s; mount a file system of its own there, or set allowShared: true", volume.ErrShared, e.spec.Path)
	}
	if e.store != nil && e.store.Check() == nil {
		return nil
	}
	return m.open(ctx, e)
}

// open opens a pool for the first time, or again after its file system was mounted anew.
func (m *Manager) open(ctx context.Context, e *entry) error {
	if e.store != nil {
		id, err := volume.ReadIdentity(e.spec.Path)
		if err != nil {
			return fmt.Errorf("%w: the pool is gone from %s: %w", volume.ErrNotReady, e.spec.Path, err)
		}
		if id.ID != e.store.Identity().ID {
			return fmt.Errorf("%w: %s holds pool %s, expected %s", volume.ErrNotReady, e.spec.Path, id.ID, e.store.Identity().ID)
		}
	}
	for id, store := range m.retired {
		if store.Path() == e.spec.Path && store.Check() == nil {
			delete(m.retired, id)
			e.store = store
			return nil
		}
	}
	store, err := volume.Open(ctx, volume.Options{Path: e.spec.Path, Node: m.opts.Node, Scratch: m.opts.Scratch, Fault: m.opts.Fault})
	if err != nil {
		return err
	}
	if e.store != nil {
		if err := e.store.Close(); err != nil {
			klog.FromContext(ctx).Info("Closing the pool as it was before", "err", err)
		}
	}
	e.store = store
	return nil
}

// adopt opens pools that nobody configures any more, so that their volumes can still be used and deleted.
func (m *Manager) adopt(ctx context.Context) {
	if m.opts.AdoptBelow == "" {
		return
	}
	found, err := filepath.Glob(filepath.Join(m.opts.AdoptBelow, "*", ".podvirt", "pool.json"))
	if err != nil {
		return // only for a bad pattern
	}
	for _, name := range found {
		path := filepath.Dir(filepath.Dir(name))
		if slices.ContainsFunc(m.wanted, func(p poolconfig.Pool) bool { return p.Path == path }) ||
			slices.ContainsFunc(m.stores(), func(s *volume.Store) bool { return s.Path() == path }) {
			continue
		}
		if used, err := volume.HasVolumes(path); err == nil && !used {
			continue
		}
		store, err := volume.Open(ctx, volume.Options{Path: path, Node: m.opts.Node, Scratch: m.opts.Scratch, Fault: m.opts.Fault})
		if err != nil {
			klog.FromContext(ctx).V(2).Info("A pool that is not configured cannot be opened", "path", path, "err", err)
			continue
		}
		m.retired[store.Identity().ID] = store
	}
}

// sharesOS reports whether a path lies on one file system with the OS.
func (m *Manager) sharesOS(path string) (bool, error) {
	pool, err := volume.FileSystemID(path)
	if err != nil {
		return false, err
	}
	for _, osPath := range m.opts.OSPaths {
		other, err := volume.FileSystemID(osPath)
		if errors.Is(err, unix.ENOENT) {
			continue // this node has no such thing
		}
		if err != nil {
			return false, err
		}
		if other == pool {
			return true, nil
		}
	}
	return false, nil
}

// removers run one [volume.Store.Run] per open pool.
type removers struct {
	running map[*volume.Store]context.CancelFunc
	group   sync.WaitGroup
}

func (r *removers) follow(ctx context.Context, stores []*volume.Store) {
	for store, cancel := range r.running {
		if !slices.Contains(stores, store) {
			cancel()
			delete(r.running, store)
		}
	}
	for _, store := range stores {
		if r.running[store] != nil {
			continue
		}
		storeCtx, cancel := context.WithCancel(ctx)
		r.running[store] = cancel
		r.group.Go(func() { store.Run(storeCtx) })
	}
}

func (r *removers) wait() {
	for _, cancel := range r.running {
		cancel()
	}
	r.group.Wait()
}
