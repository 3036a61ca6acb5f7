// Package console serves a serial port of the guest: QEMU has both ends of two named pipes open, the launcher takes the
// bytes from one and hands them on to any number of readers, and one writer's to the other. The pipes outlive the launcher,
// so that a new one has the console back, with what was said meanwhile (VM-125, VM-140).
//
// Pipes and not a socket: QEMU writes byte by byte, and a socket counts several hundred bytes for each, so that it is full
// after some 270. A guest's kernel that finds its UART busy for 10 ms goes on and loses what it says (linux:
// drivers/tty/serial/8250/8250_port.c wait_for_lsr). A pipe holds 64 KiB of single bytes.
package console

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Sizes in bytes.
const (
	// History is what a new reader is shown first (VM-140).
	History = 64 << 10
	// backlog is how far a reader may fall behind before it loses the oldest bytes.
	backlog = 256 << 10
)

const reconnectPause = 100 * time.Millisecond

// Errors of Attach and of sessions.
var (
	// ErrBusy says that somebody else writes; a reader, or take-over, is possible.
	ErrBusy = errors.New("the console is in use; --take-over takes it, --read-only looks on")
	// ErrTakenOver ends the session of a writer whose place was taken.
	ErrTakenOver = errors.New("the console was taken over")
	// ErrReadOnly says that the session may not write.
	ErrReadOnly = errors.New("this session is read-only")
	// ErrNotConnected says that the VM is off.
	ErrNotConnected = errors.New("the console is not connected: the VM is off")
)

// Port is one serial port.
type Port struct {
	path string

	mu        sync.Mutex
	qemu      *pipes // nil: QEMU is not there
	history   []byte
	sessions  map[*Session]struct{}
	writer    *Session
	connected chan struct{} // closed while there is a connection
}

// pipes are the launcher's ends.
type pipes struct{ in, out *os.File }

func (p *pipes) close() { _ = errors.Join(p.in.Close(), p.out.Close()) }

// New returns the port behind the pipes path.in, which QEMU reads, and path.out, which it writes. It makes them where they
// are not there; Run opens them.
func New(path string) (*Port, error) {
	for _, pipe := range []string{path + in, path + out} {
		if err := unix.Mkfifo(pipe, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, &os.PathError{Op: "mkfifo", Path: pipe, Err: err}
		}
	}
	return &Port{path: path, sessions: map[*Session]struct{}{}, connected: make(chan struct{})}, nil
}

// The names that QEMU gives to the two pipes of a character device (qemu: chardev/char-pipe.c).
const (
	in  = ".in"
	out = ".out"
)

// Run keeps the port connected, whenever QEMU is there, until ctx ends.
func (p *Port) Run(ctx context.Context) {
	stop := context.AfterFunc(ctx, p.disconnect)
	defer stop()
	tick := time.NewTicker(reconnectPause)
	defer tick.Stop()
	for ctx.Err() == nil {
		if qemu, err := p.open(); err == nil {
			p.connect(qemu)
			if ctx.Err() == nil {
				p.read(qemu.out)
			}
			p.disconnect()
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// open fails with ENXIO while QEMU is not there. Without QEMU, reading ends.
func (p *Port) open() (*pipes, error) {
	writes, err := os.OpenFile(p.path+in, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	reads, err := os.OpenFile(p.path+out, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, errors.Join(err, writes.Close())
	}
	return &pipes{in: writes, out: reads}, nil
}

// Connected waits until the port is connected, so that nothing of what the guest says is missed.
func (p *Port) Connected(ctx context.Context) error {
	p.mu.Lock()
	ready := p.connected
	p.mu.Unlock()
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *Port) connect(qemu *pipes) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.qemu = qemu
	close(p.connected)
}

func (p *Port) disconnect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.qemu == nil {
		return
	}
	p.qemu.close()
	p.qemu = nil
	p.connected = make(chan struct{})
}

// read never waits for a session: a guest that prints must not be slowed by who reads.
func (p *Port) read(from io.Reader) {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		p.deliver(buf[:n])
		if err != nil {
			return
		}
	}
}

func (p *Port) deliver(data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.history = appendBounded(p.history, data, History)
	for s := range p.sessions {
		s.put(data)
	}
}

// appendBounded appends and keeps the last limit bytes. It moves bytes once per limit, not once per call.
func appendBounded(buf, data []byte, limit int) []byte {
	buf = append(buf, data...)
	if len(buf) > 2*limit {
		buf = append(buf[:0], buf[len(buf)-limit:]...)
	}
	return buf
}

// Mode of a session.
type Mode struct {
	ReadOnly bool
	TakeOver bool // take the place of the writer, if there is one
	// TakeOverIdle takes it from a writer who has written nothing for that long. 0: from none.
	TakeOverIdle time.Duration
	// NoHistory leaves out what was said before.
	NoHistory bool
}

// Attach opens a session. Close it.
func (p *Port) Attach(mode Mode) (*Session, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &Session{port: p, readOnly: mode.ReadOnly, wake: make(chan struct{}, 1), wrote: time.Now()}
	if !mode.ReadOnly {
		if p.writer != nil && !mode.takesOver(p.writer) {
			return nil, ErrBusy
		}
		if p.writer != nil {
			p.writer.endLocked(ErrTakenOver)
		}
		p.writer = s
	}
	if !mode.NoHistory {
		tail := p.history
		s.put(tail[max(0, len(tail)-History):])
	}
	p.sessions[s] = struct{}{}
	return s, nil
}

func (m Mode) takesOver(writer *Session) bool {
	writer.mu.Lock()
	defer writer.mu.Unlock()
	return m.TakeOver || m.TakeOverIdle > 0 && time.Since(writer.wrote) >= m.TakeOverIdle
}

// Session is one reader of the port, and its writer unless it is read-only. Read may be called by one goroutine and
// Write by another.
type Session struct {
	port     *Port
	readOnly bool
	wake     chan struct{}

	mu      sync.Mutex
	waiting []byte
	lost    int64
	wrote   time.Time // the last time, or when the session began
	end     error
}

// put is called with the port locked.
func (s *Session) put(data []byte) {
	s.mu.Lock()
	s.waiting = append(s.waiting, data...)
	if over := len(s.waiting) - backlog; over > 0 {
		s.waiting = append(s.waiting[:0], s.waiting[over:]...)
		s.lost += int64(over)
	}
	s.mu.Unlock()
	s.signal()
}

func (s *Session) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Read returns what the guest said. It waits for at least one byte, and ends with io.EOF after Close, or with
// ErrTakenOver.
func (s *Session) Read(buf []byte) (int, error) {
	for {
		s.mu.Lock()
		n := copy(buf, s.waiting)
		s.waiting = s.waiting[n:]
		if len(s.waiting) == 0 {
			s.waiting = nil
		}
		end := s.end
		s.mu.Unlock()
		switch {
		case n > 0:
			return n, nil
		case end != nil:
			return 0, end
		}
		<-s.wake
	}
}

// Lost returns how many bytes this reader has missed since the last call because it was too slow.
func (s *Session) Lost() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.lost
	s.lost = 0
	return n
}

// Write sends bytes to the guest. It waits where the guest does not read.
func (s *Session) Write(data []byte) (int, error) {
	s.mu.Lock()
	end := s.end
	s.wrote = time.Now()
	s.mu.Unlock()
	if end != nil {
		return 0, end
	}
	if s.readOnly {
		return 0, ErrReadOnly
	}
	s.port.mu.Lock()
	qemu := s.port.qemu
	s.port.mu.Unlock()
	if qemu == nil {
		return 0, ErrNotConnected
	}
	n, err := qemu.in.Write(data)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, os.ErrClosed) { // it died just now
		err = ErrNotConnected
	}
	return n, err
}

// Close ends the session.
func (s *Session) Close() error {
	s.port.mu.Lock()
	defer s.port.mu.Unlock()
	s.endLocked(io.EOF)
	return nil
}

// endLocked is called with the port locked.
func (s *Session) endLocked(why error) {
	delete(s.port.sessions, s)
	if s.port.writer == s {
		s.port.writer = nil
	}
	s.mu.Lock()
	if s.end == nil {
		s.end = why
	}
	s.mu.Unlock()
	s.signal()
}

// IsConnected says whether QEMU is there.
func (p *Port) IsConnected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.qemu != nil
}
