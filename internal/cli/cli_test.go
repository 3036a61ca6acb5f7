package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/klog/v2"
)

// TestLog: every line is JSON with time, level, pos and msg, and a level is one word (VM-214).
func TestLog(t *testing.T) {
	var out bytes.Buffer
	logger := klog.FromContext(WithLogger(t.Context(), &out, 2)).WithValues("vm", "db1")
	logger.Info("plain")
	logger.V(2).Info("detail")
	logger.V(3).Info("hidden")
	logger.Error(errors.New("why"), "trouble")

	var got []string
	for line := range strings.Lines(out.String()) {
		var l struct{ Time, Level, VM, Pos, Msg, Err string }
		if err := json.Unmarshal([]byte(line), &l); err != nil || l.Time == "" {
			t.Errorf("%q: %v", line, err)
		}
		file, number, _ := strings.Cut(l.Pos, ":")
		if number == "" {
			t.Errorf("pos %q has no line", l.Pos)
		}
		got = append(got, strings.Join([]string{l.Level, l.VM, file, l.Msg, l.Err}, "|"))
	}
	want := []string{
		"INFO|db1|cli/cli_test.go|plain|", "DEBUG|db1|cli/cli_test.go|detail|", "ERROR|db1|cli/cli_test.go|trouble|why",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want,+got):\n%s", diff)
	}
}

// TestLiveLevel: a verbosity may change while the program runs.
func TestLiveLevel(t *testing.T) {
	var out bytes.Buffer
	var level slog.LevelVar
	logger := klog.FromContext(WithLiveLogger(t.Context(), &out, &level))
	logger.V(4).Info("before")
	level.Set(Level(4))
	logger.V(4).Info("after")
	if got := out.String(); strings.Contains(got, "before") || !strings.Contains(got, "after") {
		t.Errorf("log %q; want after alone", got)
	}
}
