package lifecycle

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/virt"
	"podvirt.dev/launcher/internal/virt/virttest"
)

// starts starts a fake domain; fail makes the next start fail.
type starts struct {
	domain *virttest.Domain
	fail   error
}

func (s *starts) Start(context.Context) (virt.Domain, error) {
	if s.fail != nil {
		return nil, s.fail
	}
	return s.domain, errors.Join(s.domain.Start(), s.domain.Resume())
}

// world is a Machine over a fake domain.
type world struct {
	*Machine
	t       *testing.T
	domain  *virttest.Domain
	policy  Policy
	stop    context.CancelFunc
	outcome chan Outcome
}

func run(t *testing.T, policy Policy) *world {
	t.Helper()
	return runWith(t, policy, func(*Options) {})
}

func runWith(t *testing.T, policy Policy, change func(*Options)) *world {
	t.Helper()
	domain, events := virttest.New()
	w := &world{t: t, domain: domain, policy: policy, outcome: make(chan Outcome, 1)}
	options := Options{
		Starter: &starts{domain: domain}, Events: events, Policy: func() Policy { return policy },
		Explain: func(err error) Outcome { return Outcome{Reason: api.ReasonStartFailed, Text: err.Error()} },
		Death:   func() Outcome { return Outcome{Reason: api.ReasonHypervisorCrash, Text: "qemu died"} },
	}
	change(&options)
	w.Machine = New(options)
	ctx, stop := context.WithCancel(t.Context())
	w.stop = stop
	go func() { w.outcome <- w.Run(ctx, nil, time.Time{}) }()
	w.until(api.StateRunning)
	return w
}

func (w *world) until(state api.State) {
	w.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	for w.Status().State != state {
		select {
		case <-tick.C:
		case <-deadline.C:
			w.t.Fatalf("state %q, want %q", w.Status().State, state)
		}
	}
}

func (w *world) ends() Outcome {
	w.t.Helper()
	select {
	case o := <-w.outcome:
		return o
	case <-time.After(10 * time.Second):
		w.t.Fatal("the VM does not end")
		return Outcome{}
	}
}

func policyWith(change func(*Policy)) Policy {
	p := PolicyOf(api.Lifecycle{ShutdownTimeout: 200 * time.Millisecond})
	change(&p)
	return p
}

func TestEnds(t *testing.T) {
	stopped := func(r virt.StopReason) virt.Event { return virt.Event{Kind: virt.EventStopped, Reason: r} }
	for _, test := range []struct {
		name   string
		policy func(*Policy)
		act    func(w *world)
		reason api.Reason
		text   string
	}{
		{"the guest powers off", func(*Policy) {}, func(w *world) {
			w.domain.Emit(virt.StateOff, stopped(virt.StopShutdown))
		}, api.ReasonPoweredOff, "the guest shut down after 0.0s"},
		{"QEMU dies", func(*Policy) {}, func(w *world) {
			w.domain.Emit(virt.StateOff, stopped(virt.StopFailed))
		}, api.ReasonHypervisorCrash, "qemu died"},
		{"QEMU is ended from outside", func(*Policy) {}, func(w *world) {
			w.domain.Emit(virt.StateRunning, virt.Event{Kind: virt.EventShutdownByHost})
			w.domain.Emit(virt.StateOff, stopped(virt.StopShutdown))
		}, api.ReasonHypervisorCrash, "qemu died"},
		{"the guest panics", func(*Policy) {}, func(w *world) {
			w.domain.Emit(virt.StateCrashed, virt.Event{Kind: virt.EventPanicked})
		}, api.ReasonGuestPanic, "the guest kernel panicked (pvpanic)"},
		{"the watchdog powers off", func(*Policy) {}, func(w *world) {
			w.domain.Emit(virt.StateRunning, virt.Event{Kind: virt.EventWatchdog, Detail: "poweroff"})
			w.domain.Emit(virt.StateOff, stopped(virt.StopFailed))
		}, api.ReasonWatchdog, "the watchdog expired"},
		{"a reboot ends the Pod", func(p *Policy) { p.OnReboot = api.RebootExit }, func(w *world) {
			w.domain.Emit(virt.StateRunning, virt.Event{Kind: virt.EventReset})
		}, api.ReasonGuestReboot, "the guest asked for a reboot"},
		{"hard power-off", func(*Policy) {}, func(w *world) {
			if err := w.Poweroff(w.t.Context()); err != nil {
				w.t.Error(err)
			}
		}, api.ReasonDestroyed, "hard power-off was asked for, QEMU was gone 0.0s later"},
		{"the agent shuts down", func(*Policy) {}, func(w *world) {
			w.domain.Agent, w.domain.Obeys[virt.ByAgent] = true, true
			w.stop()
		}, api.ReasonStopped, "shutdown by agent took 0.0s"},
		{"no agent, ACPI shuts down", func(*Policy) {}, func(w *world) {
			w.domain.Obeys[virt.ByACPI] = true
			w.stop()
		}, api.ReasonStopped, "shutdown by ACPI took 0.0s"},
		{"the guest is deaf", func(*Policy) {}, func(w *world) {
			w.domain.Agent = true
			w.stop()
		}, api.ReasonForcedOff, "guest ignored agent and ACPI for 0.0s"},
		{"a paused guest is resumed to shut down", func(*Policy) {}, func(w *world) {
			w.domain.Obeys[virt.ByACPI] = true
			if err := w.Pause(w.t.Context()); err != nil {
				w.t.Error(err)
			}
			w.until(api.StatePaused)
			w.stop()
		}, api.ReasonStopped, "shutdown by ACPI took 0.0s"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := run(t, policyWith(test.policy))
			test.act(w)
			if got := w.ends(); got.Reason != test.reason || got.Text != test.text {
				t.Errorf("outcome %v %q, want %v %q", got.Reason, got.Text, test.reason, test.text)
			}
		})
	}
}

func TestHoldAndStartAgain(t *testing.T) {
	w := run(t, policyWith(func(p *Policy) { p.OnPoweroff = api.PoweroffHold }))
	w.domain.Emit(virt.StateOff, virt.Event{Kind: virt.EventStopped, Reason: virt.StopShutdown})
	w.until(api.StateHeld)
	if err := w.Pause(t.Context()); !errors.Is(err, virt.ErrWrongState) {
		t.Errorf("pause of a VM that is off: %v", err)
	}
	if err := w.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.until(api.StateRunning)
	if boots := w.Status().Boots; boots != 2 {
		t.Errorf("%d boots, want 2", boots)
	}
}

func TestShutdownVerbGivesUp(t *testing.T) {
	w := run(t, policyWith(func(*Policy) {}))
	if err := w.Shutdown(t.Context(), 50*time.Millisecond); !errors.Is(err, virt.ErrTimeout) {
		t.Errorf("shutdown of a deaf guest: %v", err)
	}
	w.until(api.StateRunning)
	if calls := w.domain.Calls(); slices.Contains(calls, "destroy") {
		t.Errorf("calls %v: a guest that was only asked was forced", calls)
	}
}

func TestRestartInPlace(t *testing.T) {
	w := run(t, policyWith(func(*Policy) {}))
	if err := w.Restart(t.Context()); err != nil { // deaf: forced off
		t.Fatal(err)
	}
	w.until(api.StateRunning)
	if s := w.Status(); s.Boots != 2 {
		t.Errorf("%d boots, want 2", s.Boots)
	}
}

func TestRebootsAreCounted(t *testing.T) {
	w := run(t, policyWith(func(*Policy) {}))
	if err := w.Reset(t.Context()); err != nil { // ours: not the guest's
		t.Fatal(err)
	}
	w.domain.Emit(virt.StateRunning, virt.Event{Kind: virt.EventAgentConnected})
	w.eventually(func(s Status) bool { return s.AgentConnected })
	if n := w.Status().GuestReboots; n != 0 {
		t.Errorf("%d reboots after our reset, want 0", n)
	}
}

func (w *world) eventually(holds func(Status) bool) {
	w.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	for !holds(w.Status()) {
		select {
		case <-tick.C:
		case <-deadline.C:
			w.t.Fatalf("it did not happen: %+v", w.Status())
		}
	}
}

func TestStepsAreUndone(t *testing.T) {
	var did []string
	note := func(text string) func(context.Context) error {
		return func(context.Context) error { did = append(did, text); return nil }
	}
	failure := errors.New("no")
	_, err := RunSteps(t.Context(), []Step{
		{Name: "a", Do: note("a"), Undo: note("undo a")},
		{Name: "b", Do: note("b")},
		{Name: "c", Do: note("c"), Undo: note("undo c")},
		{Name: "d", Do: func(context.Context) error { return failure }, Undo: note("undo d")},
	})
	var step *StepError
	if !errors.Is(err, failure) || !errors.As(err, &step) || step.Step != "d" {
		t.Errorf("error %v", err)
	}
	if want := []string{"a", "b", "c", "undo c", "undo a"}; !slices.Equal(did, want) {
		t.Errorf("did %v, want %v", did, want)
	}
}

func TestMessage(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"control characters of the guest", "qemu: \x1b[31mbad\nline\x00", "StartFailed: qemu: [31mbad line"},
		{"too long", strings.Repeat("ä", 400), "StartFailed: " + strings.Repeat("ä", 248) + "…"},
	} {
		if got := (Outcome{Reason: api.ReasonStartFailed, Text: test.text}).Message(); got != test.want || len(got) > 512 {
			t.Errorf("%s: %q (%d bytes), want %q", test.name, got, len(got), test.want)
		}
	}
}
