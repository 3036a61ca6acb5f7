package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// What is long is read by several requests at once (ST-042), each for a piece.
const (
	parallel     = 4
	pieceSize    = 2 << 20  // bytes
	parallelFrom = 64 << 20 // bytes that are left; what is shorter comes by one request
)

// ahead reads the rest of a stream by pieces, some of which are under way before they are asked for. It belongs to the
// reader of the stream.
type ahead struct {
	s      *Stream
	ctx    context.Context //nolint:containedctx // as the stream's
	cancel context.CancelFunc
	queue  []*piece // in order; the first one is being read
	next   int64    // offset of the piece after the last one of the queue
	read   int      // bytes of the first one
	free   [][]byte
	fills  sync.WaitGroup
}

// piece is there when done is closed.
type piece struct {
	at   int64
	data []byte
	done chan struct{}
	err  error
}

// startAhead goes over to several requests where the server allows that and it is worth it. The answer that is there gives
// the first piece.
func (s *Stream) startAhead() {
	if !s.Ranged() || s.pin.Length-s.offset < cmp.Or(s.opts.ParallelFrom, parallelFrom) {
		return
	}
	a := &ahead{s: s, next: s.offset}
	a.ctx, a.cancel = context.WithCancel(s.ctx)
	s.ahead = a
	first := a.add()
	body, cancel, stall := s.body, s.cancel, s.stall
	s.body = nil
	a.fills.Go(func() {
		defer close(first.done)
		n, err := s.copyPiece(body, stall, first.data)
		stall.Stop()
		cancel()
		_ = body.Close() // nothing was written to it
		if err != nil {
			s.lost(err)
			first.err = a.fill(first, n)
		}
	})
}

// lost counts a connection that ended early.
func (s *Stream) lost(err error) {
	s.restarts.Add(1)
	s.tell(err)
}

// add puts the next piece into the queue.
func (a *ahead) add() *piece {
	size := min(cmp.Or(a.s.opts.Piece, pieceSize), a.s.pin.Length-a.next)
	var data []byte
	if last := len(a.free) - 1; last >= 0 {
		data, a.free = a.free[last], a.free[:last]
	} else {
		data = make([]byte, cmp.Or(a.s.opts.Piece, pieceSize))
	}
	p := &piece{at: a.next, data: data[:size], done: make(chan struct{})}
	a.queue = append(a.queue, p)
	a.next += size
	return p
}

// Read reads on. A piece is given out when it is whole.
func (a *ahead) Read(p []byte) (int, error) {
	for len(a.queue) < parallel && a.next < a.s.pin.Length {
		asked := a.add()
		a.fills.Go(func() {
			defer close(asked.done)
			asked.err = a.fill(asked, 0)
		})
	}
	if len(a.queue) == 0 {
		return 0, io.EOF
	}
	first := a.queue[0]
	<-first.done // it ends with the context
	if first.err != nil {
		return 0, first.err
	}
	n := copy(p, first.data[a.read:])
	a.s.offset += int64(n)
	if a.read += n; a.read == len(first.data) {
		a.queue, a.read = a.queue[1:], 0
		a.free = append(a.free, first.data[:cap(first.data)])
	}
	return n, nil
}

func (a *ahead) close() {
	a.cancel()
	a.fills.Wait()
}

// fill fetches a piece from its byte got on, as often as it takes.
func (a *ahead) fill(p *piece, got int) error {
	s := a.s
	pause := s.opts.FirstPause
	for got < len(p.data) {
		n, err := s.readRange(a.ctx, p.data[got:], p.at+int64(got))
		got += n
		var permanent Permanent
		switch {
		case err == nil:
			continue
		case a.ctx.Err() != nil:
			return a.ctx.Err()
		case errors.As(err, &permanent), errors.Is(err, ErrChanged):
			return err
		}
		if n > 0 {
			pause = s.opts.FirstPause
		}
		s.lost(err)
		wait := pause
		if asked, ok := errors.AsType[later](err); ok {
			wait = max(wait, asked.pause)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-a.ctx.Done():
			timer.Stop()
			return a.ctx.Err()
		}
		pause = min(2*pause, s.opts.LastPause)
	}
	return nil
}

// readRange reads one range, or what comes of it.
func (s *Stream) readRange(ctx context.Context, p []byte, at int64) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stall := time.AfterFunc(s.opts.StallAfter, cancel)
	defer stall.Stop()
	resp, err := s.request(ctx, at, at+int64(len(p))-1)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	pin, start, err := pinOf(resp)
	if err != nil || resp.StatusCode != http.StatusPartialContent || pin != s.pin || start != at {
		return 0, ErrChanged
	}
	return s.copyPiece(resp.Body, stall, p)
}

// copyPiece reads a piece; its connection is stalled when nothing comes for a while.
func (s *Stream) copyPiece(body io.Reader, stall *time.Timer, p []byte) (int, error) {
	got := 0
	for got < len(p) {
		n, err := body.Read(p[got:])
		got += n
		s.transferred.Add(int64(n))
		if n > 0 {
			stall.Reset(s.opts.StallAfter)
		}
		switch {
		case got == len(p), err == nil:
		case errors.Is(err, io.EOF):
			return got, io.ErrUnexpectedEOF
		case errors.Is(err, context.Canceled) && s.ctx.Err() == nil:
			return got, fmt.Errorf("%s: no data for %s", s.name(), s.opts.StallAfter)
		default:
			return got, err
		}
	}
	return got, nil
}
