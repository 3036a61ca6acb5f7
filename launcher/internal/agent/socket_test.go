package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// syncByte begins the answer of guest-sync-delimited and can stand nowhere in JSON text. Sent to the agent it makes
// its parser drop whatever half request it may hold.
const syncByte = 0xFF

// Socket is the transport over the unix socket of the channel. It connects when it is first used and again after an
// error; every new or disturbed connection is synchronised before a command is sent, since answers of commands that
// timed out may still lie in the channel.
type Socket struct {
	path string

	mu     sync.Mutex
	conn   net.Conn
	reader *bufio.Reader
	synced bool
	lastID int64
}

var _ Transport = (*Socket)(nil)

// NewSocket returns a transport over the socket at path. It does not connect yet.
func NewSocket(path string) *Socket { return &Socket{path: path} }

// Close drops the connection. A later Do connects again.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drop()
}

func (s *Socket) drop() error {
	if s.conn == nil {
		return nil
	}
	err := s.conn.Close()
	s.conn, s.reader, s.synced = nil, nil, false
	return err
}

// Do sends one request and returns its answer.
func (s *Socket) Do(ctx context.Context, request []byte, limit int) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer, err := s.exchange(ctx, request, limit)
	if err != nil {
		s.synced = false
		if !errors.Is(err, ErrTimeout) {
			_ = s.drop() // the connection's state is unknown; the error that matters is the first
		}
	}
	return answer, err
}

func (s *Socket) exchange(ctx context.Context, request []byte, limit int) ([]byte, error) {
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	conn := s.conn // the function may run when the connection has been dropped
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	deadline, _ := ctx.Deadline() // the zero time: no deadline
	if err := s.conn.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotConnected, err)
	}
	if !s.synced {
		if err := s.sync(); err != nil {
			return nil, err
		}
	}
	if err := s.send(request); err != nil {
		return nil, err
	}
	return s.line(limit)
}

func (s *Socket) connect(ctx context.Context) error {
	if s.conn != nil {
		return nil
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", s.path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotConnected, err)
	}
	s.conn, s.reader, s.synced = conn, bufio.NewReaderSize(conn, 4096), false
	return nil
}

// sync sends guest-sync-delimited with a number and drops everything until the answer with that number: the left-overs
// of earlier commands, or of another user of the channel.
func (s *Socket) sync() error {
	s.lastID++
	id := time.Now().UnixNano()&0x7fffffff<<16 | s.lastID&0xffff
	request := fmt.Appendf([]byte{syncByte}, `{"execute":"guest-sync-delimited","arguments":{"id":%d}}`, id)
	if err := s.send(request); err != nil {
		return err
	}
	for skipped := 0; skipped < maxAnswer; {
		b, err := s.reader.ReadByte()
		if err != nil {
			return s.ioError(err)
		}
		skipped++
		if b != syncByte {
			continue
		}
		line, err := s.line(maxText)
		if err != nil {
			return err
		}
		skipped += len(line)
		line = line[bytes.LastIndexByte(line, syncByte)+1:] // a left-over without newline stands before the answer
		var answer struct {
			Return int64 `json:"return"`
		}
		if json.Unmarshal(line, &answer) == nil && answer.Return == id {
			s.synced = true
			return nil
		}
	}
	return fmt.Errorf("%w: no end of old answers", ErrAnswer)
}

func (s *Socket) send(request []byte) error {
	if _, err := s.conn.Write(append(bytes.Clone(request), '\n')); err != nil {
		return s.ioError(err)
	}
	return nil
}

// line reads one answer up to its newline, at most limit bytes.
func (s *Socket) line(limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := s.reader.ReadSlice('\n')
		if len(line)+len(part) > limit {
			return nil, fmt.Errorf("%w: more than %d bytes", ErrAnswer, limit)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return bytes.TrimSpace(line), nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, s.ioError(err)
		}
	}
}

// ioError says in our words why the connection failed. A channel without an agent behind it takes bytes and gives none,
// so a timeout before the first sync means that no agent runs.
func (s *Socket) ioError(err error) error {
	switch {
	case !errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: %w", ErrNotConnected, err)
	case s.synced:
		return ErrTimeout
	default:
		return fmt.Errorf("%w: %w", ErrNotConnected, ErrTimeout)
	}
}
