package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary be the reaper.
func TestMain(m *testing.M) {
	if os.Getenv("PODVIRT_TEST_REAPER") != "" {
		main()
	}
	m.Run()
}

// reaperOf starts a reaper over a shell script. $D is a directory of the test.
func reaperOf(t *testing.T, script string) (cmd *exec.Cmd, dir string, stderr *bytes.Buffer) {
	t.Helper()
	dir, stderr = t.TempDir(), &bytes.Buffer{}
	cmd = exec.Command(os.Args[0], "/bin/sh", "-c", script)
	message := filepath.Join(dir, "message")
	if err := os.WriteFile(message, []byte("Killed: "), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "PODVIRT_TEST_REAPER=1", "D="+dir, reapedEnv+"="+filepath.Join(dir, "reaped"), messageEnv+"="+message)
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	return cmd, dir, stderr
}

func wait(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its exit code is asked for below
		close(done)
	}()
	select {
	case <-done:
		return cmd.ProcessState.ExitCode()
	case <-time.After(20 * time.Second):
		t.Fatal("the reaper does not end")
		return 0
	}
}

func await(t *testing.T, file, pattern string) string {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	for {
		raw, err := os.ReadFile(file)
		if err == nil && regexp.MustCompile(pattern).Match(raw) {
			return string(raw)
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s: %q (%v), want %q", file, raw, err, pattern)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for _, test := range []struct {
		name, script string
		want         int
	}{
		{"success", "exit 0", 0},
		{"code of the launcher", "exit 24", 24},
		{"a signal and no guest", "kill -KILL $$", 137},
		{"a panic and no guest", "exit 2", 70},
		{"an exit although the guest runs", "sleep 60 >/dev/null 2>&1 & exit 21", 21},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd, dir, _ := reaperOf(t, test.script)
			if got := wait(t, cmd); got != test.want {
				t.Errorf("exit %d, want %d", got, test.want)
			}
			message, err := os.ReadFile(filepath.Join(dir, "message"))
			if want := test.want == exitInternal; err != nil || strings.HasPrefix(string(message), "Internal: ") != want {
				t.Errorf("message %q (%v)", message, err)
			}
		})
	}
}

// guestScript is a launcher that dies as it is told while its guest, an orphan, runs, and ends well the second time.
func guestScript(death string) string {
	return `if [ -e $D/second ]; then echo "${PODVIRT_STOPPING:-no}" >$D/stopping; exit 7; fi
(sleep 60 >/dev/null 2>&1 & echo $! >$D/guest.new; mv $D/guest.new $D/guest) &
while [ ! -e $D/guest ]; do sleep 0.01; done
touch $D/second
` + death
}

func TestLauncherIsStartedAgain(t *testing.T) {
	for _, test := range []struct{ name, death string }{
		{"SIGKILL", "kill -KILL $$"}, {"SIGSEGV", "kill -SEGV $$"}, {"panic", "exit 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd, dir, stderr := reaperOf(t, guestScript(test.death))
			if got := wait(t, cmd); got != 7 {
				t.Errorf("exit %d, want 7, that of the second launcher; stderr %s", got, stderr)
			}
			if text := await(t, filepath.Join(dir, "stopping"), "."); strings.TrimSpace(text) != "no" {
				t.Errorf("the second launcher was told to stop: %q", text)
			}
			if !strings.Contains(stderr.String(), "starting it again") {
				t.Errorf("stderr %q", stderr)
			}
		})
	}
}

// TestStopReachesTheNextLauncher: a launcher that dies of the signal is not the end of the stop.
func TestStopReachesTheNextLauncher(t *testing.T) {
	cmd, dir, _ := reaperOf(t, guestScript("touch $D/ready; while :; do sleep 0.01; done"))
	await(t, filepath.Join(dir, "ready"), "")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := wait(t, cmd); got != 7 {
		t.Errorf("exit %d, want 7", got)
	}
	await(t, filepath.Join(dir, "stopping"), "^1")
}

func TestSignalsAreForwarded(t *testing.T) {
	cmd, dir, _ := reaperOf(t, `trap 'exit 33' TERM; touch $D/ready; while :; do sleep 0.01; done`)
	await(t, filepath.Join(dir, "ready"), "")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := wait(t, cmd); got != 33 {
		t.Errorf("exit %d, want 33", got)
	}
}

// TestOrphansAreReaped and written down with how they ended.
func TestOrphansAreReaped(t *testing.T) {
	cmd, dir, _ := reaperOf(t, `(sh -c 'echo $$ >$D/orphan.new; mv $D/orphan.new $D/orphan; while [ ! -e $D/die ]; do sleep 0.01; done; kill -SEGV $$' &)
trap 'exit 0' TERM; while :; do sleep 0.01; done`)
	orphan := strings.TrimSpace(await(t, filepath.Join(dir, "orphan"), "."))
	if err := os.WriteFile(filepath.Join(dir, "die"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	line := await(t, filepath.Join(dir, "reaped"), "(?m)^"+orphan+" ")
	for l := range strings.Lines(line) {
		if pid, status, _ := strings.Cut(strings.TrimSpace(l), " "); pid == orphan {
			n, err := strconv.Atoi(status)
			if s := syscall.WaitStatus(n); err != nil || !s.Signaled() || s.Signal() != syscall.SIGSEGV {
				t.Errorf("status %s, want SIGSEGV", status)
			}
		}
	}
	if _, err := os.Stat("/proc/" + orphan); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the orphan is still there: %v", err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := wait(t, cmd); got != 0 {
		t.Errorf("exit %d, want 0", got)
	}
}

// TestMemory: the reaper is in every VM Pod. The limit is above the aim of 1 MiB, which the Go runtime alone exceeds on a
// node that runs one VM; code is shared by all reapers of a node.
func TestMemory(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "reaper")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	up := filepath.Join(t.TempDir(), "up")
	cmd := exec.Command(bin, "/bin/sh", "-c", "echo up >"+up+"; exec sleep 60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	proc := "/proc/" + strconv.Itoa(cmd.Process.Pid)
	await(t, up, "up")
	rollup := await(t, proc+"/smaps_rollup", `(?m)^Pss_Anon: +[1-9]\d\d`)
	private := regexp.MustCompile(`(?m)^Pss_Anon: +(\d+) kB`).FindStringSubmatch(rollup)
	if kib, err := strconv.Atoi(private[1]); err != nil || kib > 1024 {
		t.Errorf("%s KiB of its own; want at most 1024", private[1])
	}
	t.Log(regexp.MustCompile(`(?m)^Pss.*$`).FindAllString(rollup, 3))
}
