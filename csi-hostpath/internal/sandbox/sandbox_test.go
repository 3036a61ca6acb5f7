package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"podvirt.dev/internal/require"
)

// TestMain makes the test binary the confined program, which then does what an exploit would try.
func TestMain(m *testing.M) {
	if len(os.Args) < 2 || os.Args[1] != Command {
		m.Run()
		return
	}
	err := Enter(os.Args[2:])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(attempts())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// attempts are the errors of what must not work, and of what must.
func attempts() map[string]string {
	results := map[string]string{}
	try := func(name string, do func() error) {
		results[name] = "done"
		if err := do(); err != nil {
			results[name] = err.Error()
		}
	}
	try("open", func() error { _, err := os.Open("/etc/passwd"); return err })
	try("open itself", func() error { _, err := os.Open("/proc/self/exe"); return err })
	try("create", func() error { return os.WriteFile("/tmp/podvirt-escaped", nil, 0o600) })
	try("stat", func() error { _, err := os.Stat("/etc/passwd"); return err })
	try("exec", func() error { return unix.Exec("/bin/sh", []string{"sh"}, nil) })
	try("fork", func() error {
		_, _, errno := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
		return failure(errno)
	})
	try("connect", func() error { _, err := net.Dial("tcp", "127.0.0.1:1"); return err })
	try("socket", func() error { _, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err })
	try("ptrace", func() error { return unix.PtraceAttach(os.Getppid()) })
	try("kill", func() error { return unix.Kill(os.Getppid(), 0) })
	try("setuid", func() error { _, _, errno := unix.RawSyscall(unix.SYS_SETUID, 0, 0, 0); return failure(errno) })
	try("io_uring", func() error {
		var parameters [128]byte
		_, _, errno := unix.RawSyscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&parameters)), 0)
		return failure(errno)
	})
	try("executable memory", func() error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_EXEC|unix.PROT_READ, unix.MAP_ANON|unix.MAP_PRIVATE)
		return err
	})
	try("truncate", func() error { return unix.Ftruncate(OutputFD, 0) })
	out := os.NewFile(OutputFD, "output")
	try("write past the end", func() error { _, err := out.WriteAt([]byte("x"), 1<<20); return err })
	try("too much memory", func() error {
		_, err := unix.Mmap(-1, 0, 512<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		return err
	})
	try("write", func() error { _, err := out.WriteAt([]byte("inside"), 100); return err })
	try("sync", out.Sync)
	try("use its broker", func() error {
		conn, err := NewBroker(BrokerFD).Dial(nil, "", "server:80") //nolint:staticcheck // it has no use for a context
		if err != nil {
			return err
		}
		text, err := io.ReadAll(conn)
		if string(text) != "hello" {
			return fmt.Errorf("%q, %w", text, err)
		}
		return conn.Close()
	})
	try("be refused by its broker", func() error { _, err := NewBroker(BrokerFD).Dial(nil, "", "elsewhere:80"); return err }) //nolint:staticcheck // as above
	return results
}

func failure(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// TestConfined: a process that was taken over can write its file, use the connections it is given, and nothing else.
func TestConfined(t *testing.T) {
	require.Root(t)
	require.Feature(t, Landlock(), "Landlock")
	output, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	if err := output.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "broker")
	served := make(chan error, 1)
	go func() { served <- Serve(t.Context(), pair[0], greeting(t)) }()

	cmd := exec.Command("/proc/self/exe", Limits{Memory: 256 << 20, FileSize: 1 << 20}.Args()...)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = "/", []string{}, &stdout, &stderr, []*os.File{theirs, output}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: User, Gid: User}}
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	if err := errors.Join(theirs.Close(), <-served); err != nil {
		t.Error(err)
	}
	results := map[string]string{}
	if err := json.Unmarshal(stdout.Bytes(), &results); err != nil {
		t.Fatalf("%v\n%s\n%s", err, stdout.String(), stderr.String())
	}
	for name, result := range results {
		want := "operation not permitted"
		switch name {
		case "write", "sync", "use its broker":
			want = "done"
		case "be refused by its broker":
			want = "not there"
		case "write past the end":
			want = "file too large"
		case "too much memory":
			want = "cannot allocate memory"
		}
		if !strings.Contains(result, want) {
			t.Errorf("%s: %s; want %s", name, result, want)
		}
	}
	written := make([]byte, 6)
	if _, err := output.ReadAt(written, 100); err != nil || string(written) != "inside" {
		t.Errorf("the output holds %q, %v", written, err)
	}
}
