package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/virt"
)

// stopKind says what follows a graceful stop.
type stopKind int

const (
	stopForGood   stopKind = iota // the Pod is to end
	stopByVerb                    // ctl shutdown: the container ends, or holds (on-poweroff=hold)
	stopToRestart                 // ctl restart: a new QEMU follows
)

// askAgain is how often the power button is pressed: a guest that boots does not listen yet.
const askAgain = 5 * time.Second

// stopping is a graceful stop under way: every means is tried in order, each with an equal share of the patience.
type stopping struct {
	kind     stopKind
	policy   Policy
	begun    time.Time
	left     []api.ShutdownMeans // the first is the one being tried
	deadline time.Time           // of the means being tried
	end      time.Time           // of the whole stop
	timer    *time.Timer
	done     []chan error // who waits for the end
	asked    []api.ShutdownMeans
	off      bool // the patience is over, and the power cord was pulled
}

// obeyed is the outcome of a stop that the guest went along with.
func (s *stopping) obeyed(now time.Time) Outcome {
	by := "the guest itself"
	if n := len(s.asked); n > 0 {
		by = meansText(s.asked[n-1])
	}
	return Outcome{Reason: api.ReasonStopped, Text: fmt.Sprintf("shutdown by %s took %s", by, span(now.Sub(s.begun)))}
}

func meansText(m api.ShutdownMeans) string {
	if m == api.ShutdownACPI {
		return "ACPI"
	}
	return string(m)
}

func (m *Machine) stopTimer() <-chan time.Time {
	if m.stop == nil {
		return nil
	}
	return m.stop.timer.C
}

// beginStop begins a graceful stop, or turns one that is under way into one for good.
func (m *Machine) beginStop(ctx context.Context, kind stopKind) *Outcome {
	if m.domain == nil {
		return &Outcome{Reason: api.ReasonStopped, Text: "the VM was off"}
	}
	if m.stop != nil {
		if kind == stopForGood {
			m.stop.kind = kind
		}
		return nil
	}
	p := m.opt.Policy()
	now := m.opt.Clock()
	m.mu.Lock()
	m.stop = &stopping{
		kind: kind, policy: p, begun: now, left: p.Shutdown, end: now.Add(p.ShutdownTimeout), timer: time.NewTimer(0),
	}
	m.stop.deadline = now.Add(p.ShutdownTimeout / time.Duration(len(p.Shutdown)))
	paused := m.status.State == api.StatePaused
	m.status.State, m.status.Reason = api.StateStopping, ""
	m.mu.Unlock()
	if paused {
		// A guest whose vCPUs stand still cannot shut down.
		if err := m.domain.Resume(); err != nil {
			klog.FromContext(ctx).Error(err, "resume before the shutdown")
		}
	}
	return nil
}

// continueStop asks the guest by the means whose turn it is, or gives up. It runs whenever the stop's timer fires.
func (m *Machine) continueStop(ctx context.Context) *Outcome {
	s, now := m.stop, m.opt.Clock()
	logger := klog.FromContext(ctx)
	for len(s.left) > 0 {
		if !now.Before(s.deadline) {
			s.left = s.left[1:]
			s.deadline = now.Add(s.end.Sub(now) / time.Duration(max(len(s.left), 1)))
			continue
		}
		err := m.ask(s.left[0])
		if err == nil {
			if len(s.asked) == 0 || s.asked[len(s.asked)-1] != s.left[0] {
				s.asked = append(s.asked, s.left[0])
			}
			s.timer.Reset(min(s.deadline.Sub(now), askAgain))
			return nil
		}
		logger.V(2).Info("the guest cannot be asked", "by", s.left[0], "why", err.Error())
		s.left = s.left[1:]
		s.deadline = now.Add(s.end.Sub(now) / time.Duration(max(len(s.left), 1)))
	}
	if wait := s.end.Sub(now); wait > 0 {
		s.timer.Reset(wait)
		return nil
	}
	if s.kind == stopByVerb || s.policy.ShutdownThen == api.ThenWait {
		m.giveUp()
		return nil
	}
	s.off = true
	return m.destroy(Outcome{Reason: api.ReasonForcedOff, Text: s.ignored()})
}

// ignored says which means the guest did not obey.
func (s *stopping) ignored() string {
	text := "guest ignored "
	if len(s.asked) == 0 {
		text = "guest could not be asked"
	}
	for i, a := range s.asked {
		if i > 0 {
			text += " and "
		}
		text += meansText(a)
	}
	return text + " for " + span(s.policy.ShutdownTimeout.Round(time.Second))
}

// giveUp leaves the guest running and tells who waits.
func (m *Machine) giveUp() {
	s := m.stop
	for _, done := range s.done {
		done <- fmt.Errorf("%w: %s", virt.ErrTimeout, s.ignored())
	}
	s.done = nil
	if s.kind == stopForGood {
		s.timer.Reset(time.Hour) // then=wait: only the kubelet's patience counts
		s.end = s.end.Add(time.Hour)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stop = nil
	m.refreshLocked("user")
}

// ask asks the guest by one means.
func (m *Machine) ask(means api.ShutdownMeans) error {
	switch means {
	case api.ShutdownAgent:
		return m.domain.Shutdown(virt.ByAgent)
	case api.ShutdownACPI:
		return m.domain.Shutdown(virt.ByACPI)
	default:
		return errors.New("not a means of this version: " + string(means))
	}
}

// endStop finishes a graceful stop when QEMU is gone.
func (m *Machine) endStop(ctx context.Context, s *stopping, outcome Outcome) *Outcome {
	s.timer.Stop()
	defer func() {
		for _, done := range s.done {
			done <- nil
		}
	}()
	switch {
	case s.kind == stopToRestart:
		return m.startAgain(ctx)
	case s.kind == stopByVerb && m.opt.Policy().OnPoweroff == api.PoweroffHold:
		m.setState(api.StateHeld)
		return nil
	default:
		return &outcome
	}
}
