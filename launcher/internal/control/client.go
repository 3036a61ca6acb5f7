package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
)

// Client speaks to the launcher of the same container.
type Client struct {
	Path string // of the socket
}

// Do runs a verb. A *Refusal is what the launcher said; ErrNoLauncher that there is none.
func (c Client) Do(ctx context.Context, verb string, arguments url.Values) (Answer, error) {
	transport := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		DisableKeepAlives: true,
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://launcher"+prefix+url.PathEscape(verb),
		strings.NewReader(arguments.Encode()))
	if err != nil {
		return Answer{}, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := transport.RoundTrip(request)
	if err != nil {
		return Answer{}, err
	}
	defer func() { _ = response.Body.Close() }()
	return decode(response.Body)
}

func decode(body io.Reader) (Answer, error) {
	var answer Answer
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(&answer); err != nil {
		return Answer{}, fmt.Errorf("answer of the launcher: %w", err)
	}
	if answer.Error != "" {
		return answer, &Refusal{Code: answer.Code, Text: answer.Error}
	}
	return answer, nil
}

func (c Client) dial(ctx context.Context) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.Path)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, ErrNoLauncher
	}
	return conn, err
}

// Stream is the byte stream of a serial port.
type Stream struct {
	net.Conn
	buffered *bufio.Reader
}

// Read reads what the guest says.
func (s *Stream) Read(b []byte) (int, error) { return s.buffered.Read(b) }

// Console opens serial port n.
func (c Client) Console(ctx context.Context, arguments url.Values) (*Stream, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(conn, "GET %s?%s HTTP/1.1\r\nHost: launcher\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n",
		consolePath, arguments.Encode(), upgradeToken)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if response.StatusCode == http.StatusSwitchingProtocols {
		return &Stream{Conn: conn, buffered: reader}, nil
	}
	defer func() { _ = errors.Join(response.Body.Close(), conn.Close()) }()
	if _, err = decode(response.Body); err == nil {
		err = errors.New("the launcher did not open a stream")
	}
	return nil, err
}

// ExitCode is the exit status of launcher ctl for an error of a Client.
func ExitCode(err error) int {
	if refusal, ok := errors.AsType[*Refusal](err); ok {
		return refusal.Code
	}
	return exitCode(err)
}
