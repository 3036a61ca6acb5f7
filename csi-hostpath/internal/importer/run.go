package importer

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"unicode"

	"golang.org/x/sys/unix"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/sandbox"
)

// DefaultMemory is what an import may take where the configuration does not say, in bytes.
const DefaultMemory = 256 << 20

// Request is one import.
type Request struct {
	Import  *api.Import
	Objects Objects
	Size    int64    // of the disk, bytes
	Output  *os.File // a raw disk of that size, zeros where no checkpoint says otherwise
	Start   *Checkpoint

	Memory     int64 // bytes; 0: the default
	Bandwidth  int64 // bytes per second; 0: unlimited
	NoLandlock bool
	Dial       func(ctx context.Context, address string) (net.Conn, error)
	Tuning     Tuning

	// Runs is told how to halt the confined process and let it go on; with nil, that it has ended. Nil: nobody is told.
	Runs func(halt func(bool) error)
	// Checkpoint is told how far the disk is filled for good; Progress how far it is.
	Checkpoint func(Checkpoint) error
	Progress   func(Progress)
}

// maxLine bounds what the confined process may say at once, in bytes.
const maxLine = 64 << 10

// Run runs an import in a confined process and returns the digest of its source. The process ends when ctx does, or when
// this one is killed. The error is [Refused] where it does not help to try again.
func Run(ctx context.Context, r Request) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("the import's socket: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "broker")
	var broker sync.WaitGroup
	defer func() {
		cancel()
		broker.Wait()
		_ = unix.Close(pair[0])
	}()
	broker.Go(func() { _ = sandbox.Serve(ctx, pair[0], r.Dial) }) // its end is the child's, or ours

	started := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // the child dies with the thread that started it
		sum, err := run(ctx, r, theirs)
		started <- result{sum, err}
	}()
	done := <-started
	return done.sum, done.err
}

type result struct {
	sum string
	err error
}

func run(ctx context.Context, r Request, broker *os.File) (string, error) {
	input, err := r.job()
	if err != nil {
		return "", errors.Join(err, broker.Close())
	}
	memory := r.Memory
	if memory == 0 {
		memory = DefaultMemory
	}
	limits := sandbox.Limits{Memory: memory, FileSize: r.Size, NoLandlock: r.NoLandlock}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", limits.Args()...)
	var stderr head
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.Stderr = "/", []string{}, bytes.NewReader(input), &stderr
	cmd.ExtraFiles = []*os.File{broker, r.Output}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: sandbox.User, Gid: sandbox.User}, Pdeathsig: syscall.SIGKILL,
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", errors.Join(err, broker.Close())
	}
	err = cmd.Start()
	_ = broker.Close() // the child has its own
	if err != nil {
		return "", fmt.Errorf("starting the import: %w", err)
	}
	if r.Runs != nil {
		r.Runs(func(halt bool) error {
			return cmd.Process.Signal(map[bool]os.Signal{true: unix.SIGSTOP, false: unix.SIGCONT}[halt])
		})
		defer r.Runs(nil)
	}
	last, err := r.follow(out)
	if err != nil {
		_ = cmd.Process.Kill() // it may have ended
	}
	waited := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil:
		return "", err
	case last == nil:
		return "", died(stderr.String(), waited)
	}
	return last.outcome()
}

// died is the error of a process that ended without a last word.
func died(said string, waited error) error {
	switch {
	case strings.Contains(said, "out of memory"), strings.Contains(said, "cannot allocate memory"):
		return errors.New("the import needed more memory than storage.import.memory allows")
	case strings.Contains(said, sandbox.ErrNoLandlock.Error()):
		return Refused(sandbox.ErrNoLandlock.Error())
	}
	return errors.Join(errors.New("the import ended unexpectedly: "+clean(said)), waited)
}

// follow hands on what the process says, and returns its last word. What it says is not trusted: it has read the image.
func (r *Request) follow(out io.Reader) (*report, error) {
	lines := bufio.NewScanner(out)
	lines.Buffer(make([]byte, 4096), maxLine)
	for lines.Scan() {
		var said report
		if err := json.Unmarshal(lines.Bytes(), &said); err != nil {
			return nil, errors.New("the import said something that is no report")
		}
		switch {
		case said.Progress != nil:
			if r.Progress != nil {
				said.Progress.Problem = clean(said.Progress.Problem)
				r.Progress(*said.Progress)
			}
		case said.Checkpoint != nil:
			if at := said.Checkpoint.Offset; at < 0 || at > r.Size {
				return nil, errors.New("the import reported a checkpoint outside the disk")
			}
			if r.Checkpoint != nil {
				if err := r.Checkpoint(*said.Checkpoint); err != nil {
					return nil, err
				}
			}
		default:
			return &said, nil
		}
	}
	return nil, nil //nolint:nilnil // no last word
}

// outcome is what the last word means.
func (l *report) outcome() (string, error) {
	if l.Failed == "" {
		return clean(l.Done), nil
	}
	text := clean(l.Failed)
	switch l.Kind {
	case failedRefused:
		return "", Refused(text)
	case failedChanged:
		return "", ErrChanged
	case failedNoSpace:
		return "", fmt.Errorf("%w: %s", ErrNoSpace, text)
	default:
		return "", errors.New(text)
	}
}

func (r *Request) job() ([]byte, error) {
	j := job{
		URL: r.Import.Source, Format: r.Import.Format, Compression: r.Import.Compression, Checksum: r.Import.Checksum, Size: r.Size,
		Memory: r.Memory, Bandwidth: r.Bandwidth, Headers: append(slices.Clone(r.Import.Headers), r.Objects.Headers...),
		Insecure: r.Import.Insecure, Start: r.Start, Tuning: r.Tuning,
		Archive: r.Import.Archive, Member: r.Import.Member, Arch: cmp.Or(r.Import.Arch, runtime.GOARCH),
	}
	if j.Memory == 0 {
		j.Memory = DefaultMemory
	}
	return r.Objects.fill(&j)
}

// clean makes a text of the confined process fit for logs and events.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > 512 {
		text = strings.ToValidUTF8(text[:512], "") + "…"
	}
	return strings.TrimSpace(text)
}

// head keeps the beginning of what the process wrote to standard error: where it died is told first.
type head struct{ bytes.Buffer }

func (t *head) Write(p []byte) (int, error) {
	if room := 4096 - t.Len(); room > 0 {
		t.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
