package lifecycle

import (
	"testing"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/virt"
)

// TestRebootLoop: five reboots within a minute are a loop, until the guest stays up; resets of one reboot count once
// (VM-118).
func TestRebootLoop(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name    string
		resets  []time.Duration // after the start
		asked   time.Duration   // when the status is asked for
		reboots int
		loop    bool
	}{
		{"four", []time.Duration{0, 10 * time.Second, 20 * time.Second, 30 * time.Second}, 31 * time.Second, 4, false},
		{"five", []time.Duration{0, 10 * time.Second, 20 * time.Second, 30 * time.Second, 40 * time.Second}, 41 * time.Second, 5, true},
		{"five, long ago", []time.Duration{0, 10 * time.Second, 20 * time.Second, 30 * time.Second, 40 * time.Second}, 61 * time.Second, 5, false},
		{"five, slowly", []time.Duration{0, 20 * time.Second, 40 * time.Second, 60 * time.Second, 80 * time.Second}, 81 * time.Second, 5, false},
		{"more than one lever", []time.Duration{0, time.Second, 10 * time.Second, 11 * time.Second}, 12 * time.Second, 2, false},
		{"every three seconds", []time.Duration{0, 3 * time.Second, 6 * time.Second, 9 * time.Second, 12 * time.Second, 15 * time.Second,
			18 * time.Second, 21 * time.Second, 24 * time.Second}, 25 * time.Second, 5, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := New(Options{
				Clock:  func() time.Time { return start.Add(test.asked) },
				Policy: func() Policy { return PolicyOf(api.Lifecycle{}) },
			})
			for _, at := range test.resets {
				if o := m.reset(t.Context(), virt.Event{Kind: virt.EventReset, Time: start.Add(at)}); o != nil {
					t.Errorf("outcome %v", o)
				}
			}
			if s := m.Status(); s.GuestReboots != test.reboots || s.RebootLoop != test.loop {
				t.Errorf("%d reboots, loop %v; want %d, %v", s.GuestReboots, s.RebootLoop, test.reboots, test.loop)
			}
		})
	}
}
