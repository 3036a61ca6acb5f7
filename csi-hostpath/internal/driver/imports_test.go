package driver

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/importer"
	"podvirt.dev/csi-hostpath/internal/pooltest"
	"podvirt.dev/csi-hostpath/internal/sandbox"
	"podvirt.dev/csi-hostpath/internal/volume"
	"podvirt.dev/internal/require"
)

// fakeImports notes what claims are told.
type fakeImports struct {
	tuning importer.Tuning

	mu     sync.Mutex
	states []ImportState
}

func (f *fakeImports) ImportObjects(context.Context, volume.Claim, *api.Import) (importer.Objects, error) {
	return importer.Objects{}, nil
}

func (f *fakeImports) ImportSettings(context.Context) (ImportSettings, error) {
	return ImportSettings{ImportConfig: api.ImportConfig{Allow: []string{"127.0.0.1", "*"}}}, nil
}

func (f *fakeImports) ImportState(_ context.Context, _ volume.Claim, state ImportState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.states = append(f.states, state)
}

// told returns the reasons of all events with their texts, and the last phase.
func (f *fakeImports) told() (events []string, phase string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, state := range f.states {
		if state.Event != "" {
			events = append(events, state.Event+": "+state.Message)
		}
		if now := state.Annotations[api.KeyImportPhase]; now != "" {
			phase = now
		}
	}
	return events, phase
}

func (f *fakeImports) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.states = nil
}

// expectEvent fails unless one event is of the reason and holds the text.
func (f *fakeImports) expectEvent(t *testing.T, reason, text string) {
	t.Helper()
	events, _ := f.told()
	if !slices.ContainsFunc(events, func(e string) bool { return strings.HasPrefix(e, reason+": ") && strings.Contains(e, text) }) {
		t.Errorf("events are %q; want %s: %s", events, reason, text)
	}
}

// web serves one raw image. While held is not nil, an answer stops in the middle until it is closed.
type web struct {
	data     []byte
	requests atomic.Int64
	bytes    atomic.Int64
	stopped  chan struct{} // closed when an answer stopped
	held     chan struct{}
	once     sync.Once
	next     []byte // what is served after the answer that stopped, under another version
	version  atomic.Int64
}

func (w *web) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	w.requests.Add(1)
	out.Header().Set("ETag", fmt.Sprintf(`"v%d"`, w.version.Load()))
	if r.URL.Path != "/image" {
		http.NotFound(out, r)
		return
	}
	if w.held != nil && r.Header.Get("Range") == "" {
		out.Header().Set("Content-Length", fmt.Sprint(len(w.data)))
		n, _ := out.Write(w.data[:len(w.data)*3/4])
		_ = http.NewResponseController(out).Flush()
		w.bytes.Add(int64(n))
		w.once.Do(func() { close(w.stopped) })
		select {
		case <-w.held:
		case <-r.Context().Done():
			return
		}
		if w.next != nil {
			w.data, w.held = w.next, nil
			w.version.Add(1)
			panic(http.ErrAbortHandler)
		}
		n, _ = out.Write(w.data[len(w.data)*3/4:])
		w.bytes.Add(int64(n))
		return
	}
	http.ServeContent(&counting{out, w}, r, "", time.Time{}, bytes.NewReader(w.data))
}

type counting struct {
	http.ResponseWriter
	w *web
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.w.bytes.Add(int64(n))
	return n, err
}

// importBench is a bench with a server; claim shop/NAME has the annotations.
func importBench(t *testing.T, size int) (b *bench, w *web, url string) {
	t.Helper()
	require.Root(t)
	require.Feature(t, sandbox.Landlock(), "Landlock")
	data := make([]byte, size)
	random := rand.New(rand.NewPCG(5, 6))
	for at := 0; at < size; at += 64 << 10 {
		for i := range 16 << 10 {
			data[at+i] = byte(random.Uint32())
		}
	}
	data[size-1] = 1
	b = newBench(t, "xfs")
	b.stop()
	b.imports = &fakeImports{tuning: importer.Tuning{CheckpointEvery: 1 << 20, ReportEvery: 20 * time.Millisecond, FirstPause: 10 * time.Millisecond}}
	b.start()
	w = &web{data: data, stopped: make(chan struct{})}
	server := httptest.NewServer(w)
	t.Cleanup(server.Close)
	return b, w, server.URL
}

func (b *bench) claim(name, source string, more ...string) {
	annotations := map[string]string{api.KeyImportSource: source}
	for i := 0; i < len(more); i += 2 {
		annotations[more[i]] = more[i+1]
	}
	b.claims["shop/"+name] = ClaimInfo{UID: "uid-" + name, Annotations: annotations}
}

// holds compares the beginning of a published volume with the image.
func (b *bench) holds(file string, data []byte, size int64) {
	b.t.Helper()
	f, err := os.Open(file)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, size)
	if n, err := f.ReadAt(got, 0); int64(n) != size {
		b.t.Fatalf("%d bytes, %v", n, err)
	}
	if !bytes.Equal(got[:len(data)], data) || len(bytes.Trim(got[len(data):], "\x00")) > 0 {
		b.t.Error("the volume differs from the image")
	}
}

// reserved fails unless a preallocated volume has all its blocks, whatever its image left out, and another one only what it
// holds (ST-022).
func (b *bench) reserved(handle string, r request) {
	b.t.Helper()
	v, _, err := b.driver.opts.Pools.Volume(handle)
	if err != nil {
		b.t.Fatal(err)
	}
	if got := v.Allocated(); (got >= r.size) != (r.parameters["preallocation"] != "") {
		b.t.Errorf("%d bytes of %d are allocated with preallocation %q", got, r.size, r.parameters["preallocation"])
	}
}

// TestImport: a claim's volume exists when its content is there, in every mode; the claim says so (ST-041, ST-054).
func TestImport(t *testing.T) {
	b, w, url := importBench(t, 8<<20)
	for name, r := range map[string]request{
		"block": {size: 32 << 20, block: true},
		"disk":  {size: 32 << 20},
		"full":  {size: 32 << 20, block: true, parameters: map[string]string{"preallocation": "full"}},
		"fixed": {size: 32 << 20, parameters: map[string]string{"preallocation": "falloc"}},
	} {
		t.Run(name, func(t *testing.T) {
			b.imports.forget()
			r.name, r.pod = name, "a"
			b.claim(name, url+"/image?key=hidden")
			handle := b.create(r)
			if again := b.create(r); again != handle {
				t.Errorf("created again it is %s; want %s", again, handle)
			}
			file := b.publish(handle, r)
			if !r.block {
				file += "/disk.img"
			}
			b.holds(file, w.data, r.size)
			b.reserved(handle, r)
			events, phase := b.imports.told()
			if phase != phaseSucceeded || strings.Contains(fmt.Sprint(events), "hidden") {
				t.Errorf("phase %q, events %q", phase, events)
			}
			b.imports.expectEvent(t, "ImportStarted", url+"/image")
			b.imports.expectEvent(t, "ImportSucceeded", "the content is complete")
			b.remove(handle, r)
		})
	}
}

// TestImportRefused: what can never be filled is refused by name, leaves nothing, and costs nothing until the claim says
// something else; then it is imported (ST-055).
func TestImportRefused(t *testing.T) {
	b, w, url := importBench(t, 8<<20)
	sum := api.KeyImportChecksum
	for name, row := range map[string]struct {
		annotations []string
		size        int64
		text        string
	}{
		"missing":   {[]string{api.KeyImportSource, url + "/nothing"}, 32 << 20, "/nothing: 404 Not Found"},
		"checksum":  {[]string{sum, "md5:" + strings.Repeat("0", 32)}, 32 << 20, "checksum differs"},
		"format":    {[]string{api.KeyImportFormat, "qcow2"}, 32 << 20, "source is raw but qcow2 was asked for"},
		"mistake":   {[]string{api.KeyImportFormat, "qcow3"}, 32 << 20, "nearest: qcow2"},
		"directory": {[]string{annotationContent, "files"}, 32 << 20, "an image is imported into content disk only"},
		"insecure":  {[]string{api.KeyImportInsecure, "true"}, 32 << 20, "is not in storage.import.insecure-registries"},
	} {
		b.imports.forget()
		r := request{name: name, pod: "a", size: row.size}
		b.claim(name, url+"/image", row.annotations...)
		const code = codes.FailedPrecondition
		_, err := b.tryCreate(r)
		expect(t, err, code, row.text)
		pooltest.ExpectNothingLeft(t, b.dir)
		if name != "directory" {
			before, _ := b.imports.told()
			requests := w.requests.Load()
			_, err = b.tryCreate(r)
			expect(t, err, code, row.text)
			if events, _ := b.imports.told(); len(before) == 0 || len(events) != len(before) || w.requests.Load() != requests {
				t.Errorf("%s: events %q, then %q; %d requests more", name, before, events, w.requests.Load()-requests)
			}
		}
		b.claim(name, url+"/image")
		if _, err := b.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: b.create(r)}); err != nil {
			t.Fatal(err)
		}
		pooltest.ExpectNothingLeft(t, b.dir)
	}
}

// TestImportTakesLong: who asks meanwhile is told how far it is; changed annotations do not matter; when the claim is
// deleted it ends and nothing is left (ST-041, ST-055).
func TestImportTakesLong(t *testing.T) {
	b, w, url := importBench(t, 8<<20)
	w.held = make(chan struct{})
	b.claim("root", url+"/image")
	r := request{name: "root", pod: "a", size: 32 << 20, block: true}
	ctx, cancel := context.WithCancel(t.Context())
	answered := make(chan error, 1)
	go func() {
		_, err := b.tryCreateContext(ctx, r)
		answered <- err
	}()
	<-w.stopped
	pooltest.Eventually(t, func() error {
		if text := b.driver.controller.imports.waiting(volume.Claim{UID: "uid-root"}); !strings.HasSuffix(text, ": 75.0%") {
			return fmt.Errorf("it says %q", text)
		}
		return nil
	})
	if running := b.driver.Imports(); len(running) != 1 || running[0].Ratio != 0.75 || running[0].Scheme != "http" || running[0].Bytes != 6<<20 {
		t.Errorf("running imports are %+v; want one at 0.75", running)
	}
	cancel()
	if err := <-answered; status.Code(err) != codes.Canceled && status.Code(err) != codes.Aborted {
		t.Errorf("error = %v; want Aborted", err)
	}
	b.claim("root", url+"/other")
	pooltest.Eventually(t, func() error {
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.tryCreateContext(short, r); err == nil {
			t.Error("the volume exists before its content does")
		}
		if events, _ := b.imports.told(); !strings.Contains(fmt.Sprint(events), "ImportChangeIgnored: the import goes on with what the claim said when it began") {
			return fmt.Errorf("events are %q", events)
		}
		return nil
	})

	go func() {
		_, err := b.tryCreateContext(t.Context(), r)
		answered <- err
	}()
	gone := func(volume.Claim) ClaimState { return ClaimState{Gone: true} }
	pooltest.Eventually(t, func() error {
		b.driver.Forget(t.Context(), gone)
		select {
		case err := <-answered:
			if err == nil {
				t.Error("a volume without a claim was made")
			}
			return nil
		default:
			return fmt.Errorf("the import still runs")
		}
	})
	pooltest.ExpectNothingLeft(t, b.dir)
}

// TestImportPauses: an import that pauses reads nothing more and gives its turn to others; it goes on at the byte, also one
// that was paused when its driver began (ST-055).
func TestImportPauses(t *testing.T) {
	b, w, url := importBench(t, 8<<20)
	w.held = make(chan struct{})
	b.claim("root", url+"/image")
	r := request{name: "root", pod: "a", size: 32 << 20, block: true}
	answered := make(chan string, 1)
	go func() { answered <- b.create(r) }()
	<-w.stopped
	imports := b.driver.controller.imports
	paused := func(now bool) func(volume.Claim) ClaimState {
		return func(volume.Claim) ClaimState { return ClaimState{Paused: now} }
	}
	pooltest.Eventually(t, func() error {
		b.driver.Forget(t.Context(), paused(true))
		if _, phase := b.imports.told(); phase != phasePaused {
			return fmt.Errorf("phase %s", phase)
		}
		return nil
	})
	close(w.held)
	imports.turns.mu.Lock()
	held := imports.turns.total
	imports.turns.mu.Unlock()
	if held != 0 {
		t.Errorf("%d turns are held while nothing runs", held)
	}
	b.driver.Forget(t.Context(), paused(true))
	select {
	case handle := <-answered:
		t.Errorf("volume %s is there while its import pauses", handle)
	default:
	}
	b.driver.Forget(t.Context(), paused(false))
	handle := <-answered
	b.imports.expectEvent(t, "ImportPaused", "paused by podvirt.dev/import-paused")
	b.imports.expectEvent(t, "ImportResumed", "going on")
	b.holds(b.publish(handle, r), w.data, r.size)
	b.remove(handle, r)
	if w.bytes.Load() != int64(len(w.data)) {
		t.Errorf("%d bytes came, %d are in the image", w.bytes.Load(), len(w.data))
	}

	w.held = nil
	b.imports.forget()
	b.claim("later", url+"/image", api.KeyImportPaused, "true")
	r.name = "later"
	go func() { answered <- b.create(r) }()
	pooltest.Eventually(t, func() error {
		if _, phase := b.imports.told(); phase != phasePaused {
			return fmt.Errorf("phase %s", phase)
		}
		return nil
	})
	b.driver.Forget(t.Context(), paused(false))
	b.remove(<-answered, r)
}

// TestImportAcrossRestarts: a driver that is replaced goes on where it was, little comes twice; what belongs to no claim
// any more is removed (ST-055).
func TestImportAcrossRestarts(t *testing.T) {
	b, w, url := importBench(t, 16<<20)
	for _, name := range []string{"kept", "orphan"} {
		w.held, w.stopped, w.once = make(chan struct{}), make(chan struct{}), sync.Once{}
		w.bytes.Store(0)
		b.claim(name, url+"/image")
		r := request{name: name, pod: "a", size: 32 << 20}
		interrupted := make(chan error, 1)
		go func() {
			_, err := b.tryCreate(r)
			interrupted <- err
		}()
		<-w.stopped
		pooltest.Eventually(t, func() error {
			for _, begun := range b.driver.opts.Pools.Filling() {
				if data, err := os.ReadFile(begun[0].Dir + "/fill.json"); err == nil && bytes.Contains(data, []byte(`"offset":12533760`)) {
					return nil // the 12 pieces that came: one less than 1 MiB each, since 4096 bytes are held back
				}
			}
			return fmt.Errorf("no checkpoint yet")
		})
		b.restart()
		if err := <-interrupted; err == nil {
			t.Error("the volume exists before its content does")
		}
		if volumes := b.driver.opts.Pools.Volumes(); len(volumes) > 0 {
			t.Errorf("volumes that are not whole are listed: %v", volumes)
		}
		if name == "orphan" {
			b.driver.Forget(t.Context(), func(volume.Claim) ClaimState { return ClaimState{Gone: true} })
			pooltest.ExpectNothingLeft(t, b.dir)
			continue
		}
		close(w.held)
		b.imports.forget()
		handle := b.create(r)
		b.imports.expectEvent(t, "ImportResumed", "going on at byte")
		b.holds(b.publish(handle, r)+"/disk.img", w.data, r.size)
		if most := int64(len(w.data)) * 11 / 10; w.bytes.Load() > most {
			t.Errorf("%d bytes came, %d are in the image", w.bytes.Load(), len(w.data))
		}
		b.remove(handle, r)
	}
}

// TestImportNoSpace: an import for which the pool has no space left, since others filled it, says so and ends well when there
// is some again (ST-054).
func TestImportNoSpace(t *testing.T) {
	b, w, url := importBench(t, 8<<20)
	w.held = make(chan struct{})
	b.claim("root", url+"/image")
	r := request{name: "root", pod: "a", size: 32 << 20, block: true}
	answered := make(chan string, 1)
	go func() { answered <- b.create(r) }()
	<-w.stopped
	filler := filepath.Join(b.dir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := int64(0)
	for size := int64(1 << 40); size >= 4096; size /= 2 {
		for unix.Fallocate(int(f.Fd()), 0, at, size) == nil {
			at += size
		}
	}
	close(w.held)
	pooltest.Eventually(t, func() error {
		if events, _ := b.imports.told(); !strings.Contains(fmt.Sprint(events), "NoSpace: no space left in the pool") {
			return fmt.Errorf("events are %q", events)
		}
		return nil
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	handle := <-answered
	b.holds(b.publish(handle, r), w.data, r.size)
	b.remove(handle, r)
}

// TestImportSourceChanges: when the server has another version after the connection broke, the volume holds that one and
// nothing of the first (ST-042).
func TestImportSourceChanges(t *testing.T) {
	b, w, url := importBench(t, 8<<20)
	w.held, w.next = make(chan struct{}), make([]byte, 4<<20)
	copy(w.next[3<<20:], "the second version")
	b.claim("root", url+"/image")
	r := request{name: "root", pod: "a", size: 32 << 20, block: true}
	go func() {
		<-w.stopped
		close(w.held)
	}()
	handle := b.create(r)
	b.imports.expectEvent(t, "ImportRetrying", "the file on the server has changed")
	b.holds(b.publish(handle, r), w.next, r.size)
	b.remove(handle, r)
}
