// Command guestd is what the tiny guest serves to tests: HTTP on ports 80 and 8080, and a TCP echo on port 7.
//
//	GET  /            the name of the guest
//	GET  /uptime      seconds since it booted
//	GET  /cpuinfo     the kernel's /proc/cpuinfo
//	GET  /data/NAME   a file of the data disk
//	PUT  /data/NAME   write one, and have it on the disk when the answer is sent
//	GET  /fetch?url=U what the guest gets from U: status line and body
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
	"path/filepath"
	"time"
)

const dataDir = "/data"

func main() {
	failed := make(chan error)
	for _, address := range []string{":80", ":8080"} {
		server := &http.Server{Addr: address, Handler: handler(), ReadHeaderTimeout: 10 * time.Second}
		go func() { failed <- server.ListenAndServe() }()
	}
	go func() { failed <- echo(":7") }()
	log.Fatal(<-failed)
}

func handler() http.Handler {
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
	return mux
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
