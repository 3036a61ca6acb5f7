package driver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/importer"
	"podvirt.dev/csi-hostpath/internal/volume"
)

func (f *filling) progress() importer.Progress {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

func (f *filling) restartsNow() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.restarts + f.last.Restarts
}

// percent is how far it is, "unknown" where the source tells no length.
func percent(p importer.Progress) string {
	if p.Total <= 0 {
		return "unknown"
	}
	return strconv.FormatFloat(float64(p.Position*1000/p.Total)/10, 'f', 1, 64) + "%"
}

// annotations are what is shown while it runs.
func (f *filling) annotations() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	total := "?"
	if f.last.Total > 0 {
		total = strconv.FormatInt(f.last.Total, 10)
	}
	all := map[string]string{
		api.KeyImportPhase:    f.phase,
		api.KeyImportProgress: percent(f.last),
		api.KeyImportBytes:    fmt.Sprintf("%d/%s %d %.0fB/s", f.last.Position, total, f.last.Written, f.rate),
		api.KeyImportRestarts: strconv.FormatInt(f.restarts+f.last.Restarts, 10),
	}
	if found := f.last.Image; found != nil {
		all[api.KeyImportInfo] = fmt.Sprintf("format=%s,compression=%s", found.Format, found.Compression)
		if found.VirtualSize >= 0 {
			all[api.KeyImportInfo] += ",virtual-size=" + strconv.FormatInt(found.VirtualSize, 10)
		}
	}
	return all
}

// tell writes a state with what is known of the progress.
func (f *filling) tell(ctx context.Context, state ImportState) {
	annotations := f.annotations()
	maps.Copy(annotations, state.Annotations)
	state.Annotations = annotations
	annotations[api.KeyImportMessage] = state.Message
	f.all.claims.ImportState(ctx, f.claim, state)
}

// telling writes the progress now and then until stop is called.
func (f *filling) telling(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(tellEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				f.tick(ctx)
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// tick tells what has changed since the last one.
func (f *filling) tick(ctx context.Context) {
	f.mu.Lock()
	now, changed := f.last, f.last != f.before
	f.rate = float64(now.Transferred-f.before.Transferred) / tellEvery.Seconds()
	f.before = now
	event := ""
	if time.Since(f.event) >= eventEvery && !f.paused {
		event, f.event = "ImportProgress", time.Now()
		if now.Problem != "" {
			event = "ImportRetrying"
		}
	}
	paused := f.paused
	f.mu.Unlock()
	if paused || !changed && event == "" {
		return
	}
	text := percent(now) + " of " + f.source()
	if now.Problem != "" {
		text = now.Problem
	}
	f.tell(ctx, ImportState{Populated: "False", Reason: reasonInProgress, Message: text, Event: event, Warning: now.Problem != ""})
}

// again says that a new attempt begins.
func (f *filling) again(ctx context.Context, err error) {
	f.mu.Lock()
	f.restarts += f.last.Restarts + 1
	f.last, f.before = importer.Progress{}, importer.Progress{}
	f.mu.Unlock()
	f.tell(ctx, ImportState{Populated: "False", Reason: reasonInProgress, Message: err.Error(), Event: "ImportRetrying", Warning: true})
}

// verified says what the source was.
func (f *filling) verified(ctx context.Context, sum string) {
	f.all.mu.Lock()
	f.all.took[f.claim.UID] = ImportReport{Claim: f.claim, Scheme: f.scheme(), Took: time.Since(f.since)}
	f.all.mu.Unlock()
	f.mu.Lock()
	f.phase = phaseVerifying
	f.mu.Unlock()
	f.tell(ctx, ImportState{
		Annotations: map[string]string{api.KeyImportDigest: sum, api.KeyImportProgress: "100.0%"},
		Populated:   "False", Reason: reasonInProgress, Message: "all is there and being made durable",
	})
}

// done says that the volume exists.
func (i *imports) done(ctx context.Context, claim volume.Claim) {
	i.mu.Lock()
	delete(i.failed, claim.UID)
	i.mu.Unlock()
	const text = "the content is complete"
	i.claims.ImportState(ctx, claim, ImportState{
		Annotations: map[string]string{api.KeyImportPhase: phaseSucceeded, api.KeyImportMessage: text, api.KeyImportProgress: "100.0%"},
		Populated:   "True", Reason: reasonCompleted, Message: text, Event: "ImportSucceeded",
	})
}

// waiting is what a caller is told that comes before it is done.
func (i *imports) waiting(claim volume.Claim) string {
	i.mu.Lock()
	f := i.running[claim.UID]
	i.mu.Unlock()
	if f == nil {
		return "importing " + claim.String()
	}
	return f.name() + ": " + percent(f.progress())
}

// ClaimState is what an import must know of its claim while it runs.
type ClaimState struct {
	Gone   bool // it was deleted
	Paused bool // its owner wants the import to wait
}

// look ends the imports of claims that are gone, forgets what was remembered of them, and lets others wait or go on.
func (i *imports) look(ctx context.Context, at func(volume.Claim) ClaimState) {
	i.mu.Lock()
	running := slices.Collect(maps.Values(i.running))
	for uid, before := range i.failed {
		if at(before.claim).Gone {
			delete(i.failed, uid)
		}
	}
	for uid, report := range i.took {
		if at(report.Claim).Gone {
			delete(i.took, uid)
		}
	}
	i.mu.Unlock()
	for _, f := range running {
		now := at(f.claim)
		if now.Gone {
			f.stop(errClaimGone)
			continue
		}
		f.pause(ctx, now.Paused)
	}
}

// pause halts an import, or lets it go on. What it has read stays: as long as this driver lives it goes on at the byte.
func (f *filling) pause(ctx context.Context, paused bool) {
	f.mu.Lock()
	if f.paused == paused || f.phase != phaseFetching && f.phase != phasePaused {
		f.mu.Unlock()
		return
	}
	f.paused = paused
	f.phase = map[bool]string{true: phasePaused, false: phaseFetching}[paused]
	f.halted()
	f.mu.Unlock()
	if paused {
		f.all.turns.leave(f.turn)
		f.tell(ctx, f.pausedState())
		return
	}
	f.all.turns.retake(f.turn)
	f.tell(ctx, ImportState{Populated: "False", Reason: reasonInProgress, Message: "going on", Event: "ImportResumed"})
}

func (f *filling) pausedState() ImportState {
	return ImportState{Populated: "False", Reason: reasonPaused, Message: "paused by " + api.KeyImportPaused, Event: "ImportPaused"}
}

// halted makes the confined process do as the claim says; with f.mu held.
func (f *filling) halted() {
	if f.halt == nil {
		return
	}
	if err := f.halt(f.paused); err != nil {
		klog.Background().V(2).Info("The import has ended before it could be halted", "claim", f.claim.String(), "err", err)
	}
}

// runs is told how to halt the confined process; nil: it has ended.
func (f *filling) runs(halt func(bool) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.halt = halt; f.paused {
		f.halted()
	}
}

// Forget looks at the claims of all imports: it ends those whose claims do not exist any more, removes what there is of
// their volumes, and lets others pause or go on.
func (d *Driver) Forget(ctx context.Context, at func(volume.Claim) ClaimState) {
	d.controller.imports.look(ctx, at)
	for store, begun := range d.opts.Pools.Filling() {
		for _, v := range begun {
			if !at(v.Claim).Gone {
				continue
			}
			if err := d.controller.discard(store, v); err != nil {
				klog.FromContext(ctx).Info("What is left of an import is not removed; it will be tried again", "volume", v.Dir, "err", err)
			}
		}
	}
}

// discard removes an unfinished volume, unless somebody works on it.
func (c *controller) discard(store *volume.Store, v volume.Volume) error {
	if busy := c.names.try(v.Name); busy != nil {
		return nil
	}
	defer c.names.release(v.Name)
	if c.works.has("import " + v.Name) {
		return nil
	}
	return store.Discard(v.UUID)
}

// ImportReport is an import as metrics show it.
type ImportReport struct {
	Claim    volume.Claim
	Scheme   string
	Took     time.Duration // 0: it runs
	Bytes    int64         // that came over the network
	Ratio    float64       // 0 to 1; -1 where the source tells no length
	Restarts int64
}

func (f *filling) scheme() string {
	scheme, _, _ := strings.Cut(f.asked.Source, ":")
	return scheme
}

// Imports returns the imports that run, and those that succeeded under this driver while their claims exist.
func (d *Driver) Imports() []ImportReport {
	i := d.controller.imports
	i.mu.Lock()
	defer i.mu.Unlock()
	all := slices.Collect(maps.Values(i.took))
	for _, f := range i.running {
		now := f.progress()
		shown := ImportReport{Claim: f.claim, Scheme: f.scheme(), Bytes: now.Transferred, Ratio: -1, Restarts: f.restartsNow()}
		if now.Total > 0 {
			shown.Ratio = float64(now.Position) / float64(now.Total)
		}
		all = append(all, shown)
	}
	return all
}
