// Command guestd is what the tiny guest serves to tests: HTTP on ports 80 and 8080, gRPC health on port 9000, and a TCP
// echo on port 7.
//
//	GET  /            the name of the guest
//	GET  /uptime      seconds since it booted
//	GET  /cpuinfo     the kernel's /proc/cpuinfo
//	GET  /data/NAME   a file of the data disk
//	PUT  /data/NAME   write one, and have it on the disk when the answer is sent
//	GET  /fetch?url=U what the guest gets from U: status line and body
//	GET  /client      the address that the guest sees the client under
//	GET  /zero?n=N    N zero bytes
//	POST /sh          runs the body by the shell: what it printed, and status 500 where it failed
//	POST /serve?on=B  false stops the servers of ports 8080 and 9000, true starts them again
package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

const dataDir = "/data"

func main() {
	failed := make(chan error)
	services := &switched{failed: failed}
	services.set(true)
	server := &http.Server{Addr: ":80", Handler: handler(services), ReadHeaderTimeout: headerTimeout}
	go func() { failed <- server.ListenAndServe() }()
	go func() { failed <- echo(":7") }()
	log.Fatal(<-failed)
}

const headerTimeout = 10 * time.Second

// switched are the servers that tests stop and start.
type switched struct {
	mu      sync.Mutex
	failed  chan<- error
	servers []*http.Server
}

func (s *switched) set(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if on == (len(s.servers) > 0) {
		return
	}
	for _, server := range s.servers {
		_ = server.Close()
	}
	s.servers = nil
	if !on {
		return
	}
	var plain http.Protocols
	plain.SetUnencryptedHTTP2(true)
	s.servers = []*http.Server{
		{Addr: ":8080", Handler: handler(s), ReadHeaderTimeout: headerTimeout},
		{Addr: ":9000", Handler: http.HandlerFunc(health), ReadHeaderTimeout: headerTimeout, Protocols: &plain},
	}
	for _, server := range s.servers {
		go func() {
			if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
				s.failed <- err
			}
		}()
	}
}

// health answers grpc.health.v1.Health/Check with SERVING.
func health(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	_, _ = w.Write([]byte{0, 0, 0, 0, 2, 0x08, 1}) // not compressed, two bytes: field 1 is 1
	w.Header().Set("Grpc-Status", "0")
}

func handler(services *switched) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		name, _ := os.Hostname() // an empty name is an answer too
		_, _ = fmt.Fprintf(w, "podvirt-tiny %s\n", name)
	})
	mux.HandleFunc("GET /uptime", file("/proc/uptime"))
	mux.HandleFunc("GET /cpuinfo", file("/proc/cpuinfo"))
	mux.Handle("GET /data/", http.StripPrefix("/data/", http.FileServer(http.Dir(dataDir))))
	mux.HandleFunc("PUT /data/{name}", put)
	mux.HandleFunc("GET /fetch", fetch)
	mux.HandleFunc("GET /client", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = fmt.Fprintln(w, host)
	})
	mux.HandleFunc("GET /zero", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
		_, _ = io.CopyN(w, zeros{}, n)
	})
	mux.HandleFunc("POST /sh", shell)
	mux.HandleFunc("POST /serve", func(_ http.ResponseWriter, r *http.Request) { services.set(r.URL.Query().Get("on") == "true") })
	return mux
}

// zeros is an endless reader.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func shell(w http.ResponseWriter, r *http.Request) {
	script, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	cmd := exec.CommandContext(r.Context(), "/bin/sh", "-c", string(script))
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
	}
	_, _ = w.Write(out)
}

// file serves a file of procfs, whose size is not known before it is read.
func file(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		data, err := os.ReadFile(name)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(data)
	}
}

func put(w http.ResponseWriter, r *http.Request) {
	if err := writeSynced(filepath.Join(dataDir, filepath.Base(r.PathValue("name"))), r.Body); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func writeSynced(name string, content io.Reader) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	return f.Sync()
}

func fetch(w http.ResponseWriter, r *http.Request) {
	request, err := http.NewRequestWithContext(r.Context(), http.MethodGet, r.URL.Query().Get("url"), nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	// Whether something answers is the question, not who: the guest has no certificate authorities.
	client := &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true},
	}
	answer, err := client.Do(request)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer func() { _ = answer.Body.Close() }()
	_, _ = fmt.Fprintln(w, answer.Status)
	_, _ = io.Copy(w, answer.Body)
}

// echo sends everything back, connection by connection.
func echo(address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = conn.Close() }()
			_, _ = io.Copy(conn, conn)
		}()
	}
}
