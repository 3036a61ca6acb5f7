package console

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// qemu is the other end of a port, as QEMU opens it: both pipes for reading and writing (qemu: chardev/char-pipe.c).
type qemu struct{ in, out *os.File }

func (q *qemu) Read(b []byte) (int, error)  { return q.in.Read(b) }
func (q *qemu) Write(b []byte) (int, error) { return q.out.Write(b) }

// die closes what QEMU has open.
func (q *qemu) die() { _ = errors.Join(q.in.Close(), q.out.Close()) }

func newQEMU(t *testing.T, path string) *qemu {
	t.Helper()
	open := func(name string) *os.File {
		f, err := os.OpenFile(name, os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	q := &qemu{in: open(path + in), out: open(path + out)}
	t.Cleanup(q.die)
	return q
}

// running is a port, running, and its QEMU.
func running(t *testing.T) (*Port, *qemu) {
	t.Helper()
	p, err := New(filepath.Join(t.TempDir(), "serial0"))
	if err != nil {
		t.Fatal(err)
	}
	q := newQEMU(t, p.path)
	run(t, p)
	await(t, p)
	return p, q
}

func await(t *testing.T, p *Port) {
	t.Helper()
	if err := p.Connected(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, s io.Reader, want string) {
	t.Helper()
	buf := make([]byte, len(want))
	if _, err := io.ReadFull(s, buf); err != nil || string(buf) != want {
		t.Errorf("read %q (%v), want %q", buf, err, want)
	}
}

func say(t *testing.T, c io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func TestOneWriterManyReaders(t *testing.T) {
	p, qemu := running(t)
	first, err := p.Attach(Mode{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Attach(Mode{}); !errors.Is(err, ErrBusy) {
		t.Errorf("a second writer: %v", err)
	}
	reader, err := p.Attach(Mode{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	say(t, qemu, "hello")
	read(t, first, "hello")
	read(t, reader, "hello")
	if _, err := reader.Write([]byte("x")); !errors.Is(err, ErrReadOnly) {
		t.Errorf("a reader writes: %v", err)
	}
	second, err := p.Attach(Mode{TakeOver: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, ErrTakenOver) {
		t.Errorf("the first writer: %v", err)
	}
	read(t, second, "hello") // history
	if _, err := io.WriteString(second, "keys"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(qemu, got); err != nil || string(got) != "keys" {
		t.Errorf("the guest reads %q (%v)", got, err)
	}
	if _, err := p.Attach(Mode{TakeOverIdle: time.Hour}); !errors.Is(err, ErrBusy) {
		t.Errorf("a second writer beside a busy one: %v", err)
	}
	third, err := p.Attach(Mode{TakeOverIdle: 1})
	if err != nil {
		t.Errorf("a second writer beside an idle one: %v", err)
	}
	if _, err := second.Write([]byte("x")); !errors.Is(err, ErrTakenOver) {
		t.Errorf("the idle writer: %v", err)
	}
	if err := third.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Attach(Mode{}); err != nil {
		t.Errorf("after the writer has left: %v", err)
	}
}

func TestSlowReaderLosesAndGuestDoesNotWait(t *testing.T) {
	p, qemu := running(t)
	slow, err := p.Attach(Mode{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	fast, err := p.Attach(Mode{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	const flood = 4 << 20
	go func() { _, _ = qemu.Write(bytes.Repeat([]byte("x"), flood)) }()
	seen := int64(0)
	for buf := make([]byte, 64<<10); seen < flood; {
		n, err := fast.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		seen += int64(n) + fast.Lost()
	}
	p.mu.Lock() // so that the last bytes are with both
	defer p.mu.Unlock()
	if lost := slow.Lost(); lost != flood-backlog {
		t.Errorf("the slow reader has lost %d bytes, want %d", lost, flood-backlog)
	}
}

// TestNothingIsLost: what QEMU says byte by byte while the launcher does not read, or is not there, is there afterwards,
// also the last words of a QEMU that has died; and the next QEMU has the port.
func TestNothingIsLost(t *testing.T) {
	p, err := New(filepath.Join(t.TempDir(), "serial0"))
	if err != nil {
		t.Fatal(err)
	}
	first := newQEMU(t, p.path)
	stop := run(t, p)
	await(t, p)
	stop()
	if p.IsConnected() {
		t.Error("connected after the end of the launcher")
	}
	if p, err = New(p.path); err != nil { // a new launcher
		t.Fatal(err)
	}
	reader, err := p.Attach(Mode{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("0123456789abcde\n", 4<<10) // 64 KiB
	for _, b := range []byte(text) {
		if _, err := first.Write([]byte{b}); err != nil {
			t.Fatalf("the guest waits: %v", err)
		}
	}
	run(t, p)
	await(t, p)
	read(t, reader, text)
	say(t, first, "last words")
	first.die()
	read(t, reader, "last words")
	for p.IsConnected() {
		select {
		case <-time.After(time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("connected without QEMU")
		}
	}
	writer, err := p.Attach(Mode{NoHistory: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := writer.Write([]byte("x")); !errors.Is(err, ErrNotConnected) {
		t.Errorf("keys without QEMU: %v", err)
	}
	second := newQEMU(t, p.path)
	await(t, p)
	say(t, second, "hello")
	read(t, reader, "hello")
	say(t, writer, "keys")
	read(t, second, "keys")
}

// run runs the port until the test ends or stop is called.
func run(t *testing.T, p *Port) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		p.Run(ctx)
		close(done)
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

func TestLogWriter(t *testing.T) {
	for _, test := range []struct {
		name string
		in   []string
		want string
	}{
		{"plain", []string{"one\r\ntwo\n"}, "one\ntwo\n"},
		{"colours", []string{"\x1b[1;31mred\x1b[0m\n"}, "red\n"},
		{"a sequence in two pieces", []string{"a\x1b[3", "1mb\n"}, "ab\n"},
		{"window title", []string{"\x1b]0;title\x07text\x1b]0;x\x1b\\!\n"}, "text!\n"},
		{"character set", []string{"\x1b(Bx\x1b)0y\x1b=z\n"}, "xyz\n"},
		{"control characters", []string{"a\x00\x08\x07b\x7f\tc\n"}, "ab\tc\n"},
		{"a title without an end", []string{"\x1b]0;evil\nnext\n"}, "next\n"},
		{"UTF-8", []string{"grün €\n"}, "grün €\n"},
		{"long line", []string{strings.Repeat("x", maxLine+3) + "\n"}, strings.Repeat("x", maxLine) + "\nxxx\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			now := time.Unix(0, 0)
			w := NewLogWriter(&out, 0, func() time.Time { return now })
			for _, piece := range test.in {
				if _, err := io.WriteString(w, piece); err != nil {
					t.Fatal(err)
				}
			}
			if out.String() != test.want {
				t.Errorf("got %.200q, want %.200q", out.String(), test.want)
			}
		})
	}
}

func TestLogRate(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	w := NewLogWriter(&out, 10, func() time.Time { return now })
	for range 3 {
		_, _ = io.WriteString(w, "12345\n")
	}
	now = now.Add(time.Second)
	_, _ = io.WriteString(w, "late\n")
	want := "12345\n[podvirt: 12 bytes of the console were dropped]\nlate\n"
	if out.String() != want || w.Dropped() != 12 {
		t.Errorf("got %q, %d dropped; want %q", out.String(), w.Dropped(), want)
	}
}

func FuzzLogWriter(f *testing.F) {
	f.Add([]byte("\x1b[31m\x1b]0;x\x07\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var out bytes.Buffer
		w := NewLogWriter(&out, 1<<30, time.Now)
		if n, err := w.Write(data); n != len(data) || err != nil {
			t.Fatal(n, err)
		}
		if bytes.ContainsAny(out.Bytes(), "\x1b\r\x00\x7f") {
			t.Errorf("%q has control characters", out.Bytes())
		}
	})
}
