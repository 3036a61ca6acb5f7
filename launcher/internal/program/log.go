package program

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/term"

	"podvirt.dev/api"
	"podvirt.dev/internal/cli"
)

// logHalf is the size in bytes at which the launcher's own log moves over to its second file: the ring of 1 MiB
// (vm.md 2.4) is two of them.
const logHalf = 512 << 10

const defaultVerbosity = 2

// withLog returns a context whose logger writes to the ring in /run/podvirt, and to stderr unless the container has a
// terminal: there Kubernetes merges the streams, and the guest's console would carry our lines (VM-141).
func withLog(ctx context.Context, vm api.Machine, std cli.Streams) (context.Context, func()) {
	ring := &ringLog{path: logFile}
	var out io.Writer = ring
	if !isTerminal(std.Err) {
		out = io.MultiWriter(std.Err, ring)
	}
	verbosity := defaultVerbosity
	if vm.Verbosity != nil {
		verbosity = *vm.Verbosity
	}
	return cli.WithLogger(ctx, out, verbosity), func() { _ = ring.Close() }
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

// Other programs' logs in /run/podvirt, which is in memory and counts as the Pod's: a guest can make libvirt and QEMU
// complain for ever.
const (
	foreignLogLimit = 256 << 10 // bytes
	foreignLogCheck = time.Minute
)

// housekeeping cuts the logs of libvirt and QEMU, both of which append, until ctx ends.
func housekeeping(ctx context.Context) {
	tick := time.NewTicker(foreignLogCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		logs, _ := filepath.Glob(filepath.Join(libvirtRoot, "log", "qemu", "*.log"))
		for _, path := range append(logs, filepath.Join(libvirtRoot, "libvirt.log")) {
			if info, err := os.Stat(path); err == nil && info.Size() > foreignLogLimit {
				_ = os.Truncate(path, 0)
			}
		}
	}
}
