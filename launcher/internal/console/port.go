// Package console serves a serial port of the guest: QEMU listens on a unix socket, the launcher is its only client and
// hands the bytes on to any number of readers and one writer. The socket outlives the launcher, so that a new one has
// the console back (VM-125, VM-140).
package console

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
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
	conn      net.Conn
	history   []byte
	sessions  map[*Session]struct{}
	writer    *Session
	connected chan struct{} // closed while there is a connection
}

// New returns the port behind QEMU's socket at path. Run connects to it.
func New(path string) *Port {
	return &Port{path: path, sessions: map[*Session]struct{}{}, connected: make(chan struct{})}
}

// Run keeps the port connected, whenever QEMU is there, until ctx ends.
func (p *Port) Run(ctx context.Context) {
	stop := context.AfterFunc(ctx, p.disconnect)
	defer stop()
	tick := time.NewTicker(reconnectPause)
	defer tick.Stop()
	for ctx.Err() == nil {
		if conn, err := (&net.Dialer{}).DialContext(ctx, "unix", p.path); err == nil {
			p.connect(conn)
			if ctx.Err() == nil {
				p.read(conn)
			}
			p.disconnect()
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
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

func (p *Port) connect(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn = conn
	close(p.connected)
}

func (p *Port) disconnect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == nil {
		return
	}
	_ = p.conn.Close()
	p.conn = nil
	p.connected = make(chan struct{})
}

// read never waits for a session: a guest that prints must not be slowed by who reads.
func (p *Port) read(conn net.Conn) {
	buf := make([]byte, 16<<10)
	for {
		n, err := conn.Read(buf)
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
	conn := s.port.conn
	s.port.mu.Unlock()
	if conn == nil {
		return 0, ErrNotConnected
	}
	return conn.Write(data)
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
	return p.conn != nil
}
