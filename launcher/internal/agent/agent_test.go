package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"podvirt.dev/internal/require"
)

// fakeAgent answers at a unix socket as qemu-ga does; answers maps a command to the raw line it gives
// (absent: CommandNotFound, "": silence).
type fakeAgent struct {
	path    string
	answers map[string]string
	garbage []byte // sent to everyone who connects, before the first sync
}

func startFake(t *testing.T, fake *fakeAgent) *fakeAgent {
	t.Helper()
	fake.path = filepath.Join(t.TempDir(), "ga.sock")
	listener, err := net.Listen("unix", fake.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go fake.serve(conn)
		}
	}()
	return fake
}

func (f *fakeAgent) serve(conn net.Conn) {
	defer conn.Close()
	if _, err := conn.Write(f.garbage); err != nil {
		return
	}
	reader := bufio.NewReader(conn)
	for {
		line, err := reader.ReadBytes('\n')
		if err != nil {
			return
		}
		line = bytes.TrimLeft(line, "\xff")
		var r struct {
			Execute   string          `json:"execute"`
			Arguments json.RawMessage `json:"arguments"`
		}
		if err := json.Unmarshal(line, &r); err != nil {
			fmt.Fprintf(conn, `{"error":{"class":"GenericError","desc":"%v"}}`+"\n", err)
			continue
		}
		answer, known := f.answers[r.Execute]
		switch {
		case r.Execute == "guest-sync-delimited":
			var id struct{ ID int64 }
			_ = json.Unmarshal(r.Arguments, &id)
			answer = fmt.Sprintf("\xff{\"return\": %d}", id.ID)
		case !known:
			answer = `{"error":{"class":"CommandNotFound","desc":"The command ` + r.Execute + ` has not been found"}}`
		case answer == "":
			continue
		}
		if _, err := conn.Write([]byte(answer + "\n")); err != nil {
			return
		}
	}
}

func TestAnswers(t *testing.T) {
	fake := startFake(t, &fakeAgent{answers: map[string]string{
		"guest-ping":          `{"return": {}}`,
		"guest-info":          `{"return": {"version": "10.0.2", "supported_commands": [{"enabled": true, "name": "guest-exec"}]}}`,
		"guest-get-osinfo":    `{"return": {"id": "debian", "pretty-name": "Debian GNU/Linux 13", "kernel-release": "6.12"}}`,
		"guest-get-host-name": `{"return": {"host-name": "db1\u001b[31m"}}`,
		"guest-get-timezone":  `{"return": {"zone": "CET", "offset": 3600}}`,
		"guest-get-users":     `{"return": [{"user": "ops", "login-time": 1700000000.5}]}`,
		"guest-get-fsinfo": `{"return": [{"name": "vda1", "mountpoint": "/", "type": "ext4", "used-bytes": 1, "total-bytes": 2,
			"disk": [{"dev": "/dev/vda1"}]}]}`,
		"guest-network-get-interfaces": `{"return": [{"name": "eth0", "hardware-address": "02:00:00:00:00:01", "ip-addresses": [
			{"ip-address": "10.0.2.2", "prefix": 24}, {"ip-address": "no address", "prefix": 1}, {"ip-address": "fe80::1", "prefix": 999}]}]}`,
		"guest-fsfreeze-freeze": `{"return": 2}`,
		"guest-fsfreeze-status": `{"return": "frozen"}`,
		"guest-set-time":        `{"return": {}}`,
		"guest-shutdown":        ``,
	}})
	// One line per answer: the fake may not send newlines inside.
	for name, answer := range fake.answers {
		fake.answers[name] = strings.Join(strings.Fields(answer), " ")
	}
	client := New(NewSocket(fake.path), 2*time.Second)
	defer client.Close()
	ctx := t.Context()

	rows := []struct {
		name string
		call func() (any, error)
		want any
	}{
		{"ping", func() (any, error) { return nil, client.Ping(ctx) }, nil},
		{"info", func() (any, error) { return client.Info(ctx) }, Info{Version: "10.0.2", Commands: map[string]bool{"guest-exec": true}}},
		{"os", func() (any, error) { return client.OS(ctx) }, OS{ID: "debian", PrettyName: "Debian GNU/Linux 13", KernelRelease: "6.12"}},
		{"escape sequence in the host name", func() (any, error) { return client.Hostname(ctx) }, "db1[31m"},
		{"time zone", func() (any, error) { return client.Timezone(ctx) }, Timezone{Name: "CET", Offset: time.Hour}},
		{"users", func() (any, error) { return client.Users(ctx) },
			[]User{{Name: "ops", Login: time.Date(2023, 11, 14, 22, 13, 20, 5e8, time.UTC)}}},
		{"file systems", func() (any, error) { return client.FileSystems(ctx) },
			[]FileSystem{{Name: "vda1", Mountpoint: "/", Type: "ext4", Used: 1, Total: 2, Disks: []string{"/dev/vda1"}}}},
		{"addresses, wrong ones left out", func() (any, error) { return client.Interfaces(ctx) },
			[]Interface{{Name: "eth0", MAC: "02:00:00:00:00:01", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.2/24")}}}},
		{"freeze", func() (any, error) { return client.Freeze(ctx) }, 2},
		{"frozen", func() (any, error) { return client.Frozen(ctx) }, true},
		{"set time", func() (any, error) { return nil, client.SetTime(ctx, time.Unix(1, 0)) }, nil},
		{"shutdown is not answered", func() (any, error) { return nil, client.Shutdown(ctx, Powerdown) }, nil},
		{"ping after the silence", func() (any, error) { return nil, client.Ping(ctx) }, nil},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			got, err := row.call()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(row.want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("(-want,+got)\n%s", diff)
			}
		})
	}
}

func TestHostileAnswers(t *testing.T) {
	rows := []struct {
		name   string
		answer string
		want   error
	}{
		{"no JSON", `hello`, ErrAnswer},
		{"neither return nor error", `{"x":1}`, ErrAnswer},
		{"trailing value", `{"return":{}} {"return":{}}`, ErrAnswer},
		{"wrong type", `{"return":{"version":7}}`, ErrAnswer},
		{"too large", `{"return":"` + strings.Repeat("x", maxAnswer) + `"}`, ErrAnswer},
		{"deep nesting", `{"return":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`, ErrAnswer},
		{"silence", ``, ErrTimeout},
		{"wild numbers", `{"return":{"version":"1","supported_commands":[{"name":"x","enabled":1e999}]}}`, ErrAnswer},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			fake := startFake(t, &fakeAgent{answers: map[string]string{"guest-info": row.answer, "guest-ping": `{"return":{}}`}})
			client := New(NewSocket(fake.path), 2*time.Second)
			defer client.Close()
			if _, err := client.Info(t.Context()); !errors.Is(err, row.want) {
				t.Fatalf("err = %v, want %v", err, row.want)
			}
			if err := client.Ping(t.Context()); err != nil {
				t.Errorf("the next command failed: %v", err)
			}
		})
	}
}

func TestListsAreBounded(t *testing.T) {
	users := strings.Repeat(`{"user":"u","login-time":1},`, 5000)
	fake := startFake(t, &fakeAgent{answers: map[string]string{"guest-get-users": `{"return":[` + strings.TrimSuffix(users, ",") + `]}`}})
	client := New(NewSocket(fake.path), 0)
	defer client.Close()
	got, err := client.Users(t.Context())
	if err != nil || len(got) != maxItems {
		t.Errorf("%d users, %v; want %d", len(got), err, maxItems)
	}
}

// The left-overs of somebody else's conversation lie in the channel: the sync skips them.
func TestSyncSkipsOldAnswers(t *testing.T) {
	fake := startFake(t, &fakeAgent{
		garbage: []byte(`{"return":{"version":"stale"}}` + "\n\xff" + `{"return":12345}` + "\n\xff\xff"),
		answers: map[string]string{"guest-info": `{"return":{"version":"fresh","supported_commands":[]}}`},
	})
	client := New(NewSocket(fake.path), 0)
	defer client.Close()
	info, err := client.Info(t.Context())
	if err != nil || info.Version != "fresh" {
		t.Errorf("version %q, %v; want fresh", info.Version, err)
	}
}

func TestErrors(t *testing.T) {
	t.Run("no socket", func(t *testing.T) {
		client := New(NewSocket(filepath.Join(t.TempDir(), "none")), 0)
		if err := client.Ping(t.Context()); !errors.Is(err, ErrNotConnected) {
			t.Errorf("err = %v, want %v", err, ErrNotConnected)
		}
	})
	t.Run("nobody behind the channel", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "ga.sock")
		listener, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		client := New(NewSocket(path), 500*time.Millisecond)
		defer client.Close()
		if err := client.Ping(t.Context()); !errors.Is(err, ErrNotConnected) {
			t.Errorf("err = %v, want %v", err, ErrNotConnected)
		}
		if err := client.Shutdown(t.Context(), Powerdown); !errors.Is(err, ErrNotConnected) {
			t.Errorf("shutdown without an agent: err = %v, want %v", err, ErrNotConnected)
		}
	})
	t.Run("unknown command", func(t *testing.T) {
		fake := startFake(t, &fakeAgent{})
		client := New(NewSocket(fake.path), 0)
		defer client.Close()
		var refused *CommandError
		if err := client.Ping(t.Context()); !errors.As(err, &refused) || !refused.Unsupported() {
			t.Errorf("err = %v, want an unsupported command", err)
		}
	})
	t.Run("denied by the VM", func(t *testing.T) {
		client := New(NewSocket("/none"), 0, "exec", "net")
		if _, err := client.Exec(t.Context(), []string{"true"}, nil); !errors.Is(err, ErrDenied) {
			t.Errorf("exec: err = %v, want %v", err, ErrDenied)
		}
		if _, err := client.Interfaces(t.Context()); !errors.Is(err, ErrDenied) {
			t.Errorf("interfaces: err = %v, want %v", err, ErrDenied)
		}
	})
	t.Run("context ends", func(t *testing.T) {
		fake := startFake(t, &fakeAgent{answers: map[string]string{"guest-ping": ""}})
		client := New(NewSocket(fake.path), time.Minute)
		defer client.Close()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		started := time.Now()
		if err := client.Ping(ctx); err == nil || time.Since(started) > 5*time.Second {
			t.Errorf("err = %v after %v, want one soon", err, time.Since(started))
		}
	})
}

// TestRealAgent asks the qemu-ga program of the machine. Nothing here may ask it to shut down, freeze or set the time.
func TestRealAgent(t *testing.T) {
	program, err := exec.LookPath("qemu-ga")
	if err != nil {
		program = "/usr/sbin/qemu-ga"
		_, err = os.Stat(program)
	}
	require.Feature(t, err == nil, "qemu-ga (Debian package qemu-guest-agent)")
	dir := t.TempDir()
	path := filepath.Join(dir, "ga.sock")
	cmd := exec.CommandContext(t.Context(), program, "--method=unix-listen", "--path="+path, "--statedir="+dir,
		"--pidfile="+filepath.Join(dir, "pid"), "--block-rpcs=guest-shutdown,guest-fsfreeze-freeze,guest-set-time,guest-suspend-ram")
	cmd.Cancel = func() error { return cmd.Process.Kill() }
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	waitFor(t, "the agent's socket", func() bool { _, err := os.Stat(path); return err == nil })

	client := New(NewSocket(path), 0)
	defer client.Close()
	if err := client.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Run("facts", func(t *testing.T) { realFacts(t, client) })
	t.Run("commands", func(t *testing.T) { realCommands(t, client) })
}

func realFacts(t *testing.T, client *Client) {
	ctx := t.Context()
	info, err := client.Info(ctx)
	if err != nil || info.Version == "" || !info.Commands["guest-exec"] || info.Commands["guest-shutdown"] {
		t.Errorf("info = %+v, %v", info, err)
	}
	hostname, err := client.Hostname(ctx)
	if want, _ := os.Hostname(); err != nil || hostname != want {
		t.Errorf("host name %q, %v; want %q", hostname, err, want)
	}
	if system, err := client.OS(ctx); err != nil || system.KernelRelease == "" {
		t.Errorf("os = %+v, %v", system, err)
	}
	_, zoneErr := client.Timezone(ctx)
	_, usersErr := client.Users(ctx)
	if err := errors.Join(zoneErr, usersErr); err != nil {
		t.Error(err)
	}
	if nics, err := client.Interfaces(ctx); err != nil || !hasLoopback(nics) {
		t.Errorf("interfaces = %+v, %v; want one with 127.0.0.1", nics, err)
	}
}

func realCommands(t *testing.T, client *Client) {
	ctx := t.Context()
	if frozen, err := client.Frozen(ctx); err != nil || frozen {
		t.Errorf("frozen = %v, %v", frozen, err)
	}
	result, err := client.Exec(ctx, []string{"/bin/sh", "-c", "cat; echo err >&2; exit 3"}, []byte("in"))
	want := ExecResult{ExitCode: 3, Stdout: []byte("in"), Stderr: []byte("err\n")}
	if diff := cmp.Diff(want, result); err != nil || diff != "" {
		t.Errorf("exec: %v (-want,+got)\n%s", err, diff)
	}
	var refused *CommandError
	if err := client.Shutdown(ctx, Powerdown); !errors.As(err, &refused) {
		t.Errorf("shutdown of an agent that blocks it: %v, want its refusal", err)
	}
}

func hasLoopback(nics []Interface) bool {
	for _, nic := range nics {
		for _, address := range nic.Addresses {
			if address == netip.MustParsePrefix("127.0.0.1/8") {
				return true
			}
		}
	}
	return false
}

// waitFor polls until the condition holds, at most ten seconds.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(10 * time.Second)
	for !condition() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"return":{}}`))
	f.Add([]byte(`{"error":{"class":"x","desc":"\u001b[2J"}}`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		var out any
		err := decode(answer, &out)
		if err != nil && Clean(err.Error(), 4096) != strings.TrimSpace(err.Error()) {
			t.Errorf("an error carries what a terminal would obey: %q", err)
		}
	})
}

func TestCache(t *testing.T) {
	fake := startFake(t, &fakeAgent{answers: map[string]string{
		"guest-info":       `{"return":{"version":"10.0.2","supported_commands":[]}}`,
		"guest-get-osinfo": `{"return":{"id":"debian"}}`,
	}})
	up := make(chan bool, 1)
	up <- false
	client := New(NewSocket(fake.path), 0)
	defer client.Close()
	cache := NewCache(func() (*Client, error) {
		is := <-up
		up <- is
		if !is {
			return nil, ErrNotConnected
		}
		return client, nil
	}, time.Now)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { cache.Run(ctx); close(done) }()
	waitFor(t, "the first round", func() bool { return !cache.Last().Taken.IsZero() })
	if got := cache.Last(); got.Version != "" {
		t.Errorf("without an agent: %+v", got)
	}
	<-up
	up <- true
	cache.Wake()
	waitFor(t, "the agent's version", func() bool { return cache.Last().Version == "10.0.2" })
	if got := cache.Last(); got.OS.ID != "debian" || got.Interfaces != nil {
		t.Errorf("snapshot = %+v; want the system, and no interfaces, which this agent does not know", got)
	}
	cancel()
	<-done
}
