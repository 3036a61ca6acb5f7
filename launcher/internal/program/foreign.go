package program

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"k8s.io/klog/v2"
)

// Other programs' logs in /run/podvirt, which is in memory and counts as the Pod's: a guest can make libvirt and QEMU
// complain for ever.
const (
	foreignLogLimit = 256 << 10 // bytes; the file is cut then
	foreignLogEvery = time.Second
	foreignLines    = 20  // of one file and turn; the rest is left out
	foreignLine     = 512 // bytes of a line
)

// foreignLogs carries what libvirt and QEMU write over to the launcher's log (VM-214), where people look, and cuts the
// files, which only grow.
type foreignLogs struct{ read map[string]int64 } // bytes by file

func newForeignLogs() *foreignLogs { return &foreignLogs{read: map[string]int64{}} }

// run works until ctx ends, and once more then: the last line is the one that says why.
func (f *foreignLogs) run(ctx context.Context) {
	tick := time.NewTicker(foreignLogEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		f.turn(klog.FromContext(ctx))
	}
}

func (f *foreignLogs) turn(logger klog.Logger) {
	logs, _ := filepath.Glob(filepath.Join(libvirtRoot, "log", "qemu", "*.log"))
	for _, path := range logs {
		f.carry(logger.WithValues("program", "qemu"), path)
	}
	f.carry(logger.V(3).WithValues("program", "libvirt"), filepath.Join(libvirtRoot, "libvirt.log")) // it calls much an error
}

// carry logs the whole lines that a file has grown by.
func (f *foreignLogs) carry(logger klog.Logger, path string) {
	file, err := os.Open(path)
	if err != nil {
		return
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return
	}
	from := f.read[path]
	if info.Size() < from { // begun anew
		from = 0
	}
	text, err := io.ReadAll(io.NewSectionReader(file, from, info.Size()-from))
	if err != nil {
		return
	}
	whole := text[:bytes.LastIndexByte(text, '\n')+1]
	f.read[path] = from + int64(len(whole))
	said, left := notes(string(whole))
	for _, line := range said {
		logger.Info(line)
	}
	if left > 0 {
		logger.Info("further lines are left out", "lines", left)
	}
	if info.Size() > foreignLogLimit {
		_ = os.Truncate(path, 0)
		f.read[path] = 0
	}
}

// notes are the lines that say something, without their time. libvirt writes the command that starts QEMU to QEMU's log
// as well, over many lines; launcher ctl xml shows as much.
func notes(text string) (said []string, left int) {
	stamp := regexp.MustCompile(`^\d{4}-\d\d-\d\d[T ][0-9:.]+(\+0000|Z)?:? *(\d+: )?`)
	inCommand := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		command := inCommand || strings.HasPrefix(line, "LC_ALL=C")
		inCommand = command && strings.HasSuffix(line, `\`)
		line = stamp.ReplaceAllString(line, "")
		switch {
		case command || line == "":
		case len(said) >= foreignLines:
			left++
		default:
			said = append(said, line[:min(len(line), foreignLine)])
		}
	}
	return said, left
}
