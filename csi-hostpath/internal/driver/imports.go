package driver

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/importer"
	"podvirt.dev/csi-hostpath/internal/volume"
)

// ImportSettings are what the cluster says about imports.
type ImportSettings struct {
	api.ImportConfig
	Cluster []importer.Range
}

// Imports is the driver's way to claims that are filled from outside.
type Imports interface {
	// ImportObjects reads what the annotations of a claim name. Its error is for the claim's owner.
	ImportObjects(ctx context.Context, claim volume.Claim, asked *api.Import) (importer.Objects, error)
	ImportSettings(ctx context.Context) (ImportSettings, error)
	// ImportState tells the readers of a claim how its import goes. It may fail silently: the next state follows.
	ImportState(ctx context.Context, claim volume.Claim, state ImportState)
}

// ImportState is what is written on a claim (storage.md 2.2). Empty fields are left as they are.
type ImportState struct {
	Annotations map[string]string
	Populated   string // status of the condition: True, False
	Reason      string // of the condition
	Message     string
	Event       string // reason of an event with the message; empty: none
	Warning     bool
}

// Phases and reasons of storage.md 2.2.
const (
	phasePending   = "Pending"
	phaseFetching  = "Fetching"
	phaseVerifying = "Verifying"
	phasePaused    = "Paused"
	phaseSucceeded = "Succeeded"
	phaseFailed    = "Failed"

	reasonInProgress = "InProgress"
	reasonCompleted  = "Completed"
	reasonFailed     = "Failed"
	reasonInvalid    = "InvalidRequest"
	reasonNoSpace    = "NoSpace"
	reasonPaused     = "Paused"
)

const (
	// tellEvery is how often a claim is written while its import runs, eventEvery how often that makes an event.
	tellEvery  = 2 * time.Second
	eventEvery = time.Minute
	// defaultImports is how many imports run at once where the configuration does not say, and how many of a namespace.
	defaultImports, defaultOfNamespace = 4, 2
	// maxCrashes is how often the confined process may end unexpectedly before its image is given up.
	maxCrashes = 3
)

// Pauses between attempts that the confined process cannot make by itself.
const (
	firstAttemptPause = time.Second
	lastAttemptPause  = time.Minute
)

// errClaimGone ends an import whose claim was deleted.
var errClaimGone = errors.New("the claim was deleted")

// rejection is an error that removes the volume that was to be filled. It is [volume.ErrRejected].
type rejection struct{ error }

// Is makes a rejection [volume.ErrRejected].
func (rejection) Is(target error) bool { return target == volume.ErrRejected }

// Unwrap returns the reason.
func (r rejection) Unwrap() error { return r.error }

// imports are the running ones and what is remembered of those that failed.
type imports struct {
	claims Imports
	tuning importer.Tuning

	turns   turns
	mu      sync.Mutex
	running map[string]*filling
	took    map[string]ImportReport // of finished ones, by UID of the claim
	failed  map[string]failed       // by UID of the claim
}

// failed is an import that will not succeed until its claim says something else.
type failed struct {
	asked, text string
	claim       volume.Claim
}

func newImports(claims Imports, tuning importer.Tuning) *imports {
	return &imports{claims: claims, tuning: tuning, running: map[string]*filling{}, failed: map[string]failed{}, took: map[string]ImportReport{}}
}

// filling is one import of this driver.
type filling struct {
	all      *imports
	claim    volume.Claim
	asked    *api.Import
	digest   string // of what is asked
	objects  importer.Objects
	settings ImportSettings
	stop     context.CancelCauseFunc
	turn     *turn
	since    time.Time // when it began, perhaps under an earlier driver

	mu       sync.Mutex
	phase    string
	paused   bool
	halt     func(bool) error // nil: no process runs
	last     importer.Progress
	restarts int64 // of earlier attempts
	rate     float64
	before   importer.Progress // at the last tick
	event    time.Time
	ignored  string // digest of annotations that came too late
}

// prepare reads what a claim asks for; nil: nothing is to be imported. Mistakes are told on the claim once.
func (i *imports) prepare(ctx context.Context, claim volume.Claim, annotations map[string]string, hasSource bool) (*filling, error) {
	if running := i.goingOn(ctx, claim, annotations); running != nil {
		return running, nil
	}
	asked, errs := api.ParseImport(annotations, hasSource)
	if err := errs.Err(); err != nil {
		return nil, i.refuse(ctx, claim, digestOf(annotations), reasonInvalid, err.Error())
	}
	if asked == nil {
		return nil, nil //nolint:nilnil // nothing to import
	}
	if i.claims == nil || claim.UID == "" {
		return nil, invalid(fmt.Errorf("%s: %q: imports need an API server and the name of the claim", api.KeyImportSource, asked.Source))
	}
	f := &filling{all: i, claim: claim, asked: asked, digest: digestOf(annotations), phase: phasePending, paused: asked.Paused}
	if text := i.known(f); text != "" {
		return nil, importRefusal(text)
	}
	var err error
	if f.settings, err = i.claims.ImportSettings(ctx); err != nil {
		return nil, fmt.Errorf("reading the settings of imports: %w", err)
	}
	if text := f.policy().Unverified(asked.Source); asked.Insecure && text != "" {
		return nil, i.refuse(ctx, claim, "", reasonInvalid, fmt.Sprintf("%s: %q: %s", api.KeyImportInsecure, "true", text))
	}
	f.objects, err = i.claims.ImportObjects(ctx, claim, asked)
	if err != nil {
		return nil, i.refuse(ctx, claim, "", reasonInvalid, err.Error())
	}
	return f, nil
}

// goingOn returns the running import of a claim. What the claim says by now does not matter to it.
func (i *imports) goingOn(ctx context.Context, claim volume.Claim, annotations map[string]string) *filling {
	i.mu.Lock()
	f := i.running[claim.UID]
	i.mu.Unlock()
	if f == nil || claim.UID == "" {
		return nil
	}
	now := digestOf(annotations)
	f.mu.Lock()
	ignored := now != f.digest && now != f.ignored
	f.ignored = now
	f.mu.Unlock()
	if ignored {
		f.tell(ctx, ImportState{Message: "the import goes on with what the claim said when it began", Event: "ImportChangeIgnored", Warning: true})
	}
	return f
}

func (f *filling) policy() importer.Policy {
	return importer.Policy{Allow: f.settings.Allow, Deny: f.settings.Deny, Insecure: f.settings.Insecure, Cluster: f.settings.Cluster}
}

// digestOf tells one set of import annotations from another. Nothing of what it digests can be read from it, and it is
// all that a pool learns of a source.
func digestOf(annotations map[string]string) string {
	sum := sha256.New()
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if asksFor(key) {
			fmt.Fprintf(sum, "%q=%q\n", key, annotations[key])
		}
	}
	return hex.EncodeToString(sum.Sum(nil)[:16])
}

// asksFor says whether an annotation is one of those that people write and that say what is imported.
func asksFor(key string) bool {
	written := []string{
		api.KeyImportPaused,
		api.KeyImportPhase, api.KeyImportProgress, api.KeyImportBytes, api.KeyImportMessage, api.KeyImportRestarts, api.KeyImportDigest, api.KeyImportInfo,
	}
	return strings.HasPrefix(key, api.Prefix+"import-") && !slices.Contains(written, key)
}

// known returns why the same import failed before.
func (i *imports) known(f *filling) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	if before := i.failed[f.claim.UID]; before.asked == f.digest {
		return before.text
	}
	return ""
}

// refuse tells the claim why there is no import, and remembers it for as long as the claim asks for the same; the empty
// digest is not remembered, since something else than the claim may change.
func (i *imports) refuse(ctx context.Context, claim volume.Claim, digest, reason, text string) error {
	event := map[string]string{reasonInvalid: "InvalidRequest", reasonNoSpace: "NoSpace"}[reason]
	i.mu.Lock()
	told := i.failed[claim.UID].text == text
	i.failed[claim.UID] = failed{asked: cmp.Or(digest, "nothing"), text: text, claim: claim}
	i.mu.Unlock()
	if !told && i.claims != nil && claim.Name != "" {
		i.claims.ImportState(ctx, claim, ImportState{
			Annotations: map[string]string{api.KeyImportPhase: phaseFailed, api.KeyImportMessage: text},
			Populated:   "False", Reason: reason, Message: text, Event: cmp.Or(event, "ImportFailed"), Warning: true,
		})
	}
	return importRefusal(text)
}

// importRefusal is an error for the owner of a claim, whose text stands alone. It is errImport.
type importRefusal string

// Error returns the text.
func (r importRefusal) Error() string { return string(r) }

// Is makes a refusal errImport.
func (importRefusal) Is(target error) bool { return target == errImport }

// fill is the [volume.Fill] of a claim.
func (f *filling) fill(ctx context.Context, into volume.Filling) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	f.stop = stop
	f.all.mu.Lock()
	f.all.running[f.claim.UID] = f
	f.all.mu.Unlock()
	defer func() {
		f.all.mu.Lock()
		defer f.all.mu.Unlock()
		delete(f.all.running, f.claim.UID)
	}()
	f.turn = &turn{
		namespace: f.claim.Namespace, onNode: cmp.Or(f.settings.MaxPerNode, defaultImports),
		ofNamespace: cmp.Or(f.settings.MaxPerNamespace, defaultOfNamespace),
	}
	if err := f.all.turns.enter(ctx, f.turn); err != nil {
		return f.ended(ctx, err)
	}
	defer f.all.turns.leave(f.turn)
	f.since = into.Since
	if f.asked.Deadline > 0 {
		var cancel context.CancelFunc
		late := fmt.Errorf("not done in %s", f.asked.Deadline)
		ctx, cancel = context.WithDeadlineCause(ctx, into.Since.Add(f.asked.Deadline), late)
		defer cancel()
	}
	return f.ended(ctx, f.attempts(ctx, into))
}

// ended decides what the end of an import means for its volume.
func (f *filling) ended(ctx context.Context, err error) error {
	var refused importer.Refused
	cause := context.Cause(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(cause, errClaimGone):
		return rejection{errClaimGone}
	case cause != nil && !errors.Is(cause, context.Canceled): // the deadline
		text := fmt.Sprintf("%s: %v", f.name(), cause)
		if problem := f.progress().Problem; problem != "" {
			text += "; " + problem
		}
		return rejection{f.all.refuse(context.WithoutCancel(ctx), f.claim, f.digest, reasonFailed, text)}
	case errors.As(err, &refused):
		return rejection{f.all.refuse(ctx, f.claim, f.digest, reasonFailed, refused.Error())}
	}
	return err
}

// name is what people know the import by.
func (f *filling) name() string { return "importing " + f.claim.String() }

// attempts fetches until it is done or there is no point in going on.
func (f *filling) attempts(ctx context.Context, into volume.Filling) error {
	start, err := f.begin(ctx, into)
	if err != nil {
		return err
	}
	stopTelling := f.telling(ctx)
	defer stopTelling()
	pause, crashes := firstAttemptPause, 0
	for {
		sum, err := importer.Run(ctx, f.request(into, start))
		if err == nil {
			f.verified(ctx, sum)
			return nil
		}
		if start, err = f.next(ctx, into, err, &crashes); err != nil {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		pause = min(2*pause, lastAttemptPause)
	}
}

// next decides whether another attempt is worth it, and where it starts.
func (f *filling) next(ctx context.Context, into volume.Filling, cause error, crashes *int) (*importer.Checkpoint, error) {
	_, refused := errors.AsType[importer.Refused](cause)
	if errors.Is(cause, unix.ENOSPC) || errors.Is(cause, unix.EDQUOT) {
		cause = importer.ErrNoSpace // for the journal; it says so for the volume
	}
	switch {
	case ctx.Err() != nil, refused:
		return nil, cause
	case errors.Is(cause, importer.ErrChanged):
		f.again(ctx, cause)
		return nil, into.Reset()
	case errors.Is(cause, importer.ErrNoSpace):
		f.tell(ctx, ImportState{Populated: "False", Reason: reasonNoSpace, Message: cause.Error(), Event: "NoSpace", Warning: true})
	default:
		klog.FromContext(ctx).Error(cause, "An import failed", "claim", f.claim.String())
		if *crashes++; *crashes == maxCrashes {
			return nil, importer.Refused(cause.Error())
		}
	}
	f.again(ctx, cause)
	start, err := f.point(into)
	if err == nil && start == nil {
		err = into.Reset()
	}
	return start, err
}

// begin finds where to start and says so.
func (f *filling) begin(ctx context.Context, into volume.Filling) (*importer.Checkpoint, error) {
	start, err := f.point(into)
	if err != nil {
		return nil, err
	}
	event, text := "ImportStarted", f.source()
	if start == nil {
		if err := into.Reset(); err != nil {
			return nil, err
		}
	} else {
		event, text = "ImportResumed", fmt.Sprintf("going on at byte %d", start.Offset)
	}
	f.mu.Lock()
	f.phase = phaseFetching
	paused := f.paused
	if paused {
		f.phase = phasePaused
	}
	f.mu.Unlock()
	weak := strings.HasPrefix(f.asked.Checksum, "md5:") || strings.HasPrefix(f.asked.Checksum, "sha1:")
	if weak {
		text += "; md5 and sha1 do not keep out who means harm: use sha256"
	}
	f.tell(ctx, ImportState{Populated: "False", Reason: reasonInProgress, Message: text, Event: event, Warning: weak})
	if paused {
		f.all.turns.leave(f.turn)
		f.tell(ctx, f.pausedState())
	}
	return start, nil
}

// source is where the content comes from, without the query, which may hold a key.
func (f *filling) source() string {
	source, _, _ := strings.Cut(f.asked.Source, "?")
	return source
}

// point reads the journal. One that is of something else, or that cannot be read, counts for nothing.
func (f *filling) point(into volume.Filling) (*importer.Checkpoint, error) {
	data, err := into.Journal()
	if err != nil || data == nil {
		return nil, err
	}
	var noted journal
	if json.Unmarshal(data, &noted) != nil || noted.Asked != f.digest || noted.Point.Offset <= 0 || noted.Point.Offset > into.Size {
		return nil, nil //nolint:nilnil // begin anew
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.restarts = max(f.restarts, noted.Restarts)
	return &noted.Point, nil
}

// journal is the content of fill.json: nothing in it is secret.
type journal struct {
	Asked    string              `json:"asked"`
	Restarts int64               `json:"restarts"`
	Point    importer.Checkpoint `json:"point"`
}

func (f *filling) request(into volume.Filling, start *importer.Checkpoint) importer.Request {
	return importer.Request{
		Import: f.asked, Objects: f.objects, Size: into.Size, Output: into.Disk, Start: start,
		Memory: f.settings.Memory, Bandwidth: f.settings.Bandwidth, NoLandlock: f.settings.NoLandlock, Dial: f.policy().Dial, Tuning: f.all.tuning,
		Checkpoint: func(c importer.Checkpoint) error {
			data, err := json.Marshal(journal{Asked: f.digest, Restarts: f.restartsNow() + 1, Point: c})
			if err != nil {
				return err
			}
			return into.Note(data)
		},
		Runs: f.runs,
		Progress: func(p importer.Progress) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.last = p
		},
	}
}
