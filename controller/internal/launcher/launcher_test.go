package launcher

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"podvirt.dev/api"
	"podvirt.dev/internal/vmstatus"
)

func TestAsk(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirection was followed") }))
	defer elsewhere.Close()
	rows := []struct {
		name   string
		answer http.HandlerFunc
		want   string // part of the error; empty: none
	}{
		{"an answer", func(w http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(w).Encode(vmstatus.Status{Name: "a", State: api.StateRunning})
		}, ""},
		{"no JSON", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, "invalid character"},
		{"another type", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"boots":"x"}`)) }, "cannot unmarshal"},
		{"too long", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"name":"` + strings.Repeat("x", maxAnswer) + `"}`))
		}, "the answer is too long"},
		{"a redirection", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) }, "302"},
		{"an error", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusTeapot) }, "418"},
	}
	client := New()
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			server := httptest.NewServer(row.answer)
			defer server.Close()
			address, ok := server.Listener.Addr().(*net.TCPAddr)
			if !ok {
				t.Fatal(server.Listener.Addr())
			}
			got, err := client.Ask(t.Context(), address.IP.String(), address.Port)
			if row.want == "" && (err != nil || got.State != api.StateRunning) {
				t.Errorf("%+v, %v", got, err)
			}
			if row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("%v; want %s", err, row.want)
			}
		})
	}
	if _, err := client.Ask(t.Context(), "127.0.0.1", freePort(t)); err == nil {
		t.Error("nobody answers, and no error")
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	server := httptest.NewServer(nil)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	server.Close()
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
