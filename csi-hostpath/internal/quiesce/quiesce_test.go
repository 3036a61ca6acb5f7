package quiesce

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podvirt.dev/api"
	"podvirt.dev/internal/require"
)

// launcher answers on a socket as the launcher of a Pod does, as a user.
type launcher struct {
	mu    sync.Mutex
	calls []string
	reply map[string]func(http.ResponseWriter)
}

func (l *launcher) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	verb := strings.TrimPrefix(r.URL.Path, "/v1/")
	l.mu.Lock()
	l.calls = append(l.calls, verb)
	l.mu.Unlock()
	if reply := l.reply[verb]; reply != nil {
		reply(w)
		return
	}
	_, _ = w.Write([]byte(`{"text":"1 file systems"}`))
}

func (l *launcher) said() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.calls, " ")
}

// listen serves on a path; the kernel remembers who began to listen.
func (l *launcher) listen(t *testing.T, path string, uid int) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	listening := make(chan net.Listener)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its other user
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), ^uintptr(0)); errno != 0 {
			t.Error(errno)
		}
		listener, err := net.Listen("unix", path)
		if err != nil {
			t.Error(err)
		}
		listening <- listener
	}()
	listener := <-listening
	if listener == nil {
		t.FailNow()
	}
	server := &http.Server{Handler: l, ReadHeaderTimeout: time.Second}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
}

// pod is the directory of a Pod with a volume at /run/podvirt and another one.
func pod(t *testing.T) (Guests, string) {
	t.Helper()
	require.Root(t)
	dir, err := os.MkdirTemp("/tmp", "q") //nolint:usetesting // the path of a socket is short, and others than root enter it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	volumes := filepath.Join(dir, "uid-1", emptyDirs)
	if err := os.MkdirAll(filepath.Join(volumes, "another"), 0o755); err != nil {
		t.Fatal(err)
	}
	return Guests{Pods: dir}, filepath.Join(volumes, "run", filepath.Base(api.ControlSocket))
}

func TestFreezeAndThaw(t *testing.T) {
	guests, socket := pod(t)
	l := &launcher{}
	l.listen(t, socket, api.LauncherUID)
	thaw, err := guests.Freeze(t.Context(), "uid-1", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := thaw(t.Context()); err != nil || l.said() != "freeze thaw" {
		t.Errorf("the launcher was asked to %q (%v)", l.said(), err)
	}
}

// TestNobodyToFreeze: what is missing is no failure of the snapshot, and says so.
func TestNobodyToFreeze(t *testing.T) {
	guests, socket := pod(t)
	for _, uid := range []string{"uid-1", "uid-2", "", "../uid-1"} {
		if _, err := guests.Freeze(t.Context(), uid, time.Second); !errors.Is(err, ErrNoAgent) {
			t.Errorf("freezing %q = %v; want ErrNoAgent", uid, err)
		}
	}
	l := &launcher{reply: map[string]func(http.ResponseWriter){"freeze": func(w http.ResponseWriter) {
		w.WriteHeader(http.StatusUnprocessableEntity)
		_, _ = w.Write([]byte(`{"error":"the guest agent does not answer"}`))
	}}}
	l.listen(t, socket, api.LauncherUID)
	if _, err := guests.Freeze(t.Context(), "uid-1", time.Second); !errors.Is(err, ErrNoAgent) || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("a guest without an agent: %v", err)
	}
}

// TestHangingAgent: a guest of which nobody knows whether it froze is thawed.
func TestHangingAgent(t *testing.T) {
	guests, socket := pod(t)
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	l := &launcher{reply: map[string]func(http.ResponseWriter){"freeze": func(http.ResponseWriter) { <-hang }}}
	l.listen(t, socket, api.LauncherUID)
	if _, err := guests.Freeze(t.Context(), "uid-1", 100*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrNoAgent) {
		t.Errorf("a guest that hangs: %v; want a time-out", err)
	}
	if l.said() != "freeze thaw" {
		t.Errorf("the launcher was asked to %q; want freeze thaw", l.said())
	}
}

// TestTenantsAreNotTrusted: neither a link in the tenant's volume nor another user behind the socket is followed.
func TestTenantsAreNotTrusted(t *testing.T) {
	guests, socket := pod(t)
	other := &launcher{}
	elsewhere := filepath.Join(guests.Pods, "elsewhere", "s")
	other.listen(t, elsewhere, api.LauncherUID)
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, socket); err != nil {
		t.Fatal(err)
	}
	if _, err := guests.Freeze(t.Context(), "uid-1", time.Second); !errors.Is(err, ErrNoAgent) || other.said() != "" {
		t.Errorf("through a link: %v, asked %q", err, other.said())
	}
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	root := &launcher{}
	root.listen(t, socket, 0)
	if _, err := guests.Freeze(t.Context(), "uid-1", time.Second); !errors.Is(err, ErrNoAgent) || root.said() != "" {
		t.Errorf("root behind the socket: %v, asked %q", err, root.said())
	}
}
