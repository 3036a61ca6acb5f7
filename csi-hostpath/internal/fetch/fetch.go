// Package fetch reads a file from an HTTP server as one stream: connections that break or stall are made again and go on
// where they stopped, as long as the server still has the same version of the file (ST-042, ST-055).
package fetch

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// ErrChanged means that the server has another version of the file by now, or cannot go on where the stream stopped:
// whatever was made of it must be made anew.
var ErrChanged = errors.New("the file on the server has changed")

// Permanent is an answer of the server, or what is wrong with its identity, that another attempt would not change.
type Permanent string

// Error returns the reason.
func (p Permanent) Error() string { return string(p) }

// Pauses and limits of ST-055 and ST-042.
const (
	FirstPause   = time.Second
	LastPause    = time.Minute
	StallAfter   = time.Minute
	maxRedirects = 10
)

// Pin tells one version of a file from every other one.
type Pin struct {
	ETag         string `json:"etag,omitempty"` // strong ones only
	LastModified string `json:"lastModified,omitempty"`
	Length       int64  `json:"length"` // -1: the server did not say
}

// certain says whether the server named the version.
func (p Pin) certain() bool { return p.ETag != "" || p.LastModified != "" && p.Length >= 0 }

// Options of a stream.
type Options struct {
	URL      string
	Dial     func(ctx context.Context, network, address string) (net.Conn, error)
	Roots    *x509.CertPool
	Client   *tls.Certificate // for servers that want one
	Insecure bool             // any certificate will do
	Headers  http.Header      // for the host of URL only
	User     string           // empty: no basic authentication
	Password string
	// Authorize signs a request to the host of URL; nil: User, Password and Headers are all.
	Authorize func(*http.Request) error
	// Explain says why the server refused, from an answer; nil: its status says all.
	Explain func(*http.Response) string
	// Fixed says that the URL names the content, as digests of registries do: there is one version.
	Fixed bool
	// Transport makes the requests; nil: one made of the options above.
	Transport http.RoundTripper

	FirstPause, LastPause, StallAfter time.Duration // 0: the constants
	// ParallelFrom is how much must be left to be read by several requests at once, Piece what each asks for, in bytes; 0: the
	// constants.
	ParallelFrom, Piece int64
	// Retrying is told why an attempt failed and that there will be another; nil: nobody is told.
	Retrying func(err error)
}

// Stream is a file being read. It is for one reader; ReadAt and Transferred may be called meanwhile.
type Stream struct {
	ctx         context.Context //nolint:containedctx // a reader's Read has none
	opts        Options
	client      *http.Client
	pin         Pin
	ranged      bool
	offset      int64
	body        io.ReadCloser
	cancel      context.CancelFunc
	stall       *time.Timer
	transferred atomic.Int64
	restarts    atomic.Int64
	pause       time.Duration
	ahead       *ahead // nil: one request brings all
}

// Open begins to read at an offset: 0, or where an earlier stream of the version pin stopped. Only where the server does
// not know the version any more the error wraps [ErrChanged]. ctx is for the whole life of the stream.
func Open(ctx context.Context, opts Options, pin Pin, offset int64) (*Stream, error) {
	for _, d := range []struct {
		value *time.Duration
		usual time.Duration
	}{{&opts.FirstPause, FirstPause}, {&opts.LastPause, LastPause}, {&opts.StallAfter, StallAfter}} {
		if *d.value == 0 {
			*d.value = d.usual
		}
	}
	s := &Stream{ctx: ctx, opts: opts, pin: pin, offset: offset, pause: opts.FirstPause}
	if offset == 0 {
		s.pin = Pin{Length: -1}
	}
	s.client = &http.Client{Transport: opts.Transport, CheckRedirect: s.redirect}
	if opts.Transport == nil {
		s.client.Transport = opts.NewTransport()
	}
	return s, s.again(nil) //nolint:contextcheck // the stream has it
}

// Pin returns the version of the file.
func (s *Stream) Pin() Pin { return s.pin }

// Ranged says whether ReadAt works.
func (s *Stream) Ranged() bool { return s.ranged && s.pin.Length >= 0 }

// Transferred returns the bytes that came over the network, also those that came twice.
func (s *Stream) Transferred() int64 { return s.transferred.Load() }

// Restarts returns how often a connection was made again.
func (s *Stream) Restarts() int64 { return s.restarts.Load() }

// Close ends the connection.
func (s *Stream) Close() {
	if s.ahead != nil {
		s.ahead.close()
	}
	s.hangUp()
	s.client.CloseIdleConnections()
}

func (s *Stream) hangUp() {
	if s.body != nil {
		s.stall.Stop()
		s.cancel()
		_ = s.body.Close() // nothing was written to it
		s.body = nil
	}
}

// NewTransport returns what makes the connections of a stream.
func (o Options) NewTransport() *http.Transport {
	config := &tls.Config{
		RootCAs: o.Roots, MinVersion: tls.VersionTLS12,
		InsecureSkipVerify: o.Insecure, //nolint:gosec // the administrator allowed it for this host
	}
	if o.Client != nil {
		config.Certificates = []tls.Certificate{*o.Client}
	}
	return &http.Transport{
		DialContext: o.Dial, TLSClientConfig: config, ForceAttemptHTTP2: true, DisableCompression: true,
		TLSHandshakeTimeout: 30 * time.Second, ResponseHeaderTimeout: cmp.Or(o.StallAfter, StallAfter), MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConns: parallel, MaxIdleConnsPerHost: parallel, IdleConnTimeout: time.Minute,
	}
}

// redirect lets credentials go to the host they are for only, and never where others can read them.
func (s *Stream) redirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return Permanent(fmt.Sprintf("more than %d redirects", maxRedirects))
	}
	first := via[0].URL
	if req.URL.Scheme != "http" && req.URL.Scheme != "https" {
		return Permanent("redirected to scheme " + strconv.Quote(req.URL.Scheme))
	}
	if req.URL.Host != first.Host || first.Scheme == "https" && req.URL.Scheme != "https" {
		req.Header.Del("Authorization")
		req.Header.Del("X-Amz-Security-Token")
		for name := range s.opts.Headers {
			req.Header.Del(name)
		}
	}
	return nil
}

// Read reads on; when the connection breaks it makes another one.
func (s *Stream) Read(p []byte) (int, error) {
	for {
		if s.ahead != nil {
			return s.ahead.Read(p)
		}
		if s.body == nil {
			if err := s.again(nil); err != nil {
				return 0, err
			}
		}
		s.stall.Reset(s.opts.StallAfter)
		n, err := s.body.Read(p)
		s.offset += int64(n)
		s.transferred.Add(int64(n))
		if errors.Is(err, context.Canceled) && s.ctx.Err() == nil {
			err = fmt.Errorf("%s: no data for %s", s.name(), s.opts.StallAfter)
		}
		if n > 0 {
			s.pause = s.opts.FirstPause
		}
		atEnd := errors.Is(err, io.EOF)
		if atEnd && s.pin.Length >= 0 && s.offset < s.pin.Length {
			err, atEnd = io.ErrUnexpectedEOF, false
		}
		if err == nil || atEnd {
			return n, err
		}
		s.hangUp()
		if n > 0 {
			s.restarts.Add(1)
			s.tell(err)
			return n, nil
		}
		if err := s.again(err); err != nil {
			return 0, err
		}
	}
}

func (s *Stream) tell(err error) {
	if s.opts.Retrying != nil {
		s.opts.Retrying(err)
	}
}

// again connects, as often as it takes. cause is why the last connection ended; nil: there was none.
func (s *Stream) again(cause error) error {
	for {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if cause != nil {
			s.restarts.Add(1)
			s.tell(cause)
			if err := s.wait(cause); err != nil {
				return err
			}
		}
		cause = s.connect()
		var permanent Permanent
		if cause == nil || errors.As(cause, &permanent) || errors.Is(cause, ErrChanged) {
			return cause
		}
	}
}

// later is a failure after which the server wants to be left alone for a while.
type later struct {
	error
	pause time.Duration
}

// wait waits with jitter; pauses grow until something was read.
func (s *Stream) wait(cause error) error {
	pause := s.pause/2 + rand.N(s.pause/2+1) //nolint:gosec // jitter is no secret
	s.pause = min(2*s.pause, s.opts.LastPause)
	if asked, ok := errors.AsType[later](cause); ok {
		pause = max(pause, min(asked.pause, time.Hour))
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// connect makes one request for all from the offset on.
func (s *Stream) connect() error {
	ctx, cancel := context.WithCancel(s.ctx)
	stall := time.AfterFunc(s.opts.StallAfter, cancel)
	last := int64(-1)
	if s.offset > 0 && s.pin.Length > s.offset {
		last = s.pin.Length - 1 // some servers know no range without an end
	}
	resp, err := s.request(ctx, s.offset, last) //nolint:bodyclose // hangUp does
	if err != nil {
		stall.Stop()
		cancel()
		return err
	}
	s.body, s.cancel, s.stall = resp.Body, cancel, stall
	if err := s.accept(resp); err != nil {
		s.hangUp()
		return err
	}
	s.startAhead()
	return nil
}

// request asks for a range; last -1: to the end. The answer is 200 or 206.
func (s *Stream) request(ctx context.Context, first, last int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.opts.URL, nil)
	if err != nil {
		return nil, Permanent("not a URL")
	}
	maps.Copy(req.Header, s.opts.Headers)
	req.Header.Set("User-Agent", "podvirt-csi-hostpath")
	if s.opts.User != "" || s.opts.Password != "" {
		req.SetBasicAuth(s.opts.User, s.opts.Password)
	}
	if first > 0 || last >= 0 {
		span := fmt.Sprintf("bytes=%d-", first)
		if last >= 0 {
			span += strconv.FormatInt(last, 10)
		}
		req.Header.Set("Range", span)
		if condition := cmp.Or(s.pin.ETag, s.pin.LastModified); condition != "" {
			req.Header.Set("If-Range", condition)
		}
	}
	if s.opts.Authorize != nil {
		if err := s.opts.Authorize(req); err != nil {
			return nil, err
		}
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, s.failed(err)
	}
	if err := s.judge(resp); err != nil {
		_ = resp.Body.Close() // it is of no use
		return nil, err
	}
	return resp, nil
}

// failed says what went wrong without the query of the URL, which may hold a key.
func (s *Stream) failed(err error) error {
	if outer, ok := errors.AsType[*url.Error](err); ok {
		err = outer.Err
	}
	err = Lasting(err)
	if _, ok := errors.AsType[Permanent](err); ok {
		return err
	}
	return fmt.Errorf("%s: %w", s.name(), err)
}

// Lasting makes an error of a connection [Permanent] when another attempt would end the same: a wrong certificate, an
// address that is forbidden.
func Lasting(err error) error {
	var refusal interface{ Permanent() bool }
	if identity, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return Permanent(identity.Err.Error())
	}
	if errors.As(err, &refusal) && refusal.Permanent() {
		text, _ := refusal.(error)
		return Permanent(text.Error())
	}
	return err
}

// name is the URL as it may be shown.
func (s *Stream) name() string {
	parsed, err := url.Parse(s.opts.URL)
	if err != nil {
		return "the URL"
	}
	return parsed.Scheme + "://" + parsed.Host + parsed.Path
}

// judge turns answers that bring no data into errors.
func (s *Stream) judge(resp *http.Response) error {
	status := resp.StatusCode
	switch {
	case status == http.StatusOK, status == http.StatusPartialContent:
	case status == http.StatusRequestedRangeNotSatisfiable:
		return ErrChanged
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly, status == http.StatusTooManyRequests, status >= 500:
		err := fmt.Errorf("%s: %s", s.name(), resp.Status)
		if pause := retryAfter(resp.Header.Get("Retry-After")); pause > 0 {
			return later{err, pause}
		}
		return err
	default:
		text := fmt.Sprintf("%s: %d %s", s.name(), status, http.StatusText(status))
		if s.opts.Explain != nil {
			if why := s.opts.Explain(resp); why != "" {
				text += " (" + why + ")"
			}
		}
		return Permanent(text)
	}
	if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil && kind == "text/html" {
		return Permanent("the server sent text/html (a login page?), not a disk image")
	}
	return nil
}

// retryAfter reads seconds or a date (RFC 9110, 10.2.3); 0: neither.
func retryAfter(value string) time.Duration {
	if seconds, err := strconv.Atoi(value); err == nil {
		return time.Duration(min(seconds, 3600)) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return time.Until(at)
	}
	return 0
}

// accept looks whether the answer continues what was read, and skips what came before.
func (s *Stream) accept(resp *http.Response) error {
	pin, start, err := pinOf(resp)
	if err != nil {
		return err
	}
	if s.pin == (Pin{Length: -1}) && s.offset == 0 {
		s.pin, s.ranged = pin, strings.EqualFold(resp.Header.Get("Accept-Ranges"), "bytes") && pin.certain()
		return nil
	}
	same := pin == s.pin && (s.offset == 0 || s.pin.certain())
	if s.opts.Fixed {
		same = pin.Length == s.pin.Length
	}
	if !same || start > s.offset {
		return ErrChanged
	}
	s.ranged = s.ranged || resp.StatusCode == http.StatusPartialContent
	if start == s.offset {
		return nil
	}
	skipped, err := io.CopyN(io.Discard, &restless{s}, s.offset-start)
	s.transferred.Add(skipped)
	return err
}

// restless reads the body and keeps the stall timer from firing while something comes.
type restless struct{ s *Stream }

func (r *restless) Read(p []byte) (int, error) {
	r.s.stall.Reset(r.s.opts.StallAfter)
	return r.s.body.Read(p)
}

// pinOf reads the version of an answer and the offset at which it begins.
func pinOf(resp *http.Response) (pin Pin, start int64, err error) {
	pin = Pin{ETag: resp.Header.Get("ETag"), LastModified: resp.Header.Get("Last-Modified"), Length: resp.ContentLength}
	if strings.HasPrefix(pin.ETag, "W/") {
		pin.ETag = ""
	}
	if resp.StatusCode != http.StatusPartialContent {
		return pin, 0, nil
	}
	var end int64
	if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &start, &end, &pin.Length); err != nil {
		return Pin{}, 0, ErrChanged
	}
	return pin, start, nil
}

// ReadAt reads a piece by a request of its own.
func (s *Stream) ReadAt(p []byte, at int64) (int, error) {
	if at >= s.pin.Length {
		return 0, io.EOF
	}
	end := min(at+int64(len(p)), s.pin.Length)
	pause := s.opts.FirstPause
	for {
		n, err := s.readOnce(p[:end-at], at)
		var permanent Permanent
		switch {
		case err == nil && end-at < int64(len(p)):
			return n, io.EOF
		case err == nil, errors.As(err, &permanent), errors.Is(err, ErrChanged), s.ctx.Err() != nil:
			return n, err
		}
		s.restarts.Add(1)
		s.tell(err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-s.ctx.Done():
		}
		timer.Stop()
		pause = min(2*pause, s.opts.LastPause)
	}
}

func (s *Stream) readOnce(p []byte, at int64) (int, error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.opts.StallAfter)
	defer cancel()
	resp, err := s.request(ctx, at, at+int64(len(p))-1)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	pin, start, err := pinOf(resp)
	if err != nil || resp.StatusCode != http.StatusPartialContent || pin != s.pin || start != at {
		return 0, ErrChanged
	}
	n, err := io.ReadFull(resp.Body, p)
	s.transferred.Add(int64(n))
	return n, err
}
