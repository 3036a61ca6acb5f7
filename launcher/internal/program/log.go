package program

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/term"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/internal/cli"
)

// logHalf is the size in bytes at which the launcher's own log moves over to its second file: the ring of 1 MiB
// (vm.md 2.4) is two of them.
const logHalf = 512 << 10

const defaultVerbosity = 2

// launcherLog is the launcher's own log, whose verbosity follows the annotation.
type launcherLog struct {
	ring  *ringLog
	level slog.LevelVar
}

// withLog returns a context whose logger writes to the ring in /run/podvirt, and to stderr unless the container has a
// terminal: there Kubernetes merges the streams, and the guest's console would carry our lines (VM-141).
func withLog(ctx context.Context, vm api.Machine, std cli.Streams) (context.Context, *launcherLog) {
	l := &launcherLog{ring: &ringLog{path: logFile}}
	var out io.Writer = l.ring
	if !isTerminal(std.Err) {
		out = io.MultiWriter(std.Err, l.ring)
	}
	l.verbosity(vm)
	ctx = cli.WithLiveLogger(ctx, out, &l.level)
	return klog.NewContext(ctx, klog.FromContext(ctx).WithValues("vm", vm.ID)), l
}

// verbosity takes up podvirt.dev/verbosity.
func (l *launcherLog) verbosity(vm api.Machine) {
	verbosity := defaultVerbosity
	if vm.Verbosity != nil {
		verbosity = *vm.Verbosity
	}
	l.level.Set(cli.Level(verbosity))
}

func (l *launcherLog) close() { _ = l.ring.Close() }

// followEvery is how often the annotations are looked at. The kubelet takes up to a minute to hand an edit on.
const followEvery = 2 * time.Second

// follow obeys, until ctx ends, edits of annotations that count at once and that nothing else asks for.
func (i *instance) follow(ctx context.Context) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	var seen time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		info, err := os.Stat(filepath.Join(api.PathPod, "annotations"))
		if err != nil || info.ModTime().Equal(seen) {
			continue
		}
		seen = info.ModTime()
		if vm, _, err := load(); err == nil {
			i.ownLog.verbosity(vm)
		}
	}
}

// logMistakes logs every mistake of the Pod, since the termination message may have no room for all.
func logMistakes(ctx context.Context, err error) {
	if mistakes, ok := errors.AsType[api.Errors](err); ok {
		for _, m := range mistakes {
			klog.FromContext(ctx).Error(nil, m.Text)
		}
	}
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// ringLog keeps the last lines of the log in two files.
type ringLog struct {
	path string

	mu   sync.Mutex
	file *os.File
	size int64
}

// Write never fails: a log that cannot be written must not stop a VM.
func (r *ringLog) Write(line []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil || r.size > logHalf {
		r.turn()
	}
	if r.file != nil {
		n, _ := r.file.Write(line)
		r.size += int64(n)
	}
	return len(line), nil
}

// turn opens the file, or begins a new one.
func (r *ringLog) turn() {
	if r.file != nil {
		_ = r.file.Close()
		_ = os.Rename(r.path, r.path+".1")
	}
	r.file, r.size = nil, 0
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	if info, err := f.Stat(); err == nil {
		r.size = info.Size()
	}
	r.file = f
}

// Close closes the file.
func (r *ringLog) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}

// readLog returns what is kept of the log, oldest first.
func readLog() (string, error) {
	older, err := os.ReadFile(logFile + ".1")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	newer, err := os.ReadFile(logFile)
	return string(older) + string(newer), err
}
