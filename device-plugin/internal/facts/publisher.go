package facts

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/latest"
	"podvirt.dev/device-plugin/internal/node"
)

const (
	firstRetry = time.Second
	lastRetry  = time.Minute
	never      = time.Duration(math.MaxInt64)
)

// Reasons of Events on the Node (scheduling.md 2.8).
const (
	ReasonChanged  = "FactsChanged"
	ReasonStale    = "FactsStale"
	ReasonSkip     = "InvalidSkipNode"
	ReasonObsolete = "HostModelObsolete"
)

// Writer writes on our own Node; [node.Client] is one.
type Writer interface {
	// Apply makes exactly these annotations and labels ours.
	Apply(ctx context.Context, annotations, labels map[string]string) error
	// Event tells people something about the Node.
	Event(ctx context.Context, uid types.UID, warning bool, reason, message string) error
	// Untaint takes all taints with a key off the Node, and says whether there was one.
	Untaint(ctx context.Context, key string) (bool, error)
}

// Observer hears of every write, for metrics: desired is what now stands on the Node, changed are the annotations that differ.
type Observer interface {
	FactsWritten(desired Desired, changed []string)
}

// Settings is what publishing takes from podvirt-config.
type Settings struct {
	Known       bool          // false: podvirt-config was not seen yet, and nothing is written
	Emulation   bool          // VMs may run without KVM
	MinInterval time.Duration // shortest time between two writes
	Obsolete    []string      // cpu.obsolete-models as written
	ModelLabels bool          // a label for each CPU model: cpu.labels
	Untaint     bool          // take off the start-up taint when the facts are there
}

// Publisher keeps the Node up to date; all members of its options are required.
type Publisher struct {
	Options

	lastWrite time.Time
	retry     time.Duration
	told      map[string]string // last problem told, by reason, so that each is told once
	ready     types.UID         // of the Node whose start-up taint was looked for
}

// Options are what a [Publisher] needs.
type Options struct {
	Writer   Writer
	Observer Observer
	Boot     string
	View     *latest.Value[node.View]
	Snapshot *latest.Value[Snapshot]
	Settings *latest.Value[Settings]
}

// NewPublisher returns a publisher that has written nothing yet.
func NewPublisher(options Options) *Publisher {
	return &Publisher{Options: options, told: map[string]string{}}
}

// Run publishes until ctx ends: when something changed, at most once per interval, never on a timer alone.
func (p *Publisher) Run(ctx context.Context) {
	for ctx.Err() == nil {
		view, viewChanged := p.View.Get()
		snapshot, snapshotChanged := p.Snapshot.Get()
		settings, settingsChanged := p.Settings.Get()

		again := time.NewTimer(p.step(ctx, view, snapshot, settings))
		select {
		case <-ctx.Done():
		case <-viewChanged:
		case <-snapshotChanged:
		case <-settingsChanged:
		case <-again.C:
		}
		again.Stop()
	}
}

// step writes once if the Node is not as it should be, and returns after which time to look again, which is never
// unless something waits to be written.
func (p *Publisher) step(ctx context.Context, view node.View, snapshot Snapshot, settings Settings) time.Duration {
	if view.UID == "" || !settings.Known || p.skipped(ctx, view) {
		return never
	}
	p.complain(ctx, view, snapshot)
	known := p.judge(ctx, view, snapshot.Or(FromAnnotations(view.Annotations, p.Boot)), settings)
	desired, err := Desire(known, view.Annotations, settings.Emulation)
	if err != nil {
		klog.FromContext(ctx).Error(err, "Encoding facts")
		return never
	}
	if settings.ModelLabels && known.CPU != nil {
		if skipped := desired.addModels(known.CPU, settings.Obsolete); len(skipped) > 0 {
			klog.FromContext(ctx).V(2).Info("Models whose names are no label keys have no label", "models", skipped)
		}
	}
	if desired.Equal(view.Annotations, view.Labels) {
		if settings.Untaint && known.CPU != nil && p.ready != view.UID {
			return p.untaint(ctx, view)
		}
		p.retry = 0
		return never
	}
	if wait := settings.MinInterval - time.Since(p.lastWrite); wait > 0 && !p.lastWrite.IsZero() {
		return wait
	}
	p.lastWrite = time.Now()
	if err := p.Writer.Apply(ctx, desired.Annotations, desired.Labels); err != nil {
		p.retry = min(max(2*p.retry, firstRetry), lastRetry)
		klog.FromContext(ctx).Error(err, "The facts are not on the Node yet", "retryAfter", p.retry.String())
		return max(p.retry, settings.MinInterval)
	}
	p.retry = 0
	p.tell(ctx, view, known, desired)
	return never
}

// untaint lets VMs come to a new node: its facts are there. Who made the node puts the taint there before the plugin runs,
// so one look is enough.
func (p *Publisher) untaint(ctx context.Context, view node.View) time.Duration {
	removed, err := p.Writer.Untaint(ctx, api.TaintNotReady)
	if err != nil {
		p.retry = min(max(2*p.retry, firstRetry), lastRetry)
		klog.FromContext(ctx).Error(err, "The start-up taint is still there", "retryAfter", p.retry.String())
		return p.retry
	}
	p.retry, p.ready = 0, view.UID
	if removed {
		klog.FromContext(ctx).Info("Took the start-up taint off", "taint", api.TaintNotReady)
	}
	return never
}

// tell logs a write, counts it, and raises an Event if models or accelerator changed.
func (p *Publisher) tell(ctx context.Context, view node.View, known Snapshot, desired Desired) {
	var changed []string
	for _, key := range []string{api.NodeCPU, api.NodeNUMA} {
		if desired.Annotations[key] != view.Annotations[key] {
			changed = append(changed, key)
		}
	}
	p.Observer.FactsWritten(desired, changed)
	klog.FromContext(ctx).Info("Wrote facts", "annotations", changed, "labels", desired.Labels)
	if text, ok := Change(view.Annotations[api.NodeCPU], known.CPU); ok {
		p.event(ctx, view, false, ReasonChanged, text)
	}
}

// judge adds to the problems that the node's own CPU model is one that VMs must not name, and tells it once: VMs that name
// none run here all the same (scheduling.md SC-016).
func (p *Publisher) judge(ctx context.Context, view node.View, known Snapshot, settings Settings) Snapshot {
	if known.CPU == nil || !(api.Config{CPUObsoleteModels: settings.Obsolete}).Obsolete(known.CPU.Model) {
		return known
	}
	text := fmt.Sprintf("CPU model %s of this node is on the obsolete list (cpu.obsolete-models)", known.CPU.Model)
	p.complainOnce(ctx, view, ReasonObsolete, text)
	if len(known.CPU.Problems) < api.MaxProblems && !slices.Contains(known.CPU.Problems, text) {
		cpu := *known.CPU
		cpu.Problems = append(slices.Clone(cpu.Problems), text)
		known.CPU = &cpu
	}
	return known
}

// skipped obeys the administrator's annotation that keeps us off; another value than true or false is named once.
func (p *Publisher) skipped(ctx context.Context, view node.View) bool {
	switch value, ok := view.Annotations[api.NodeSkip]; {
	case !ok || value == "false":
		return false
	case value == "true":
		return true
	default:
		text := fmt.Sprintf("%s: %q: not one of true, false", api.NodeSkip, value)
		if near := api.Nearest(value, []string{"true", "false"}); near != "" {
			text += "; nearest: " + near
		}
		p.complainOnce(ctx, view, ReasonSkip, text)
		return false
	}
}

// complain tells once what is wrong with what could be read, and that a Node's facts are of another boot.
func (p *Publisher) complain(ctx context.Context, view node.View, snapshot Snapshot) {
	problem := snapshot.Problem
	if problem == nil && snapshot.CPU == nil {
		problem = FromAnnotations(view.Annotations, p.Boot).Problem
	}
	if problem != nil {
		p.complainOnce(ctx, view, ReasonStale, problem.Error())
	}
}

func (p *Publisher) complainOnce(ctx context.Context, view node.View, reason, text string) {
	if p.told[reason] == text {
		return
	}
	p.told[reason] = text
	klog.FromContext(ctx).Info("Problem with the node's facts", "reason", reason, "problem", text)
	p.event(ctx, view, true, reason, text)
}

// event raises an Event; one that cannot be raised is not worth a second attempt.
func (p *Publisher) event(ctx context.Context, view node.View, warning bool, reason, text string) {
	if err := p.Writer.Event(ctx, view.UID, warning, reason, text); err != nil {
		klog.FromContext(ctx).Error(err, "Event not raised", "reason", reason)
	}
}
