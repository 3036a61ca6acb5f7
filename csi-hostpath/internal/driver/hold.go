package driver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"podvirt.dev/csi-hostpath/internal/filesystem"
	"podvirt.dev/csi-hostpath/internal/mounts"
	"podvirt.dev/csi-hostpath/internal/quiesce"
	"podvirt.dev/csi-hostpath/internal/volume"
)

// QuiescedSnapshot says how a new snapshot was made consistent.
type QuiescedSnapshot struct {
	Claim    volume.Claim // of the volume
	Snapshot string       // name
	Content  string       // name of the VolumeSnapshotContent; may be ""
	How      string       // for annotation podvirt.dev/quiesced
	Why      string       // the guest was not frozen
}

// Words for How (storage.md 2.2). QuiescedNone is for no guest, and for one that cannot be frozen; then Why is set.
const (
	QuiescedAgent  = "agent"
	QuiescedNone   = "none"
	QuiescedFailed = "failed"
)

// quiescing is what a class says about guests (storage.md 2.3).
type quiescing struct {
	mode    string // auto, off, required
	timeout time.Duration
}

// Words of parameter quiesce.
const (
	quiesceAuto     = "auto"
	quiesceOff      = "off"
	quiesceRequired = "required"
)

const (
	freezeTimeout    = 10 * time.Second
	minFreezeTimeout = time.Second
	maxFreezeTimeout = time.Minute
)

// users returns who writes a volume now.
func (n *unlockedNode) writers(handle string) ([]publication, error) {
	staged, err := stagings(handle)
	if err != nil {
		return nil, err
	}
	table, err := mounts.Read()
	if err != nil {
		return nil, err
	}
	var writers []publication
	for _, staging := range staged {
		live, err := livePublications(staging, table)
		if err != nil {
			return nil, err
		}
		for _, p := range live {
			if !p.ReadOnly {
				writers = append(writers, p)
			}
		}
	}
	return writers, nil
}

// origin prepares the reading of a volume for a snapshot or a clone: it says whether that can be done now, and how the
// volume is made to stand still. Where blocks cannot be shared nobody may write (ST-029).
func (n *unlockedNode) origin(handle string, v volume.Volume, share bool, q quiescing, told *QuiescedSnapshot) (volume.Hold, error) {
	writers, err := n.writers(handle)
	if err != nil {
		return nil, err
	}
	if len(writers) > 0 && !share {
		return nil, fmt.Errorf("%w: pool cannot share blocks and the volume is in use; stop %s or use a reflink pool", errBusy, writers[0].Pod)
	}
	told.How = QuiescedNone
	return func(ctx context.Context) (func() error, error) {
		thaw, err := n.freezeGuests(ctx, writers, q, told)
		if err != nil {
			return nil, err
		}
		frozen, err := n.freezeMount(handle, v)
		if err != nil {
			return nil, errors.Join(err, thaw())
		}
		return func() error { return errors.Join(frozen(), thaw()) }, nil
	}, nil
}

// freezeGuests freezes the guests of the VMs among the writers.
func (n *unlockedNode) freezeGuests(ctx context.Context, writers []publication, q quiescing, told *QuiescedSnapshot) (func() error, error) {
	var thaws []func(context.Context) error
	thaw := func() error {
		var errs []error
		for _, one := range thaws {
			errs = append(errs, one(context.WithoutCancel(ctx)))
		}
		return errors.Join(errs...)
	}
	if q.mode == quiesceOff || n.opts.Guests == nil {
		return thaw, nil
	}
	for _, writer := range writers {
		one, err := n.opts.Guests.Freeze(ctx, writer.PodUID, q.timeout)
		if err == nil {
			thaws = append(thaws, one)
			told.How = QuiescedAgent
			continue
		}
		if !errors.Is(err, quiesce.ErrNoAgent) {
			told.How = QuiescedFailed
		}
		told.Why = err.Error()
		if q.mode == quiesceRequired {
			return nil, errors.Join(fmt.Errorf("%w: the guest of Pod %s was not frozen: %w", errBusy, writer.Pod, err), thaw())
		}
		klog.FromContext(ctx).Info("The guest was not frozen; what is copied is as after a power cut", "pod", writer.Pod, "err", err)
	}
	return thaw, nil
}

// freezeMount holds back the file system of the volume itself, where it is mounted.
func (n *unlockedNode) freezeMount(handle string, v volume.Volume) (thaw func() error, err error) {
	at, err := mountOf(handle, v)
	if err != nil || at == "" {
		return func() error { return nil }, err
	}
	if err := n.opts.Fault.At("hold.freeze"); err != nil {
		return nil, err
	}
	if err := filesystem.Freeze(at); err != nil {
		return nil, err
	}
	return func() error { return filesystem.Thaw(at) }, nil
}

// mountOf returns where the file system in a volume's image is mounted; "" where it is not.
func mountOf(handle string, v volume.Volume) (string, error) {
	if v.FSType == "" {
		return "", nil
	}
	staged, err := stagings(handle)
	if err != nil {
		return "", err
	}
	table, err := mounts.Read()
	if err != nil {
		return "", err
	}
	for _, staging := range staged {
		if at := filepath.Join(staging, fsDir); mounted(table, at) {
			return at, nil
		}
	}
	return "", nil
}

func mounted(table mounts.Table, at string) bool {
	_, is := table.At(at)
	return is
}

// thawAll lets every file system go on that a killed process left frozen. It runs before calls are answered.
func (n *unlockedNode) thawAll() error {
	for handle, v := range n.opts.Pools.Volumes() {
		at, err := mountOf(handle, v)
		if err != nil {
			return err
		}
		if at == "" {
			continue
		}
		if err := filesystem.Thaw(at); err != nil {
			return err
		}
	}
	return nil
}
