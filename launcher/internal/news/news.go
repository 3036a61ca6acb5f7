// Package news keeps what happened to the VM last, so that who asks for the status now and then misses nothing: the
// controller makes Events of it (spec vm.md VM-214).
package news

import (
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/internal/vmstatus"
	"podvirt.dev/launcher/internal/lifecycle"
	"podvirt.dev/launcher/internal/virt"
)

// Log keeps the last [vmstatus.MaxNews] pieces of news. Its methods may be called from any goroutine.
type Log struct {
	now func() time.Time
	run string

	mu     sync.Mutex
	before lifecycle.Status
	seq    int64
	list   []vmstatus.News
}

// New returns an empty Log of this process.
func New(now func() time.Time) *Log {
	return &Log{now: now, run: strconv.FormatInt(now().UnixMilli(), 36)}
}

// Adopt says how the guest was found that an earlier launcher had started: that is no news.
func (l *Log) Adopt(paused bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.before = lifecycle.Status{State: api.StateRunning, Boots: 1}
	if paused {
		l.before.State, l.before.Reason = api.StatePaused, "user"
	}
}

// Follow notes what an event has changed. It is called after each event, with the state of the VM after it and what
// on-crash says; Device of the event is the name of the disk.
func (l *Log) Follow(after lifecycle.Status, e virt.Event, onCrash api.OnCrash) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.before
	l.before = after
	if after.Boots > before.Boots {
		l.add(vmstatus.Started, started(after))
		before.State = after.State
	}
	l.interrupted(before, after, e, onCrash)
	switch paused := after.State == api.StatePaused; {
	case paused && (before.State != api.StatePaused || before.Reason != after.Reason) && !toldOtherwise(after.Reason):
		l.add(vmstatus.Paused, "the guest stands still: "+after.Reason)
	case after.State == api.StateRunning && before.State == api.StatePaused:
		l.add(vmstatus.Resumed, "the guest runs again")
	}
	if after.AgentConnected && !before.AgentConnected {
		l.add(vmstatus.AgentConnected, "the guest agent has connected")
	}
}

// interrupted notes what the guest or its devices suffered.
func (l *Log) interrupted(before, after lifecycle.Status, e virt.Event, onCrash api.OnCrash) {
	if after.GuestReboots > before.GuestReboots {
		l.add(vmstatus.GuestReboot, "the guest rebooted")
	}
	if after.RebootLoop && !before.RebootLoop {
		l.add(vmstatus.RebootLoop, "the guest reboots again and again: 5 times within a minute")
	}
	if after.GuestPanics > before.GuestPanics && onCrash != api.CrashExit {
		l.add(vmstatus.GuestPanic, "the guest kernel panicked (pvpanic); on-crash: "+string(onCrash))
	}
	if after.WatchdogFired > before.WatchdogFired && e.Detail != "poweroff" {
		l.add(vmstatus.WatchdogFired, "the watchdog expired: "+e.Detail)
	}
	if e.Kind == virt.EventIOError {
		l.add(vmstatus.IOError, fmt.Sprintf("disk %s: %s", e.Device, e.Detail))
	}
}

// toldOtherwise says whether the reason for standing still is news of its own, or none.
func toldOtherwise(reason string) bool {
	return slices.Contains([]string{"boot", "panic", "watchdog"}, reason)
}

func started(s lifecycle.Status) string {
	text := "the guest started"
	if s.Boots > 1 {
		text += fmt.Sprintf(", for the %d. time in this container", s.Boots)
	}
	if s.State == api.StatePaused {
		text += ", and stands still: " + s.Reason
	}
	return text
}

// Add notes something that no event of the hypervisor tells.
func (l *Log) Add(reason, message string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(reason, message)
}

// add notes one thing; the same once more is counted. The caller holds mu.
func (l *Log) add(reason, message string) {
	now := l.now().UTC()
	if last := len(l.list) - 1; last >= 0 && l.list[last].Reason == reason && l.list[last].Message == message {
		l.list[last].Count++
		l.list[last].Last = now
		return
	}
	l.seq++
	l.list = append(l.list, vmstatus.News{Seq: l.seq, Count: 1, First: now, Last: now, Reason: reason, Message: message})
	if over := len(l.list) - vmstatus.MaxNews; over > 0 {
		l.list = slices.Delete(l.list, 0, over)
	}
}

// List returns the name of this process and what is kept, oldest first.
func (l *Log) List() (run string, list []vmstatus.News) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.run, slices.Clone(l.list)
}
