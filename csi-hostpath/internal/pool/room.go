package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"podvirt.dev/csi-hostpath/internal/poolconfig"
	"podvirt.dev/csi-hostpath/internal/volume"
)

// Pool is what the driver needs to know of a pool to make a volume in it.
type Pool struct {
	Name      string
	ID        string
	HardSize  string // image or none
	Abilities volume.Abilities
}

// Handle returns the volume's handle, POOL-ID/UUID (storage.md 2.7).
func Handle(store *volume.Store, v volume.Volume) string { return store.Identity().ID + "/" + v.UUID }

// ByName returns a ready pool; the empty name means the default pool. The error wraps [ErrNoPool] where the node has
// no such pool, else says why the pool cannot serve.
func (m *Manager) ByName(name string) (Pool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, err := m.find(name)
	if err != nil {
		return Pool{}, err
	}
	return Pool{Name: e.spec.Name, ID: e.store.Identity().ID, HardSize: hardSize(e.spec), Abilities: e.store.Abilities()}, nil
}

func hardSize(spec poolconfig.Pool) string {
	if spec.HardSize == poolconfig.HardSizeNone {
		return poolconfig.HardSizeNone
	}
	return poolconfig.HardSizeImage
}

func (m *Manager) find(name string) (*entry, error) {
	for _, e := range m.pools {
		if e.spec.Name != name && (name != "" || !e.spec.Default) {
			continue
		}
		if e.problem != nil {
			return nil, fmt.Errorf("pool %s: %w", e.spec.Name, e.problem)
		}
		return e, nil
	}
	here := strings.Join(slices.Sorted(maps.Keys(m.pools)), ", ")
	if here == "" {
		here = "none"
	}
	if name == "" {
		return nil, fmt.Errorf("%w: node %s has no default pool; pools here: %s", ErrNoPool, m.opts.Node, here)
	}
	return nil, fmt.Errorf("%w: node %s has no pool %q; pools here: %s", ErrNoPool, m.opts.Node, name, here)
}

// Volume returns the volume of a handle and its pool. The error wraps [volume.ErrNotFound] where the pool is open and
// has no such volume, [volume.ErrNotReady] where the pool is not there.
func (m *Manager) Volume(handle string) (volume.Volume, *volume.Store, error) {
	return m.lookup(handle, (*volume.Store).Get)
}

func (m *Manager) lookup(
	handle string, get func(*volume.Store, string) (volume.Volume, error),
) (volume.Volume, *volume.Store, error) {
	poolID, id, ok := strings.Cut(handle, "/")
	if !ok || len(poolID) != 16 {
		return volume.Volume{}, nil, fmt.Errorf("%w: %q is no handle of this driver", volume.ErrNotFound, handle)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, store := range m.stores() {
		if store.Identity().ID != poolID {
			continue
		}
		if err := store.Check(); err != nil {
			return volume.Volume{}, nil, err
		}
		found, err := get(store, id)
		return found, store, err
	}
	return volume.Volume{}, nil, fmt.Errorf("%w: node %s has no pool with id %s", volume.ErrNotReady, m.opts.Node, poolID)
}

// Volumes returns the volumes of all open pools by handle.
func (m *Manager) Volumes() map[string]volume.Volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[string]volume.Volume{}
	for _, store := range m.stores() {
		for _, v := range store.List() {
			all[Handle(store, v)] = v
		}
	}
	return all
}

// Create makes a volume in a pool, or returns the equal one of an earlier call. Room is taken before the work begins,
// so that creations running at once never get more than there is.
func (m *Manager) Create(ctx context.Context, poolName string, r volume.Request) (string, volume.Volume, error) {
	store, done, err := m.reserve(poolName, r)
	if err != nil {
		return "", volume.Volume{}, err
	}
	defer done()
	made, err := store.Create(ctx, r)
	if err != nil {
		return "", volume.Volume{}, err
	}
	return Handle(store, made), made, nil
}

// reserve takes room for a volume until done is called; by then the volume counts itself, or was not made.
func (m *Manager) reserve(poolName string, r volume.Request) (store *volume.Store, done func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, err := m.find(poolName)
	if err != nil {
		return nil, nil, err
	}
	_, err = e.store.Find(r)
	switch {
	case !errors.Is(err, volume.ErrNotFound):
		return e.store, func() {}, err
	case e.store.Begun(r.Name): // it has its room
		return e.store, func() {}, nil
	}
	done, err = m.take(e, r.Name, r.Promise())
	return e.store, done, err
}

// take reserves bytes in a pool under a name until done is called. The caller holds mu.
func (m *Manager) take(e *entry, name string, bytes int64) (done func(), err error) {
	room, err := m.room(e)
	if err != nil {
		return nil, err
	}
	if bytes > room.Available {
		return nil, fmt.Errorf("%w: %d bytes are needed, pool %s on node %s has %d of %d left to promise",
			volume.ErrNoSpace, bytes, e.spec.Name, m.opts.Node, room.Available, room.Size)
	}
	reserved := &reservation{store: e.store, name: name, bytes: bytes}
	m.inflight[reserved] = struct{}{}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.inflight, reserved)
	}, nil
}

// Filling returns the volumes that are not whole yet, each with its pool.
func (m *Manager) Filling() map[*volume.Store][]volume.Volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[*volume.Store][]volume.Volume{}
	for _, store := range m.stores() {
		if found := store.Filling(); len(found) > 0 {
			all[store] = found
		}
	}
	return all
}

// Room are the bytes of a pool. Two pools on one file system show the same room: it is there once (ST-001).
type Room struct {
	Size      int64 // of the file system
	Free      int64 // as df shows it
	Limit     int64 // size times overcommit
	Promised  int64 // to all volumes on the file system
	Foreign   int64 // occupied by what is none of the volumes
	Reserved  int64 // never promised
	Available int64 // the largest volume that can be made now
}

// Room returns the room of a ready pool.
func (m *Manager) Room(name string) (Room, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, err := m.find(name)
	if err != nil {
		return Room{}, err
	}
	return m.room(e)
}

// room follows ST-010: min(size, overcommit × size - promised) - reserve, less what foreign files occupy.
func (m *Manager) room(e *entry) (Room, error) {
	own, err := e.store.Usage()
	if err != nil {
		return Room{}, err
	}
	room := Room{Size: own.Size, Free: own.Free}
	room.Limit = int64(e.spec.Overcommit * float64(own.Size))
	room.Reserved = e.spec.Reserve.Of(own.Size)
	if e.sharesOS {
		room.Reserved = max(room.Reserved, own.Total*sharedReserve/100)
	}
	var allocated int64
	for _, store := range m.stores() {
		if store.FileSystem() != e.store.FileSystem() {
			continue
		}
		usage, err := store.Usage()
		if err != nil {
			return Room{}, err
		}
		room.Promised += usage.Promised
		for r := range m.inflight {
			// A volume that exists by now counts itself; its reservation ends a moment later.
			if r.store == store && !usage.Counts(r.name) {
				room.Promised += r.bytes
			}
		}
		allocated += usage.Allocated
	}
	room.Foreign = max(0, own.Size-own.Free-allocated)
	room.Available = max(0, min(room.Size, room.Limit-room.Promised)-room.Reserved-room.Foreign)
	return room, nil
}

// Report is one pool in the annotation podvirt.dev/pools (storage.md 2.7).
type Report struct {
	Name       string  `json:"name"`
	ID         string  `json:"id,omitempty"`
	Path       string  `json:"path,omitempty"`
	Ready      bool    `json:"ready"`
	Message    string  `json:"message,omitempty"`
	FileSystem string  `json:"fileSystem,omitempty"`
	Reflink    bool    `json:"reflink"`
	DirectIO   bool    `json:"directIO"`
	HardSize   string  `json:"hardSize,omitempty"`
	SharesOS   bool    `json:"sharesOS,omitempty"`
	Default    bool    `json:"default,omitempty"`
	Overcommit float64 `json:"overcommit,omitempty"`
	Size       int64   `json:"size"`
	Free       int64   `json:"free"`
	Promised   int64   `json:"promised"`
	Reserved   int64   `json:"reserved"`
	Available  int64   `json:"available"`
}

// Reports describes the configured pools, ordered by name.
func (m *Manager) Reports() []Report {
	m.mu.Lock()
	defer m.mu.Unlock()
	reports := []Report{}
	for _, name := range slices.Sorted(maps.Keys(m.pools)) {
		e := m.pools[name]
		report := Report{
			Name: name, Path: e.spec.Path, Ready: e.problem == nil, HardSize: hardSize(e.spec), SharesOS: e.sharesOS,
			Default: e.spec.Default, Overcommit: e.spec.Overcommit,
		}
		if e.problem != nil {
			report.Message = e.problem.Error()
		}
		if e.store != nil {
			report.ID = e.store.Identity().ID
			abilities := e.store.Abilities()
			report.FileSystem, report.Reflink, report.DirectIO = abilities.FileSystem, abilities.Reflink, abilities.DirectIO
		}
		if e.problem == nil {
			if room, err := m.room(e); err == nil {
				report.Size, report.Free, report.Promised = room.Size, room.Free, room.Promised
				report.Reserved, report.Available = room.Reserved, room.Available
			}
		}
		reports = append(reports, report)
	}
	return reports
}
