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
	"os"
	"strconv"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"podvirt.dev/launcher/internal/console"
	"podvirt.dev/launcher/internal/virt"
)

// Server serves verbs and consoles on a unix socket.
type Server struct {
	Verbs map[string]Verb
	// Port returns serial port n, or nil where the VM has no such port.
	Port func(n int) *console.Port
}

// goodbye is how long requests that are being answered may take when the server ends.
const goodbye = time.Second

// Listen makes the socket at path, in place of one that a launcher left behind.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return l, os.Chmod(path, 0o600)
}

// Serve answers requests until ctx ends, then finishes those under way.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+consolePath, s.console)
	mux.HandleFunc("POST "+prefix+"{verb}", s.verb)
	base := context.WithoutCancel(ctx)
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: maxArguments,
		BaseContext: func(net.Listener) context.Context { return base },
	}
	ended := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(base, goodbye)
		defer cancel()
		ended <- server.Shutdown(grace)
	})
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-ended
}

func (s *Server) verb(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("verb")
	verb, ok := s.Verbs[name]
	if !ok {
		reply(w, Answer{}, fmt.Errorf("%w: no such verb: %s", ErrUsage, name))
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxArguments)
	if err := r.ParseForm(); err != nil {
		reply(w, Answer{}, fmt.Errorf("%w: %v", ErrUsage, err)) //nolint:errorlint // the cause is of no interest to callers
		return
	}
	answer, err := verb(r.Context(), r.Form)
	if err != nil {
		klog.FromContext(r.Context()).V(2).Info("verb refused", "verb", name, "why", err.Error())
	}
	reply(w, answer, err)
}

func reply(w http.ResponseWriter, answer Answer, err error) {
	if err != nil {
		answer.Error, answer.Code = err.Error(), exitCode(err)
	}
	w.Header().Set("Content-Type", answerContent)
	w.WriteHeader(httpStatus(answer.Code))
	_ = json.NewEncoder(w).Encode(answer) // the client has gone
}

// console turns the connection into the byte stream of a serial port.
func (s *Server) console(w http.ResponseWriter, r *http.Request) {
	port, mode, err := s.consoleOf(r)
	if err != nil {
		reply(w, Answer{}, err)
		return
	}
	session, err := port.Attach(mode)
	if err != nil {
		reply(w, Answer{}, err)
		return
	}
	defer func() { _ = session.Close() }()
	if !strings.EqualFold(r.Header.Get("Upgrade"), upgradeToken) {
		reply(w, Answer{}, fmt.Errorf("%w: not a stream", ErrUsage))
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		reply(w, Answer{}, err)
		return
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return
	}
	_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + upgradeToken + "\r\n\r\n")
	if rw.Flush() == nil {
		stream(conn, rw.Reader, session)
	}
}

func (s *Server) consoleOf(r *http.Request) (*console.Port, console.Mode, error) {
	query := r.URL.Query()
	number := 0
	if text := query.Get("port"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, console.Mode{}, fmt.Errorf("%w: port %q is not a number", ErrUsage, text)
		}
		number = n
	}
	port := s.Port(number)
	if port == nil {
		return nil, console.Mode{}, fmt.Errorf("%w: the VM has no serial port %d", ErrUsage, number)
	}
	if !port.IsConnected() {
		return nil, console.Mode{}, fmt.Errorf("%w: %w", virt.ErrWrongState, console.ErrNotConnected)
	}
	return port, console.Mode{ReadOnly: query.Has("read-only"), TakeOver: query.Has("take-over")}, nil
}

// stream copies both ways until the client leaves or the session ends.
func stream(conn net.Conn, from *bufio.Reader, session *console.Session) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := io.Copy(conn, session)
		if errors.Is(err, console.ErrTakenOver) {
			_, _ = io.WriteString(conn, "\r\n["+err.Error()+"]\r\n")
		}
		_ = conn.Close() // ends the copy below
	}()
	if _, err := io.Copy(session, from); errors.Is(err, console.ErrReadOnly) {
		_, _ = io.Copy(io.Discard, from)
	}
	_ = session.Close() // ends the copy above
	<-done
}
