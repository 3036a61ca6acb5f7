package lifecycle

import (
	"context"
	"slices"
	"testing"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/virt"
	"podvirt.dev/launcher/internal/virt/virttest"
)

// TestAStartIsNoPause: QEMU starts with its vCPUs stopped, and what tells that comes when the guest runs already. A pause
// that follows is one.
func TestAStartIsNoPause(t *testing.T) {
	domain, events := virttest.New()
	states := make(chan api.State, 16)
	var m *Machine
	m = New(Options{
		Starter: &starts{domain: domain}, Events: events, Policy: func() Policy { return PolicyOf(api.Lifecycle{}) },
		Explain: func(err error) Outcome { return Outcome{Reason: api.ReasonStartFailed, Text: err.Error()} },
		Death:   func() Outcome { return Outcome{} },
		Notify:  func(virt.Event) { states <- m.Status().State },
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan Outcome, 1)
	go func() { ended <- m.Run(ctx, nil, time.Time{}) }()
	var got []api.State
	for len(got) < 3 { // started, suspended, resumed
		got = append(got, <-states)
	}
	if err := m.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	got = append(got, <-states)
	want := []api.State{api.StateRunning, api.StateRunning, api.StateRunning, api.StatePaused}
	if !slices.Equal(got, want) {
		t.Errorf("%v; want %v", got, want)
	}
	domain.Obeys[virt.ByACPI] = true
	stop()
	<-ended
}
