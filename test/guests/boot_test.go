package guests_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"podvirt.dev/internal/require"
	"podvirt.dev/internal/transcript"
)

// guest is a running QEMU with one of our disks.
type guest struct {
	console *console
	stdin   io.WriteCloser
	monitor string
	http    string // address on this host at which the guest's port 80 is
	exited  chan error
}

// boot starts a guest on a copy-on-write overlay of its disk. It is killed when the test ends.
func boot(t *testing.T, name string, args ...string) *guest {
	t.Helper()
	qemu, err := exec.LookPath("qemu-system-x86_64")
	require.Feature(t, err == nil, "qemu-system-x86_64")
	base := disk(t, name)
	dir := t.TempDir()
	overlay := filepath.Join(dir, "overlay.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, overlay)
	g := &guest{console: &console{}, monitor: filepath.Join(dir, "monitor"), http: freePort(t), exited: make(chan error, 1)}
	all := append([]string{
		"-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg,thread=multi", "-m", "1024", "-smp", "2",
		"-serial", "stdio", "-monitor", "unix:" + g.monitor + ",server,nowait",
		"-drive", "if=virtio,cache=unsafe,file=" + overlay, "-device", "virtio-rng-pci",
		"-netdev", "user,id=net,hostfwd=tcp:" + g.http + "-:80", "-device", "virtio-net-pci,netdev=net",
	}, args...)
	cmd := exec.CommandContext(t.Context(), qemu, all...)
	cmd.Stdout, cmd.Stderr = g.console, g.console
	if g.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { g.exited <- cmd.Wait() }()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("qemu: %q\nconsole:\n%s", all, g.console)
		}
	})
	return g
}

// disk returns the path of a guest's disk.
func disk(t *testing.T, name string) string {
	t.Helper()
	cache := os.Getenv("PODVIRT_CACHE")
	if cache == "" {
		cache = "/var/cache/podvirt"
	}
	path, err := filepath.EvalSymlinks(filepath.Join(cache, "images", "parts", name+".qcow2"))
	require.Feature(t, err == nil, name+": go run ./images disk "+name+" builds it")
	return path
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

// say types a line at the console.
func (g *guest) say(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(g.stdin, line+"\n"); err != nil {
		t.Fatal(err)
	}
}

// press gives a command to QEMU's monitor.
func (g *guest) press(t *testing.T, command string) {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "unix", g.monitor)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	// The answer, a prompt after the command, says that it was taken.
	if _, err := io.WriteString(conn, command+"\n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var answer bytes.Buffer
	buffer := make([]byte, 256)
	for strings.Count(answer.String(), "(qemu)") < 2 {
		n, err := conn.Read(buffer)
		if err != nil {
			t.Fatalf("monitor: %v after %q", err, answer.String())
		}
		answer.Write(buffer[:n])
	}
}

// ends waits until the guest has powered itself off.
func (g *guest) ends(t *testing.T, limit time.Duration) {
	t.Helper()
	select {
	case err := <-g.exited:
		if err != nil {
			t.Fatalf("QEMU: %v", err)
		}
	case <-time.After(limit):
		t.Fatalf("the guest still runs after %v", limit)
	}
}

// get asks the guest's web server until it answers.
func (g *guest) get(t *testing.T, path string, limit time.Duration) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		body, err := fetch(ctx, http.MethodGet, "http://"+g.http+path, "")
		if err == nil {
			return body
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			t.Fatalf("GET %s: %v", path, last)
		case <-tick.C:
		}
	}
}

func fetch(ctx context.Context, method, url, body string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = answer.Body.Close() }()
	content, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s", answer.Status, content)
	}
	return string(content), err
}

// console is what a guest wrote.
type console struct{ transcript.Transcript }

// await waits until the text was written after the first from bytes, and returns where it ends.
func (c *console) await(t *testing.T, from int, text string, limit time.Duration) int {
	t.Helper()
	timeout := time.After(limit)
	for {
		all, more := c.Follow()
		if at := strings.Index(all[from:], text); at >= 0 {
			return from + at + len(text)
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("the console does not say %q within %v", text, limit)
		}
	}
}
