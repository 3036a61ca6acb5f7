package importer

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// pieces make an image of 4 MiB a long one.
func pieces() Tuning {
	return Tuning{ParallelFrom: 1 << 20, Piece: 256 << 10, CheckpointEvery: 1 << 20}
}

// together notes how many requests for ranges are answered at once, and lets the first four wait for each other.
type together struct {
	mu        sync.Mutex
	now, most int
	seen      int
	all       chan struct{}
}

func (c *together) enter(t *testing.T, r *http.Request) (leave func()) {
	if r.Header.Get("Range") == "" {
		return func() {}
	}
	c.mu.Lock()
	c.now++
	c.seen++
	c.most = max(c.most, c.now)
	if c.seen == 3 { // the first piece is of the answer to the first request
		close(c.all)
	}
	c.mu.Unlock()
	select {
	case <-c.all:
	case <-time.After(time.Minute):
		t.Error("three requests for ranges did not come at once")
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.now--
	}
}

// TestParallel: what is long comes by several requests at once, in the right order, also when connections break and answers
// fail; the digest is that of the whole (ST-042, ST-047).
func TestParallel(t *testing.T) {
	files := images(t)
	for name, row := range map[string]struct {
		cut    int64
		faults bool
	}{"good": {}, "dying": {cut: 100 << 10}, "faults": {faults: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for file, data := range files {
				if !strings.HasSuffix(file, ".none") && file != "raw.gz" && file != "appliance.ova" {
					continue
				}
				var n atomic.Int64
				web := &site{files: files, cut: row.cut, before: func(w http.ResponseWriter, _ *http.Request) bool {
					if row.faults && n.Add(1)%3 == 2 {
						w.WriteHeader(http.StatusServiceUnavailable)
						return true
					}
					return false
				}}
				a := &attempt{url: listen(t, web) + "/" + file, tuning: pieces(), options: map[string]string{"checksum": digestOf(data)}}
				if _, err := a.run(t); err != nil {
					t.Errorf("%s: %v", file, err)
					continue
				}
				a.holds(t)
				if a.last.Transferred < int64(len(data)) || a.last.Transferred > int64(len(data))*11/10 {
					t.Errorf("%s: %d bytes came, %d are in the file", file, a.last.Transferred, len(data))
				}
				if int64(len(data)) > 1<<20 && web.answers.Load() < int64(len(data))/(256<<10) {
					t.Errorf("%s: %d requests for %d bytes", file, web.answers.Load(), len(data))
				}
			}
		})
	}
}

// TestParallelAtOnce: three pieces are asked for while the first one comes.
func TestParallelAtOnce(t *testing.T) {
	data := content()
	count := &together{all: make(chan struct{})}
	served := &site{files: map[string][]byte{"raw": data}}
	url := listen(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer count.enter(t, r)()
		served.ServeHTTP(w, r)
	}))
	a := &attempt{url: url + "/raw", tuning: pieces()}
	if _, err := a.run(t); err != nil {
		t.Fatal(err)
	}
	a.holds(t)
	count.mu.Lock()
	defer count.mu.Unlock()
	if count.most < 3 {
		t.Errorf("%d requests for ranges at once; want 3 or more", count.most)
	}
}

// TestParallelChanges: when the file changes under the pieces nothing of two versions is mixed; what goes on at a checkpoint
// has the digest of the whole; a refusal in the middle ends it.
func TestParallelChanges(t *testing.T) {
	data := content()
	for name, row := range map[string]struct {
		at     int64
		change func(w http.ResponseWriter, files map[string][]byte) bool
		want   func(error) bool
	}{
		"another version": {6, func(_ http.ResponseWriter, files map[string][]byte) bool {
			files["raw"] = append([]byte("new"), data[3:]...)
			return false
		}, func(err error) bool { return errors.Is(err, ErrChanged) }},
		"forbidden by then": {6, func(w http.ResponseWriter, _ map[string][]byte) bool {
			w.WriteHeader(http.StatusForbidden)
			return true
		}, func(err error) bool {
			var refused Refused
			return errors.As(err, &refused) && strings.Contains(err.Error(), "403 Forbidden")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files := map[string][]byte{"raw": data}
			var mu sync.Mutex
			n := int64(0)
			served := &site{files: files}
			url := listen(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				if n++; n >= row.at && row.change(w, files) {
					return
				}
				served.ServeHTTP(w, r)
			}))
			a := &attempt{url: url + "/raw", tuning: pieces()}
			if _, err := a.run(t); !row.want(err) {
				t.Errorf("error = %v", err)
			}
		})
	}
	t.Run("goes on", func(t *testing.T) {
		url := listen(t, &site{files: map[string][]byte{"raw": data}})
		first := &attempt{url: url + "/raw", tuning: pieces()}
		if _, err := first.run(t); err != nil {
			t.Fatal(err)
		}
		if len(first.points) == 0 {
			t.Fatal("no checkpoint")
		}
		point := first.points[0]
		second := &attempt{url: url + "/raw", tuning: pieces(), disk: first.disk, start: &point}
		sum, err := second.run(t)
		if want := int64(len(data)) - point.Offset; err != nil || sum != digestOf(data) || second.last.Transferred != want {
			t.Error(fmt.Sprintf("%s, %d bytes, want %d;", sum, second.last.Transferred, want), err)
		}
		second.holds(t)
	})
}
