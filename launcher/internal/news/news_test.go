package news

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/api"
	"podvirt.dev/internal/vmstatus"
	"podvirt.dev/launcher/internal/lifecycle"
	"podvirt.dev/launcher/internal/virt"
)

// step is an event and the state of the VM after it.
type step struct {
	after   lifecycle.Status
	event   virt.Event
	onCrash api.OnCrash
}

func running(change func(*lifecycle.Status)) lifecycle.Status {
	s := lifecycle.Status{State: api.StateRunning, Boots: 1}
	if change != nil {
		change(&s)
	}
	return s
}

func paused(reason string) lifecycle.Status {
	return running(func(s *lifecycle.Status) { s.State, s.Reason = api.StatePaused, reason })
}

func TestFollow(t *testing.T) {
	start := step{after: running(nil)}
	rows := []struct {
		name  string
		steps []step
		want  string
	}{
		{"a start", []step{start, start}, "1 Started: the guest started"},
		{"paused and resumed", []step{start, {after: paused("user")}, start},
			"1 Started: the guest started|1 Paused: the guest stands still: user|1 Resumed: the guest runs again"},
		{"another reason", []step{start, {after: paused("user")}, {after: paused("no-space")}},
			"1 Started: the guest started|1 Paused: the guest stands still: user|1 Paused: the guest stands still: no-space"},
		{"start paused", []step{{after: paused("boot")}, start},
			"1 Started: the guest started, and stands still: boot|1 Resumed: the guest runs again"},
		{"a second start", []step{start, {after: running(func(s *lifecycle.Status) { s.Boots = 2 })}},
			"1 Started: the guest started|1 Started: the guest started, for the 2. time in this container"},
		{"reboots, then a loop", []step{
			start,
			{after: running(func(s *lifecycle.Status) { s.GuestReboots = 1 })},
			{after: running(func(s *lifecycle.Status) { s.GuestReboots = 2 })},
			{after: running(func(s *lifecycle.Status) { s.GuestReboots, s.RebootLoop = 3, true })},
			{after: running(func(s *lifecycle.Status) { s.GuestReboots, s.RebootLoop = 4, true })},
		}, "1 Started: the guest started|3 GuestReboot: the guest rebooted|" +
			"1 RebootLoop: the guest reboots again and again: 5 times within a minute|1 GuestReboot: the guest rebooted"},
		{"a panic that ends the VM", []step{start, {after: running(func(s *lifecycle.Status) {
			s.State, s.Reason, s.GuestPanics = api.StatePaused, "panic", 1
		}), onCrash: api.CrashExit}}, "1 Started: the guest started"},
		{"a panic that is held", []step{start, {after: running(func(s *lifecycle.Status) {
			s.State, s.Reason, s.GuestPanics = api.StatePaused, "panic", 1
		}), onCrash: api.CrashHold}}, "1 Started: the guest started|1 GuestPanic: the guest kernel panicked (pvpanic); on-crash: hold"},
		{"a watchdog", []step{start, {after: running(func(s *lifecycle.Status) { s.WatchdogFired = 1 }), event: virt.Event{Detail: "reset"}}},
			"1 Started: the guest started|1 WatchdogFired: the watchdog expired: reset"},
		{"a watchdog that ends the VM", []step{start,
			{after: running(func(s *lifecycle.Status) { s.WatchdogFired = 1 }), event: virt.Event{Detail: "poweroff"}}}, "1 Started: the guest started"},
		{"errors of a disk", []step{
			start, {running(nil), virt.Event{Kind: virt.EventIOError, Device: "root", Detail: "eio"}, ""},
			{running(nil), virt.Event{Kind: virt.EventIOError, Device: "root", Detail: "eio"}, ""},
		}, "1 Started: the guest started|2 IOError: disk root: eio"},
		{"the agent", []step{start, {after: running(func(s *lifecycle.Status) { s.AgentConnected = true })}},
			"1 Started: the guest started|1 AgentConnected: the guest agent has connected"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			log := New(time.Now)
			for _, s := range row.steps {
				log.Follow(s.after, s.event, s.onCrash)
			}
			if diff := cmp.Diff(row.want, lines(log)); diff != "" {
				t.Errorf("(-want,+got)\n%s", diff)
			}
		})
	}
}

func lines(log *Log) string {
	_, list := log.List()
	var got []string
	for _, n := range list {
		got = append(got, fmt.Sprintf("%d %s: %s", n.Count, n.Reason, n.Message))
	}
	return strings.Join(got, "|")
}

// TestAdopt: a guest that an earlier launcher started has not started now.
func TestAdopt(t *testing.T) {
	log := New(time.Now)
	log.Adopt(true)
	log.Follow(running(nil), virt.Event{Kind: virt.EventResumed}, "")
	if got := lines(log); got != "1 Resumed: the guest runs again" {
		t.Errorf("got %q", got)
	}
}

// TestRoom: what is old makes room, and the numbers go on.
func TestRoom(t *testing.T) {
	now := time.UnixMilli(5000)
	log := New(func() time.Time { return now })
	for n := range 2 * vmstatus.MaxNews {
		log.Add(vmstatus.Resized, fmt.Sprint(n))
	}
	run, list := log.List()
	if len(list) != vmstatus.MaxNews || list[0].Seq != vmstatus.MaxNews+1 || list[len(list)-1].Seq != 2*vmstatus.MaxNews {
		t.Errorf("%d, from %d to %d", len(list), list[0].Seq, list[len(list)-1].Seq)
	}
	now = now.Add(time.Second)
	if again, _ := New(func() time.Time { return now }).List(); again == run {
		t.Errorf("two processes are both %s", run)
	}
}
