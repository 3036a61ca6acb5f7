package importer

import (
	"bytes"
	"context"
	"crypto/md5"  //nolint:gosec // the claim's owner asks for it
	"crypto/sha1" //nolint:gosec // the claim's owner asks for it
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/fetch"
	"podvirt.dev/csi-hostpath/internal/image"
	"podvirt.dev/csi-hostpath/internal/sandbox"
)

// digest is the algorithm of what is told of the source.
const digest = "sha256"

const (
	checkpointEvery = 64 << 20 // bytes
	reportEvery     = 500 * time.Millisecond
)

// Child is the sub-command [sandbox.Command]: it confines itself, reads its job from standard input and reports on
// standard output.
func Child(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	if err := sandbox.Enter(args); err != nil {
		return err
	}
	var j job
	if err := json.NewDecoder(in).Decode(&j); err != nil {
		return fmt.Errorf("reading the job: %w", err)
	}
	debug.SetMemoryLimit(j.Memory * 3 / 4)
	w := &worker{job: j, out: os.NewFile(sandbox.OutputFD, "volume"), reports: json.NewEncoder(out)}
	sum, err := w.run(ctx)
	if err != nil {
		return w.send(report{Failed: err.Error(), Kind: kindOf(err)})
	}
	return w.send(report{Done: sum})
}

func kindOf(err error) failure {
	var refused image.Refused
	var permanent fetch.Permanent
	switch {
	case errors.Is(err, fetch.ErrChanged):
		return failedChanged
	case errors.As(err, &refused), errors.As(err, &permanent):
		return failedRefused
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return failedNoSpace
	}
	return failedOther
}

// worker is one import inside the sandbox.
type worker struct {
	job     job
	out     *os.File
	stream  atomic.Pointer[fetch.Stream]
	earlier streams      // that came before stream
	total   atomic.Int64 // bytes of the source; -1: not known
	hashes  map[string]hash.Hash
	read    atomic.Int64 // bytes of the source
	written atomic.Int64
	info    atomic.Pointer[image.Info]
	problem atomic.Pointer[string]
	synced  int64     // offset of the last checkpoint
	due     time.Time // when the next byte may come
	blocks  blocks    // of the stream
	again   struct {  // the last block that was asked for again
		index int64
		data  []byte
	}
	hashed int64 // offset in the source up to which the digests went at the last checkpoint of an earlier attempt

	mu      sync.Mutex
	reports *json.Encoder
}

func (w *worker) send(r report) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reports.Encode(r)
}

// run returns the digest of the source.
func (w *worker) run(ctx context.Context) (string, error) {
	options, err := w.job.options()
	if err != nil {
		return "", err
	}
	options.Dial = sandbox.NewBroker(sandbox.BrokerFD).Dial
	options.Retrying = func(err error) {
		text := err.Error()
		w.problem.Store(&text)
	}
	start := w.job.Start
	if start == nil {
		start = &Checkpoint{}
	}
	if err := w.sums(ctx, options); err != nil {
		return "", err
	}
	if w.hashes, err = restored(w.job.Checksum, start.Hashes); err != nil {
		return "", err
	}
	w.read.Store(start.Offset)
	w.synced, w.hashed = start.Offset, start.Hashed
	w.total.Store(-1)
	stop := w.reporting()
	defer stop()
	if strings.HasPrefix(w.job.URL, "docker:") {
		w.blocks.off = true
		return w.copyRegistry(ctx, options)
	}
	if err := w.job.toCloud(ctx, &options); err != nil {
		return "", err
	}
	if err := w.open(ctx, options, start.Pin, start.Offset); err != nil {
		return "", err
	}
	defer w.stream.Load().Close()
	w.total.Store(w.stream.Load().Pin().Length)
	if err := w.copy(start.Offset); err != nil {
		return "", err
	}
	if err := w.out.Sync(); err != nil {
		return "", err
	}
	return w.verify()
}

// open begins to read a file; its bytes count with those of earlier ones.
func (w *worker) open(ctx context.Context, options fetch.Options, pin fetch.Pin, offset int64) error {
	stream, err := fetch.Open(ctx, options, pin, offset)
	if err != nil {
		return err
	}
	if before := w.stream.Swap(stream); before != nil {
		w.earlier.transferred.Add(before.Transferred())
		w.earlier.restarts.Add(before.Restarts())
	}
	return nil
}

// streams are counts of several.
type streams struct{ transferred, restarts atomic.Int64 }

func (w *worker) copy(start int64) error {
	o := image.Options{
		Size: w.job.Size, Format: w.job.Format, Compression: w.job.Compression, Length: w.stream.Load().Pin().Length, Start: start, To: counted{w},
		Copied: w.checkpoint,
	}
	o.Told = func(info image.Info) {
		w.info.Store(&info)
		w.blocks.off = w.blocks.off || info.Format == image.Raw || info.Compression != image.None
	}
	if w.blocks.off = start > 0 || !w.stream.Load().Ranged(); !w.blocks.off {
		o.At = anywhere{w}
	}
	var err error
	if w.job.Archive == api.ArchiveOVA {
		err = image.CopyMember(source{w}, o, w.job.Member)
	} else {
		err = image.Copy(source{w}, o)
	}
	if err != nil {
		return err
	}
	if _, err = io.Copy(io.Discard, source{w}); err != nil { // what follows the image counts for the digest
		return err
	}
	return w.blocks.end()
}

// source is the stream with its digests.
type source struct{ w *worker }

func (s source) Read(p []byte) (int, error) {
	if rate := s.w.job.Bandwidth; rate > 0 {
		p = p[:min(int64(len(p)), max(4096, rate/8))] // short pauses: a connection that waits long counts as stalled
	}
	n, err := s.w.stream.Load().Read(p)
	s.w.pace(n)
	known := min(max(0, s.w.hashed-s.w.read.Load()), int64(n)) // of an earlier attempt, which had read ahead
	for _, h := range s.w.hashes {
		h.Write(p[known:n])
	}
	if bad := s.w.blocks.write(p[:n]); bad != nil {
		return 0, bad
	}
	if n > 0 {
		s.w.read.Add(int64(n))
		s.w.problem.Store(nil)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = &image.TransportError{Err: err}
	}
	return n, err
}

// pace waits until what came is no more than storage.import.bandwidth allows.
func (w *worker) pace(n int) {
	if w.job.Bandwidth <= 0 || n <= 0 {
		return
	}
	now := time.Now()
	if w.due.Before(now) {
		w.due = now
	}
	w.due = w.due.Add(time.Duration(float64(n) / float64(w.job.Bandwidth) * float64(time.Second)))
	timer := time.NewTimer(w.due.Sub(now))
	<-timer.C
}

// anywhere reads the source at any offset, at the same pace, by whole blocks that are compared.
type anywhere struct{ w *worker }

func (a anywhere) ReadAt(p []byte, at int64) (int, error) {
	stream, got := a.w.stream.Load(), 0
	for got < len(p) {
		from := at + int64(got)
		i := from / blockSize
		if a.w.again.data == nil || a.w.again.index != i {
			block := make([]byte, blockSize)
			n, err := stream.ReadAt(block, i*blockSize)
			a.w.pace(n)
			if err != nil && !errors.Is(err, io.EOF) {
				return got, err
			}
			if err := a.w.blocks.check(i, block[:n]); err != nil {
				return got, err
			}
			a.w.again.index, a.w.again.data = i, block[:n]
		}
		n := copy(p[got:], a.w.again.data[min(int64(len(a.w.again.data)), from-i*blockSize):])
		if n == 0 {
			return got, io.EOF
		}
		got += n
	}
	return got, nil
}

// counted is the volume with what was written to it.
type counted struct{ w *worker }

func (c counted) WriteAt(p []byte, at int64) (int, error) {
	n, err := c.w.out.WriteAt(p, at)
	c.w.written.Add(int64(n))
	return n, err
}

// checkpoint syncs the volume now and then and says how far it is filled for good.
func (w *worker) checkpoint(offset int64) error {
	every := w.job.Tuning.CheckpointEvery
	if every == 0 {
		every = checkpointEvery
	}
	if offset-w.synced < every {
		return nil
	}
	if err := w.out.Sync(); err != nil {
		return err
	}
	w.synced = offset
	point := &Checkpoint{Pin: w.stream.Load().Pin(), Offset: offset, Hashes: map[string][]byte{}, Hashed: max(w.hashed, w.read.Load())}
	for name, h := range w.hashes {
		state, err := h.(encoding.BinaryMarshaler).MarshalBinary() //nolint:forcetypeassert // all hashes of the library do
		if err != nil {
			return err
		}
		point.Hashes[name] = state
	}
	return w.send(report{Checkpoint: point})
}

// reporting says how far it is until stop is called.
func (w *worker) reporting() (stop func()) {
	every := w.job.Tuning.ReportEvery
	if every == 0 {
		every = reportEvery
	}
	ticker := time.NewTicker(every)
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ended:
				w.tell()
				return
			case <-ticker.C:
				w.tell()
			}
		}
	}()
	return func() {
		ticker.Stop()
		close(ended)
		<-done
	}
}

func (w *worker) tell() {
	p := &Progress{
		Transferred: w.earlier.transferred.Load(), Position: w.read.Load(), Total: w.total.Load(), Written: w.written.Load(),
		Restarts: w.earlier.restarts.Load(), Image: w.info.Load(),
	}
	if stream := w.stream.Load(); stream != nil {
		p.Transferred += stream.Transferred()
		p.Restarts += stream.Restarts()
	}
	if problem := w.problem.Load(); problem != nil {
		p.Problem = *problem
	}
	_ = w.send(report{Progress: p}) // where the parent is gone, so are we
}

// verify compares the checksum and returns the digest.
func (w *worker) verify() (string, error) {
	sum := func(name string) string { return name + ":" + hex.EncodeToString(w.hashes[name].Sum(nil)) }
	if want := w.job.Checksum; want != "" {
		algorithm, _, _ := strings.Cut(want, ":")
		if got := sum(algorithm); got != want {
			return "", image.Refused(fmt.Sprintf("checksum differs: expected %s, got %s", want, got))
		}
	}
	return sum(digest), nil
}

// restored are the digests, as they were at a checkpoint.
func restored(checksum string, states map[string][]byte) (map[string]hash.Hash, error) {
	all := map[string]func() hash.Hash{digest: sha256.New, "sha512": sha512.New, "sha1": sha1.New, "md5": md5.New}
	hashes := map[string]hash.Hash{}
	algorithm, _, _ := strings.Cut(checksum, ":")
	for name, begin := range all {
		if name != digest && name != algorithm {
			continue
		}
		hashes[name] = begin()
		if state := states[name]; state != nil {
			if err := hashes[name].(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil { //nolint:forcetypeassert // as above
				return nil, fetch.ErrChanged
			}
		} else if states != nil {
			return nil, fetch.ErrChanged // another checksum is asked for by now
		}
	}
	return hashes, nil
}

// options are those of the connection.
func (j *job) options() (fetch.Options, error) {
	o := fetch.Options{
		URL: j.URL, Insecure: j.Insecure, User: j.User, Password: j.Password, Headers: http.Header{}, Roots: x509.NewCertPool(),
		FirstPause: j.Tuning.FirstPause, LastPause: j.Tuning.LastPause, StallAfter: j.Tuning.StallAfter,
		ParallelFrom: j.Tuning.ParallelFrom, Piece: j.Tuning.Piece,
	}
	o.Roots.AppendCertsFromPEM(j.Roots)
	if j.Token != "" {
		o.Headers.Set("Authorization", "Bearer "+j.Token)
	}
	for _, line := range j.Headers {
		name, value, _ := strings.Cut(line, ":")
		o.Headers.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	if len(bytes.TrimSpace(j.Certificate)) > 0 {
		pair, err := tls.X509KeyPair(j.Certificate, j.Key)
		if err != nil {
			return o, image.Refused("the client certificate: " + err.Error())
		}
		o.Client = &pair
	}
	return o, nil
}
