package probe

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/agent"
)

func TestParse(t *testing.T) {
	rows := []struct {
		name string
		args string
		want Request
		text string // of the error
	}{
		{"agent", "agent", Request{Kind: Agent}, ""},
		{"agent with delay", "agent --initial-delay 2m", Request{Kind: Agent, InitialDelay: 2 * time.Minute}, ""},
		{"exec", "exec -- test -f /ok", Request{Kind: Exec, Command: []string{"test", "-f", "/ok"}}, ""},
		{"fs", "fs /", Request{Kind: FS, Mount: "/", MinFree: Room{Percent: 5}}, ""},
		{"fs with share", "fs /data --min-free 12.5%", Request{Kind: FS, Mount: "/data", MinFree: Room{Percent: 12.5}}, ""},
		{"fs with quantity", "fs /data --min-free 1Gi", Request{Kind: FS, Mount: "/data", MinFree: Room{Bytes: 1 << 30}}, ""},
		{"state", "state running", Request{Kind: State, State: api.StateRunning}, ""},
		{"nothing", "", Request{}, "agent, exec -- CMD"},
		{"unknown kind", "agnet", Request{}, "probe agnet"},
		{"unknown state", "state up", Request{}, "not one of starting, running"},
		{"exec without command", "exec", Request{}, "probe exec"},
		{"fs without mount", "fs", Request{}, "probe fs"},
		{"bad share", "fs / --min-free 120%", Request{}, "example: 5%"},
		{"not a number", "fs / --min-free NaN%", Request{}, "example: 5%"},
		{"bad quantity", "fs / --min-free lots", Request{}, "example: 1Gi"},
		{"bad flag", "agent --wait", Request{}, "--wait"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			got, err := Parse(strings.Fields(row.args))
			if (err != nil) != (row.text != "") || err != nil && (!errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), row.text)) {
				t.Fatalf("err = %v, want %q", err, row.text)
			}
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("(-want,+got)\n%s", diff)
			}
		})
	}
}

func TestParseURL(t *testing.T) {
	rows := []struct {
		kind, query string
		want        Request
		ok          bool
	}{
		{"agent", "", Request{Kind: Agent}, true},
		{"agent", "initial-delay=90s", Request{Kind: Agent, InitialDelay: 90 * time.Second}, true},
		{"fs", "mount=/&min-free=7%25", Request{Kind: FS, Mount: "/", MinFree: Room{Percent: 7}}, true},
		{"state", "is=paused", Request{Kind: State, State: api.StatePaused}, true},
		{"exec", "command=reboot", Request{}, false},
		{"agent", "initial-delay=soon", Request{}, false},
		{"", "", Request{}, false},
	}
	for _, row := range rows {
		t.Run(row.kind+"?"+row.query, func(t *testing.T) {
			query, err := url.ParseQuery(row.query)
			if err != nil {
				t.Fatal(err)
			}
			got, err := ParseURL(row.kind, query)
			if (err == nil) != row.ok || err != nil && !errors.Is(err, ErrUsage) {
				t.Fatalf("err = %v, want success: %v", err, row.ok)
			}
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("(-want,+got)\n%s", diff)
			}
		})
	}
}

// guest answers as told.
type guest struct {
	ping   error
	result agent.ExecResult
	fs     []agent.FileSystem
	asked  int
}

func (g *guest) Ping(context.Context) error { g.asked++; return g.ping }
func (g *guest) Exec(context.Context, []string, []byte) (agent.ExecResult, error) {
	g.asked++
	return g.result, nil
}
func (g *guest) FileSystems(context.Context) ([]agent.FileSystem, error) { g.asked++; return g.fs, nil }

func TestDo(t *testing.T) {
	var (
		start   = time.Unix(1000, 0)
		running = VM{State: api.StateRunning, Started: start}
		dead    = &guest{ping: agent.ErrNotConnected}
		ping    = Request{Kind: Agent}
		command = Request{Kind: Exec, Command: []string{"check"}}
		root    = Request{Kind: FS, Mount: "/", MinFree: Room{Percent: 10, Bytes: 50}}
	)
	paused := func(reason string) VM { return VM{State: api.StatePaused, Reason: reason, Started: start} }
	fs := func(used, total uint64) *guest {
		return &guest{fs: []agent.FileSystem{{Mountpoint: "/", Used: used, Total: total}}}
	}
	rows := []struct {
		name    string
		vm      VM
		guest   *guest
		request Request
		after   time.Duration // since the start of the guest
		text    string        // of the failure; "": yes
	}{
		{"agent answers", running, &guest{}, ping, 0, ""},
		{"agent does not answer", running, dead, ping, time.Hour, "probe failed: the guest agent is not connected"},
		{"within the initial delay", running, dead, Request{Kind: Agent, InitialDelay: time.Minute}, 59 * time.Second, ""},
		{"after the initial delay", running, dead, Request{Kind: Agent, InitialDelay: time.Minute}, time.Minute, "not connected"},
		{"starting", VM{State: api.StateStarting}, dead, ping, 0, "not connected"},
		{"paused by the user", paused("user"), dead, ping, time.Hour, ""},
		{"paused for a dump", paused("dump"), dead, command, time.Hour, ""},
		{"paused by migration", paused("migrating"), dead, root, time.Hour, ""},
		{"paused by an I/O error", paused("io-error"), &guest{}, ping, time.Hour, "the VM is paused (io-error)"},
		{"paused for space", paused("no-space"), &guest{}, ping, time.Hour, "no-space"},
		{"panicked", paused("panic"), &guest{}, ping, time.Hour, "panic"},
		{"stopping", VM{State: api.StateStopping, Started: start}, dead, ping, time.Hour, ""},
		{"incoming", VM{State: api.StateIncoming}, dead, ping, time.Hour, ""},
		{"held", VM{State: api.StateHeld}, &guest{}, ping, time.Hour, "the VM is held"},
		{"command succeeds", running, &guest{}, command, 0, ""},
		{"command fails", running, &guest{result: agent.ExecResult{ExitCode: 3, Stderr: []byte("no \x1b[31mway\nmore")}}, command, 0,
			"check exited with 3: no [31mway"},
		{"command says it on stdout", running, &guest{result: agent.ExecResult{ExitCode: 1, Stdout: []byte("why")}}, command, 0, ": why"},
		{"command dies", running, &guest{result: agent.ExecResult{Signal: 9}}, command, 0, "died of signal 9"},
		{"room", running, fs(850, 1000), root, 0, ""},
		{"too little in percent", running, fs(910, 1000), root, 0, "/ has 9.0% free (90 of 1000 bytes)"},
		{"too little in bytes", running, fs(60, 100), root, 0, "40 of 100 bytes"},
		{"not mounted", running, &guest{}, root, 0, "nothing is mounted at /"},
		{"no figures", running, fs(0, 0), root, 0, "does not say how full"},
		{"lying figures", running, fs(10, 5), root, 0, "does not say how full"},
		{"in the state", running, dead, Request{Kind: State, State: api.StateRunning}, 0, ""},
		{"in another state", paused("user"), dead, Request{Kind: State, State: api.StateRunning}, 0, "the VM is paused (user)"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			p := New(func() VM { return row.vm }, func() (Guest, error) { return row.guest, nil }, func() time.Time { return start.Add(row.after) })
			err := p.Do(t.Context(), row.request)
			if (err != nil) != (row.text != "") || err != nil && (!errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), row.text)) {
				t.Errorf("err = %v, want %q", err, row.text)
			}
		})
	}
}

// Many probes at once ask the guest's agent rarely.
func TestPingsAreShared(t *testing.T) {
	now := time.Unix(1000, 0)
	g := &guest{}
	p := New(func() VM { return VM{State: api.StateRunning} }, func() (Guest, error) { return g, nil }, func() time.Time { return now })
	for range 100 {
		if err := p.Do(t.Context(), Request{Kind: Agent}); err != nil {
			t.Fatal(err)
		}
		now = now.Add(20 * time.Millisecond)
	}
	if g.asked > 5 {
		t.Errorf("the agent was asked %d times in two seconds", g.asked)
	}
	g.ping = agent.ErrTimeout
	now = now.Add(time.Second)
	for range 2 {
		if err := p.Do(t.Context(), Request{Kind: Agent}); !errors.Is(err, agent.ErrTimeout) {
			t.Errorf("err = %v; a failure must not be remembered as success", err)
		}
	}
	noGuest := New(func() VM { return VM{State: api.StateRunning} }, func() (Guest, error) { return nil, agent.ErrDenied }, time.Now)
	if err := noGuest.Do(t.Context(), Request{Kind: Agent}); !errors.Is(err, agent.ErrDenied) {
		t.Errorf("err = %v", err)
	}
}
