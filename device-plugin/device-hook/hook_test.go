package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestFindPID(t *testing.T) {
	tests := map[string]struct {
		state string
		want  int
		ok    bool
	}{
		"as runc writes it":         {`{"ociVersion":"1.3.0","id":"a","status":"creating","pid":4711,"bundle":"/b"}`, 4711, true},
		"blanks":                    {"{ \"pid\" :\n\t 12 }", 12, true},
		"an annotation of the name": {`{"annotations":{"pid":"1","x":{"pid":2}},"pid":3}`, 3, true},
		"a value of the name":       {`{"id":"pid","pid":7}`, 7, true},
		"in an escaped string":      {`{"id":"\"pid\":9","pid":7}`, 7, true},
		"only nested":               {`{"annotations":{"pid":5}}`, 0, false},
		"zero":                      {`{"pid":0}`, 0, false},
		"text":                      {`{"pid":"5"}`, 0, false},
		"too long":                  {`{"pid":12345678901}`, 0, false},
		"cut off":                   {`{"pid`, 0, false},
		"escape at the end":         {`{"\`, 0, false},
		"empty":                     {``, 0, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got, ok := findPID([]byte(tt.state)); got != tt.want || ok != tt.ok {
				t.Errorf("findPID = %d, %v; want %d, %v", got, ok, tt.want, tt.ok)
			}
		})
	}
}

func FuzzFindPID(f *testing.F) {
	f.Add([]byte(`{"annotations":{"pid":"1"},"pid":3}`))
	f.Fuzz(func(t *testing.T, state []byte) {
		if pid, ok := findPID(state); ok && (pid <= 0 || pid > 999999999) {
			t.Errorf("findPID = %d", pid)
		}
	})
}

func TestParseLimit(t *testing.T) {
	tests := map[string]struct {
		arg      string
		resource int
		value    uint64
		ok       bool
	}{
		"memory":         {"memlock=unlimited", unix.RLIMIT_MEMLOCK, unix.RLIM_INFINITY, true},
		"priority":       {"rtprio=1", unix.RLIMIT_RTPRIO, 1, true},
		"bounded memory": {"memlock=1", 0, 0, false},
		"priority 100":   {"rtprio=100", unix.RLIMIT_RTPRIO, 100, false},
		"no number":      {"rtprio=", 0, 0, false},
		"other":          {"nofile=1", 0, 0, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			resource, value, ok := parseLimit(tt.arg)
			if ok != tt.ok || ok && (resource != tt.resource || value != tt.value) {
				t.Errorf("parseLimit = %d, %d, %v; want %d, %d, %v", resource, value, ok, tt.resource, tt.value, tt.ok)
			}
		})
	}
}

func TestSplitArguments(t *testing.T) {
	got := splitArguments([]byte("device-hook\x00memlock=unlimited\x00\x00"))
	if diff := cmp.Diff([]string{"memlock=unlimited", ""}, got); diff != "" {
		t.Errorf("(-want,+got)\n%s", diff)
	}
	if got := splitArguments(nil); got != nil {
		t.Errorf("splitArguments(nil) = %q", got)
	}
}

// The hook as the runtime runs it: its own process, the state on standard input, another process's limit changed.
func TestHookRaisesTheLimitOfAnotherProcess(t *testing.T) {
	hook := build(t)
	victim := sleeper(t)
	lower := unix.Rlimit{Cur: 64 << 10, Max: currentMax(t, unix.RLIMIT_MEMLOCK)}
	if err := unix.Prlimit(victim, unix.RLIMIT_MEMLOCK, &lower, nil); err != nil {
		t.Fatal(err)
	}

	state := fmt.Sprintf(`{"ociVersion":"1.3.0","id":"c","pid":%d}`, victim)
	stderr, err := runHook(hook, state, "memlock=unlimited", "rtprio=1")

	if !mayRaise() {
		if err == nil || !strings.Contains(stderr, "memlock=unlimited: raising the limit: operation not permitted") {
			t.Errorf("without CAP_SYS_RESOURCE: %v, %q; want a refusal that says so", err, stderr)
		}
		return
	}
	if err != nil {
		t.Fatalf("hook: %v: %s", err, stderr)
	}
	for resource, want := range map[int]uint64{unix.RLIMIT_MEMLOCK: unix.RLIM_INFINITY, unix.RLIMIT_RTPRIO: 1} {
		var got unix.Rlimit
		if err := unix.Prlimit(victim, resource, nil, &got); err != nil {
			t.Fatal(err)
		}
		if got.Cur < want || got.Max < want {
			t.Errorf("limit %d = %+v; want at least %d", resource, got, want)
		}
	}
}

func TestHookLeavesAHigherLimitAndRefusesNonsense(t *testing.T) {
	hook := build(t)
	victim := sleeper(t)
	state := fmt.Sprintf(`{"pid":%d}`, victim)
	tests := map[string]struct {
		state string
		args  []string
		want  string // on standard error; empty: success
	}{
		"limit is there already": {state, []string{"rtprio=0"}, ""},
		"no argument":            {state, nil, "no limit given"},
		"unknown limit":          {state, []string{"nofile=5"}, "nofile=5: want memlock=unlimited or rtprio=N"},
		"no pid":                 {`{}`, []string{"rtprio=0"}, "the container state has no pid"},
		"no such process":        {`{"pid":999999999}`, []string{"rtprio=0"}, "no such process"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			stderr, err := runHook(hook, tt.state, tt.args...)
			if (err == nil) != (tt.want == "") || !strings.Contains(stderr, tt.want) {
				t.Errorf("hook = %v, %q; want %q", err, stderr, tt.want)
			}
		})
	}
}

func build(t *testing.T) string {
	t.Helper()
	hook := filepath.Join(t.TempDir(), "device-hook")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-s -w", "-o", hook, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return hook
}

func runHook(hook, state string, args ...string) (string, error) {
	cmd := exec.Command(hook, args...)
	cmd.Stdin = strings.NewReader(state)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	return stderr.String(), err
}

// sleeper starts a process whose limits the test may change, and returns its pid.
func sleeper(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

func currentMax(t *testing.T, resource int) uint64 {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(resource, &limit); err != nil {
		t.Fatal(err)
	}
	return limit.Max
}

// mayRaise says whether this process may raise hard limits, which is what the hook does as root on a node.
func mayRaise() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}
