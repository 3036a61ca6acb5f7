// Package status serves what the launcher knows of its VM at the port that is the launcher's under every binding
// (spec vm.md 2.8): /metrics for Prometheus, /status as JSON, and /probe/* for the kubelet.
//
// The metrics are written by hand in Prometheus' text format: a registry would keep every series in memory of every VM
// Pod for a scrape twice a minute.
package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/netutil"
	"k8s.io/klog/v2"

	"podvirt.dev/launcher/internal/probe"
)

// Source is what is served.
type Source interface {
	// Status returns the document of /status, which is encoded as JSON.
	Status() any
	// Figures returns what the metrics are made of. It is called once per scrape.
	Figures(ctx context.Context) Figures
	// Probe answers one probe; see probe.Prober.
	Probe(ctx context.Context, r probe.Request) error
}

// Limits of what others can ask of the launcher: the port is reachable by whoever reaches the Pod.
const (
	maxConnections = 16
	maxHeader      = 8 << 10
	headerTimeout  = 5 * time.Second
	answerTimeout  = 30 * time.Second
	idleTimeout    = time.Minute
	closeTimeout   = 2 * time.Second
)

// Server serves one VM.
type Server struct {
	http     *http.Server
	listener net.Listener
}

// New listens at the address and serves nothing yet.
func New(ctx context.Context, address string, source Source) (*Server, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("status port: %w", err)
	}
	return &Server{
		listener: netutil.LimitListener(listener, maxConnections),
		http: &http.Server{
			Handler: Handler(source), MaxHeaderBytes: maxHeader, ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout,
			WriteTimeout: answerTimeout, IdleTimeout: idleTimeout,
		},
	}, nil
}

// Addr returns the address that is listened at.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run serves until ctx ends. It returns nil when ctx ended.
func (s *Server) Run(ctx context.Context) error {
	s.http.BaseContext = func(net.Listener) context.Context { return ctx }
	stop := context.AfterFunc(ctx, func() {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if err := s.http.Shutdown(limited); err != nil {
			_ = s.http.Close() // somebody reads too slowly
		}
	})
	defer stop()
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("status port: %w", err)
	}
	return nil
}

// Handler answers the three kinds of requests.
func Handler(source Source) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		if err := source.Figures(r.Context()).write(w); err != nil {
			klog.FromContext(r.Context()).V(2).Info("metrics not sent", "err", err)
		}
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(source.Status()); err != nil {
			klog.FromContext(r.Context()).V(2).Info("status not sent", "err", err)
		}
	})
	mux.HandleFunc("GET /probe/{kind}", func(w http.ResponseWriter, r *http.Request) {
		answerProbe(w, r, source)
	})
	return mux
}

// answerProbe answers 200, 400 for a probe that was asked wrongly, or 503; with one line that the kubelet shows.
func answerProbe(w http.ResponseWriter, r *http.Request, source Source) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	request, err := probe.ParseURL(r.PathValue("kind"), query)
	if err == nil {
		err = source.Probe(r.Context(), request)
	}
	switch {
	case err == nil:
		_, _ = w.Write([]byte("ok\n")) // whoever hung up needs no answer
	case errors.Is(err, probe.ErrUsage):
		http.Error(w, oneLine(err), http.StatusBadRequest)
	default:
		http.Error(w, oneLine(err), http.StatusServiceUnavailable)
	}
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
