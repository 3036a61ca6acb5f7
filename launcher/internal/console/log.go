package console

import (
	"bytes"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

const (
	// maxLine is where a line of the guest is cut (VM-141).
	maxLine = 16 << 10
	// DefaultRate is the most that goes to the Pod's log, in bytes per second.
	DefaultRate = 1 << 20
)

// LogWriter is the guest's console as the Pod's log: escape sequences and control characters are left out, lines are
// cut at 16 KiB, and what exceeds the rate is dropped, with a line that says how much (VM-141).
type LogWriter struct {
	out     io.Writer
	rate    float64
	now     func() time.Time
	dropped atomic.Int64 // ever

	filter  filter
	line    int // bytes of the line so far
	tokens  float64
	last    time.Time
	missing int64 // bytes dropped since the last marker
}

// NewLogWriter returns a writer to out that lets rate bytes per second pass; 0 is DefaultRate.
func NewLogWriter(out io.Writer, rate int64, now func() time.Time) *LogWriter {
	if rate <= 0 {
		rate = DefaultRate
	}
	return &LogWriter{out: out, rate: float64(rate), now: now, tokens: float64(rate), last: now()}
}

// Dropped is how many bytes were dropped since the start. It may be called from any goroutine.
func (w *LogWriter) Dropped() int64 { return w.dropped.Load() }

// Drop takes note of bytes that were lost before they came here.
func (w *LogWriter) Drop(n int64) {
	if n > 0 {
		w.missing += n
		w.dropped.Add(n)
	}
}

// Write takes raw bytes of the guest. An error is one of the log, not of the guest.
func (w *LogWriter) Write(data []byte) (int, error) {
	w.refill()
	clean := w.filter.clean(make([]byte, 0, len(data)), data)
	var out bytes.Buffer
	for len(clean) > 0 {
		n := bytes.IndexByte(clean, '\n') + 1
		if n == 0 {
			n = len(clean)
		}
		w.piece(&out, clean[:n])
		clean = clean[n:]
	}
	if out.Len() > 0 {
		if _, err := w.out.Write(out.Bytes()); err != nil {
			return 0, err
		}
	}
	return len(data), nil
}

func (w *LogWriter) refill() {
	now := w.now()
	w.tokens = min(w.rate, w.tokens+w.rate*now.Sub(w.last).Seconds())
	w.last = now
}

// piece is a line or a part of one.
func (w *LogWriter) piece(out *bytes.Buffer, text []byte) {
	if float64(len(text)) > w.tokens {
		w.Drop(int64(len(text)))
		return
	}
	if w.missing > 0 {
		if w.line > 0 {
			out.WriteByte('\n')
			w.line = 0
		}
		fmt.Fprintf(out, "[podvirt: %d bytes of the console were dropped]\n", w.missing)
		w.missing = 0
	}
	w.tokens -= float64(len(text))
	for len(text) > 0 {
		room := maxLine - w.line
		if room <= 0 {
			out.WriteByte('\n')
			w.line, room = 0, maxLine
		}
		n := min(room, len(text))
		out.Write(text[:n])
		w.line += n
		if text[n-1] == '\n' {
			w.line = 0
		}
		text = text[n:]
	}
}

// filter leaves out terminal control: ECMA-48 escape sequences and every control character but newline and tab.
type filter struct{ state filterState }

type filterState int

const (
	plain      filterState = iota
	escape                 // after ESC
	control                // in a control sequence: ESC [ … final byte
	text                   // in a string: ESC ], P, X, ^, _ … up to BEL or ESC \
	textEscape             // ESC in a string
)

const (
	asciiBEL = 0x07
	asciiESC = 0x1b
	asciiDEL = 0x7f
)

// clean appends to out what of in is text.
func (f *filter) clean(out, in []byte) []byte {
	for _, c := range in {
		switch f.state {
		case plain:
			if c == '\n' || c == '\t' || (c >= ' ' && c != asciiDEL) {
				out = append(out, c)
			}
			if c == asciiESC {
				f.state = escape
			}
		case escape:
			f.state = afterEscape(c)
		case control:
			if c >= 0x40 && c <= 0x7e {
				f.state = plain
			}
		case text:
			f.state = inText(c)
		case textEscape:
			f.state = plain
			if c != '\\' {
				f.state = afterEscape(c)
			}
		}
	}
	return out
}

// inText is the state after one more byte of a string. One that does not end within its line was none.
func inText(c byte) filterState {
	switch c {
	case asciiBEL, '\n':
		return plain
	case asciiESC:
		return textEscape
	default:
		return text
	}
}

func afterEscape(c byte) filterState {
	switch {
	case c == '[':
		return control
	case c == ']' || c == 'P' || c == 'X' || c == '^' || c == '_':
		return text
	case c >= 0x20 && c <= 0x2f: // an intermediate byte; the final one follows
		return escape
	case c == asciiESC:
		return escape
	default:
		return plain
	}
}
