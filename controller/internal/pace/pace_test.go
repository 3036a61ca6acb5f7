package pace

import (
	"testing"
	"time"
)

func TestWindow(t *testing.T) {
	start := time.Unix(1000, 0)
	w := Window{Most: 3, Span: time.Minute, Gap: time.Second}
	rows := []struct {
		name string
		at   time.Duration
		want time.Duration
		done bool
	}{
		{"the first", 0, 0, true},
		{"too soon after it", 300 * time.Millisecond, 700 * time.Millisecond, false},
		{"the second", time.Second, 0, true},
		{"the third", 10 * time.Second, 0, true},
		{"the fourth within a minute", 15 * time.Second, 45 * time.Second, false},
		{"a minute after the first", 60 * time.Second, 0, true},
		{"that makes room for one", 61 * time.Second, 0, true},
		{"only", 62 * time.Second, 8 * time.Second, false},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			now := start.Add(row.at)
			if got := w.Wait(now); got != row.want {
				t.Errorf("wait %v, want %v", got, row.want)
			}
			if row.done {
				w.Done(now)
			}
		})
	}
}
