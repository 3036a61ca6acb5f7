package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"podvirt.dev/csi-hostpath/internal/sandbox"
)

// TestGoesOn: an import that was killed goes on at its last checkpoint, reads little twice, and has the digest of the
// whole; when the file changed meanwhile it says so.
func TestGoesOn(t *testing.T) {
	data := content()
	web := &site{files: map[string][]byte{"raw": data}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	url := listen(t, web)
	first := &attempt{url: url + "/raw", ctx: ctx, disk: newDisk(t, diskSize), tuning: Tuning{CheckpointEvery: 1 << 20}}
	stalled := make(chan struct{})
	web.before = func(w http.ResponseWriter, r *http.Request) bool { // 3 MiB, then nothing more comes
		if r.Header.Get("Range") != "" {
			return false
		}
		w.Header().Set("ETag", `"`+strings.TrimPrefix(digestOf(data), "sha256:")[:16]+`"`)
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:3<<20])
		_ = http.NewResponseController(w).Flush()
		close(stalled)
		<-r.Context().Done()
		return true
	}
	seen := make(chan error, 1)
	go func() {
		_, err := first.run(t)
		seen <- err
	}()
	<-stalled
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for filled(t, first.disk) < 700<<10 { // all that is not zero in the first 3 MiB
		select {
		case <-ticker.C:
		case <-deadline.C:
			t.Fatal("the first 3 MiB were not written in a minute")
		}
	}
	cancel()
	if err := <-seen; !errors.Is(err, context.Canceled) {
		t.Fatalf("error = %v; want a canceled context", err)
	}
	if len(first.points) == 0 {
		t.Fatal("no checkpoint")
	}
	point := first.points[len(first.points)-1]
	if point.Offset < 1<<20 || point.Hashed < point.Offset {
		t.Fatalf("checkpoint = %+v", point)
	}
	second := &attempt{url: url + "/raw", disk: first.disk, start: &point, options: map[string]string{"checksum": "md5:" + strings.Repeat("0", 32)}}
	if _, err := second.run(t); !errors.Is(err, ErrChanged) {
		t.Errorf("error = %v; want %v, since another digest than before is asked for", err, ErrChanged)
	}
	second.options = map[string]string{"checksum": digestOf(data)}
	sum, err := second.run(t)
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(len(data)) - point.Offset; sum != digestOf(data) || second.last.Transferred != want {
		t.Errorf("digest %s, %d bytes; want %s, %d", sum, second.last.Transferred, digestOf(data), want)
	}
	second.holds(t)

	web.files["raw"] = append([]byte("new"), data...)
	if _, err := (&attempt{url: url + "/raw", disk: first.disk, start: &point}).run(t); !errors.Is(err, ErrChanged) {
		t.Errorf("error = %v; want %v", err, ErrChanged)
	}
}

// filled counts the bytes of a file that are not zero.
func filled(t *testing.T, f *os.File) int {
	t.Helper()
	data, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return len(data) - bytes.Count(data, []byte{0})
}

// TestRetries: answers that may pass are waited for, and stalled connections are made again.
func TestRetries(t *testing.T) {
	t.Parallel()
	data := content()
	web := &site{files: map[string][]byte{"raw": data}}
	web.before = func(w http.ResponseWriter, r *http.Request) bool {
		switch web.answers.Load() {
		case 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 2:
			w.WriteHeader(http.StatusTooManyRequests)
		case 3: // says nothing
			<-r.Context().Done()
		case 4: // stops in the middle
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			_, _ = w.Write(data[:1<<20])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		default:
			return false
		}
		return true
	}
	web.noETag = true
	a := &attempt{url: listen(t, web) + "/raw", tuning: Tuning{StallAfter: 5 * time.Second}}
	_, err := a.run(t)
	if !errors.Is(err, ErrChanged) { // without a version nobody knows whether it is the same file
		t.Fatalf("error = %v; want %v", err, ErrChanged)
	}
	a.tuning.StallAfter = 0
	if _, err := a.run(t); err != nil {
		t.Fatal(err)
	}
	a.holds(t)
	if web.answers.Load() < 6 {
		t.Errorf("%d requests; want 6 or more", web.answers.Load())
	}
}

// TestCancelled: the confined process ends with the context.
func TestCancelled(t *testing.T) {
	arrived := make(chan struct{})
	url := listen(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	}))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	if _, err := (&attempt{url: url, ctx: ctx}).run(t); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v; want a canceled context", err)
	}
}

// TestPolicy: addresses that lead into the machine or the cluster are denied in all their forms.
func TestPolicy(t *testing.T) {
	services := Range{Prefix: netip.MustParsePrefix("10.96.0.0/12"), What: "the cluster's Service range"}
	for name, row := range map[string]struct {
		policy Policy
		host   string
		text   string // empty: allowed
	}{
		"public":            {Policy{}, "93.184.216.34", ""},
		"private":           {Policy{}, "192.168.1.1", ""},
		"loopback":          {Policy{}, "127.0.0.1", "loopback"},
		"loopback v6":       {Policy{}, "::1", "loopback"},
		"loopback mapped":   {Policy{}, "::ffff:127.0.0.1", "loopback"},
		"loopback by NAT64": {Policy{}, "64:ff9b::7f00:1", "loopback"},
		"loopback by 6to4":  {Policy{}, "2002:7f00:1::", "loopback"},
		"unspecified":       {Policy{}, "0.0.0.0", "loopback"},
		"metadata":          {Policy{}, "169.254.169.254", "link-local"},
		"metadata mapped":   {Policy{}, "::ffff:169.254.169.254", "link-local"},
		"link-local v6":     {Policy{}, "fe80::1", "link-local"},
		"multicast":         {Policy{}, "224.0.0.1", "multicast"},
		"Service": {
			Policy{Cluster: []Range{services}}, "10.96.0.10",
			"10.96.0.10 is in the cluster's Service range: use podvirt.dev/import-mode: pod or ask for storage.import.allow",
		},
		"Service, allowed":      {Policy{Cluster: []Range{services}, Allow: []string{"*", "10.96.0.10"}}, "10.96.0.10", ""},
		"other than allowed":    {Policy{Allow: []string{"*.example.org"}}, "93.184.216.34", "not in storage.import.allow"},
		"denied":                {Policy{Deny: []string{"93.184.0.0/16"}}, "93.184.216.34", "in storage.import.deny"},
		"denied and allowed":    {Policy{Deny: []string{"93.184.0.0/16"}, Allow: []string{"93.184.216.34/32"}}, "93.184.216.34", ""},
		"star wins over nobody": {Policy{Allow: []string{"*"}}, "127.0.0.1", "loopback"},
	} {
		t.Run(name, func(t *testing.T) {
			addresses, err := row.policy.resolve(t.Context(), row.host)
			if err != nil {
				t.Fatal(err)
			}
			err = row.policy.check(row.host, addresses[0])
			if (err == nil) != (row.text == "") || err != nil && !strings.Contains(err.Error(), row.text) {
				t.Errorf("error = %v; want %q", err, row.text)
			}
		})
	}
	if !match("*.example.org", "a.Example.org.", netip.MustParseAddr("1.2.3.4")) || match("*.example.org", "badexample.org", netip.MustParseAddr("1.2.3.4")) {
		t.Error("patterns of names are read otherwise")
	}
	insecure := Policy{Insecure: []string{"lab:5000", "old"}}
	for source, want := range map[string]bool{"https://lab:5000/x": true, "https://lab/x": false, "http://old/x": true, "https://old:8443/x": false} {
		if got := insecure.Unverified(source) == ""; got != want {
			t.Errorf("Unverified(%s) = %v", source, !want)
		}
	}
}

// TestNameMoves: a name that leads elsewhere when the connection is made again is looked at again; what is looked at is what is
// connected to, one answer for both (ST-062).
func TestNameMoves(t *testing.T) {
	data := content()
	web := &site{files: map[string][]byte{"raw": data}, cut: 1 << 20}
	url, err := listenOn(t, "127.0.0.2:0", web)
	if err != nil {
		t.Fatal(err)
	}
	var answers atomic.Int64
	moves := func(from int64) *Policy {
		answers.Store(0)
		return &Policy{Allow: []string{"127.0.0.2/32", "*"}, Resolve: func(context.Context, string) ([]netip.Addr, error) {
			if answers.Add(1) >= from {
				return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
			}
			return []netip.Addr{netip.MustParseAddr("127.0.0.2")}, nil
		}}
	}
	source := strings.Replace(url, "127.0.0.2", "moving.example.org", 1) + "/raw"
	for _, from := range []int64{1, 3} {
		a := &attempt{url: source, policy: moves(from)}
		_, err := a.run(t)
		var refused Refused
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), "127.0.0.1 is a loopback address") || answers.Load() != from {
			t.Errorf("error = %v after %d answers; want a refusal at the one that moved, %d", err, answers.Load(), from)
		}
	}
	stays := &attempt{url: source, policy: moves(1000)}
	if _, err := stays.run(t); err != nil || answers.Load() < 4 {
		t.Errorf("%v after %d answers", err, answers.Load())
	}
	stays.holds(t)
}

// TestDialDenied: nothing is connected to that is denied, whatever the name.
func TestDialDenied(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	var forbidden sandbox.Forbidden
	if _, err := (Policy{}).Dial(t.Context(), net.JoinHostPort("localhost", port)); !errors.As(err, &forbidden) {
		t.Errorf("error = %v; want a refusal", err)
	}
	conn, err := Policy{Allow: []string{"localhost"}}.Dial(t.Context(), net.JoinHostPort("localhost", port))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}
