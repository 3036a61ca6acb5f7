package pool

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"podvirt.dev/csi-hostpath/internal/volume"
)

// takeIn is take for the pool of a store. One that is not configured any more gives no room.
func (m *Manager) takeIn(store *volume.Store, name string, bytes int64) (done func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.pools {
		if e.store == store && e.problem == nil {
			return m.take(e, name, bytes)
		}
	}
	return nil, fmt.Errorf("%w: %s is not configured any more, nothing new is made there", volume.ErrNotReady, store.Path())
}

// TakeSnapshot takes a snapshot of a volume, or returns the equal one of an earlier call. The name is unique on the node.
func (m *Manager) TakeSnapshot(ctx context.Context, handle string, r volume.SnapshotRequest) (string, volume.Volume, error) {
	for taken, snapshot := range m.Snapshots() {
		if snapshot.Name == r.Name && snapshot.Problem == nil && OriginHandle(taken, snapshot) != handle {
			return "", volume.Volume{}, fmt.Errorf("%w: snapshot %s is of %s", volume.ErrIncompatible, r.Name, OriginHandle(taken, snapshot))
		}
	}
	of, store, err := m.Volume(handle)
	if err != nil {
		return "", volume.Volume{}, err
	}
	r.Volume = of.UUID
	done := func() {}
	if _, err := store.FindSnapshot(r); errors.Is(err, volume.ErrNotFound) {
		if done, err = m.takeIn(store, r.Name, of.Allocated()); err != nil {
			return "", volume.Volume{}, err
		}
	}
	defer done()
	made, err := store.TakeSnapshot(ctx, r)
	if err != nil {
		return "", volume.Volume{}, err
	}
	return Handle(store, made), made, nil
}

// OriginHandle is the handle of what a volume or snapshot with the given handle was made of; "" for none.
func OriginHandle(handle string, v volume.Volume) string {
	poolID, _, _ := strings.Cut(handle, "/")
	_, id, found := strings.Cut(v.Source, ":")
	if !found {
		return ""
	}
	return poolID + "/" + id
}

// Expand lets a volume grow; room for it is taken first. mountedAt is where its file system is mounted, or "".
func (m *Manager) Expand(ctx context.Context, handle string, size int64, mountedAt string) (volume.Volume, error) {
	found, store, err := m.Volume(handle)
	if err != nil || found.Size >= volume.Round(size) {
		return found, err
	}
	wanted := volume.Request{Size: size, FSType: found.FSType, Content: found.Content}
	// The name of no volume: the volume itself is counted already, with its old size.
	done, err := m.takeIn(store, "growth of "+found.UUID, wanted.Promise()-found.Promised)
	if err != nil {
		return volume.Volume{}, err
	}
	defer done()
	return store.Expand(ctx, found.UUID, size, mountedAt)
}

// Snapshot returns the snapshot of a handle and its pool; errors are those of [Manager.Volume].
func (m *Manager) Snapshot(handle string) (volume.Volume, *volume.Store, error) {
	return m.lookup(handle, (*volume.Store).Snapshot)
}

// Snapshots returns the snapshots of all open pools by handle.
func (m *Manager) Snapshots() map[string]volume.Volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[string]volume.Volume{}
	for _, store := range m.stores() {
		for _, v := range store.Snapshots() {
			all[Handle(store, v)] = v
		}
	}
	return all
}
