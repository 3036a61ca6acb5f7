package image

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"podvirt.dev/internal/require"
)

// diskSize is that of the claim; the images hold half of it.
const diskSize = 16 << 20

// disk is a disk in memory that notes how much was written.
type disk struct {
	data    []byte
	written int64
}

func (d *disk) WriteAt(p []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(p)) > int64(len(d.data)) {
		return 0, errors.New("written beyond the disk")
	}
	d.written += int64(len(p))
	return copy(d.data[at:], p), nil
}

// content is an image with data, zeros and text in it.
func content() []byte {
	data := make([]byte, diskSize/2)
	random := rand.New(rand.NewPCG(1, 2))
	for _, from := range []int{0, 1 << 20, 5<<20 + 512, 7 << 20} {
		for i := range 300 << 10 {
			data[from+i] = byte(random.Uint32())
		}
	}
	copy(data[3<<20:], bytes.Repeat([]byte("some text that packs well\n"), 20000))
	data[len(data)-1] = 1
	return data
}

// runIn makes a file by a program that writes it itself, or to its output.
func runIn(t *testing.T, dir string, argv ...string) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, out)
	}
}

func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, program := range programs {
		_, err := exec.LookPath(program)
		require.Feature(t, err == nil, program)
	}
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// formats are images of the same content in all layouts that qemu-img makes.
func formats(t *testing.T) (dir string, names []string) {
	t.Helper()
	needs(t, "qemu-img")
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "raw"), content(), 0o600); err != nil {
		t.Fatal(err)
	}
	names = []string{"raw"}
	for name, args := range map[string][]string{
		"qcow2":            nil,
		"qcow2-v2":         {"-o", "compat=0.10"},
		"qcow2-small":      {"-o", "cluster_size=512"},
		"qcow2-large":      {"-o", "cluster_size=2M"},
		"qcow2-packed":     {"-c"},
		"qcow2-packed-2M":  {"-c", "-o", "cluster_size=2M"},
		"qcow2-zstd":       {"-c", "-o", "compression_type=zstd"},
		"qcow2-extended":   {"-o", "extended_l2=on,cluster_size=128k"},
		"qcow2-reserved":   {"-o", "preallocation=metadata"},
		"qcow2-unordered":  {"-W", "-m", "4"},
		"qcow2-lazy":       {"-o", "lazy_refcounts=on"},
		"qcow2-all-zeroed": {"-S", "0"},
	} {
		runIn(t, dir, append(append([]string{"qemu-img", "convert", "-O", "qcow2"}, args...), "raw", name)...)
		names = append(names, name)
	}
	return dir, append(names, others(t, dir)...)
}

// TestFormats: every format in every compression gives the content, and writes no more than what is not zero.
func TestFormats(t *testing.T) {
	dir, names := formats(t)
	needs(t, "gzip", "xz", "zstd", "bzip2")
	for _, compression := range []string{None, Gzip, XZ, Zstd, Bzip} {
		for _, name := range names {
			if compression != None && !slices.Contains([]string{"raw", "qcow2", "qcow2-packed"}, name) && (compression != Gzip || strings.HasPrefix(name, "qcow2-")) {
				continue // what is inside matters no more than it does without
			}
			t.Run(name+"."+compression, func(t *testing.T) {
				t.Parallel()
				file := filepath.Join(dir, name)
				if compression != None {
					packed := filepath.Join(t.TempDir(), "packed")
					program := map[string]string{Gzip: "gzip -1", XZ: "xz -0", Zstd: "zstd -q -1", Bzip: "bzip2 -1"}[compression]
					runIn(t, dir, "sh", "-c", program+" -c <"+name+" >"+packed)
					file = packed
				}
				check(t, readFile(t, file), Options{Format: Auto, Compression: Auto})
				source := readFile(t, file)
				check(t, source, Options{Format: strings.Split(name, "-")[0], Compression: compression})
				check(t, source, Options{Format: Auto, Compression: Auto, At: bytes.NewReader(source)})
			})
		}
	}
	t.Run("nested once", func(t *testing.T) {
		runIn(t, dir, "sh", "-c", "gzip <qcow2 | xz -0 >nested")
		check(t, readFile(t, filepath.Join(dir, "nested")), Options{Format: Auto, Compression: Auto})
		runIn(t, dir, "sh", "-c", "gzip <nested >thrice")
		refuse(t, readFile(t, filepath.Join(dir, "thrice")), Options{}, "compressed more than 2 times")
	})
}

func check(t *testing.T, source []byte, o Options) {
	t.Helper()
	to := &disk{data: make([]byte, diskSize)}
	o.Size, o.To, o.Length = diskSize, to, int64(len(source))
	if err := Copy(bytes.NewReader(source), o); err != nil {
		t.Fatal(err)
	}
	want := content()
	if !bytes.Equal(to.data[:len(want)], want) || !isZero(to.data[len(want):]) {
		t.Error("the disk differs from the image")
	}
	if to.written > 3<<20 {
		t.Errorf("%d bytes were written, 1.7 MiB are not zero", to.written)
	}
}

// refuse expects a refusal with the text, and that nothing is said of what the machine did wrong.
func refuse(t *testing.T, source []byte, o Options, text string) {
	t.Helper()
	o.Size, o.To, o.Length = diskSize, &disk{data: make([]byte, diskSize)}, int64(len(source))
	if o.Format == "" {
		o.Format = Auto
	}
	if o.Compression == "" {
		o.Compression = Auto
	}
	refusedWith(t, Copy(bytes.NewReader(source), o), text)
}

// refusedWith expects a refusal; without a text, none.
func refusedWith(t *testing.T, err error, text string) {
	t.Helper()
	var why Refused
	if text == "" && err == nil {
		return
	}
	if text == "" || !errors.As(err, &why) || !strings.Contains(err.Error(), text) {
		t.Errorf("error = %v; want a refusal with %q", err, text)
	}
}

// TestOutOfOrder: an image whose parts lie behind what points to them needs random access.
func TestOutOfOrder(t *testing.T) {
	needs(t, "qemu-img", "qemu-io")
	dir := t.TempDir()
	name := filepath.Join(dir, "mixed")
	runIn(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "mixed", "8M")
	// The first write makes the table of the whole disk; with a snapshot the next one puts a copy of it behind the data.
	runIn(t, dir, "qemu-io", "-c", "write -P 7 0 256k", "mixed")
	runIn(t, dir, "qemu-img", "snapshot", "-c", "old", "mixed")
	runIn(t, dir, "qemu-io", "-c", "write -P 9 4M 64k", "mixed")
	source := readFile(t, name)
	refuse(t, source, Options{}, "serve it with range requests or as raw")

	to := &disk{data: make([]byte, diskSize)}
	err := Copy(bytes.NewReader(source), Options{
		Size: diskSize, Format: Auto, Compression: Auto, Length: int64(len(source)), At: bytes.NewReader(source), To: to,
	})
	if err != nil {
		t.Fatal(err)
	}
	if to.data[0] != 7 || to.data[256<<10-1] != 7 || to.data[256<<10] != 0 || to.data[4<<20] != 9 {
		t.Error("the disk differs from the image")
	}
}

func patched(data []byte, at int, value ...byte) []byte {
	data = bytes.Clone(data)
	copy(data[at:], value)
	return data
}

func packed(data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(data) // to memory
	_ = w.Close()
	return b.Bytes()
}

// TestRefusals: what is no image for the disk is refused by name.
func TestRefusals(t *testing.T) {
	needs(t, "qemu-img")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "raw"), content(), 0o600); err != nil {
		t.Fatal(err)
	}
	runIn(t, dir, "qemu-img", "convert", "-O", "qcow2", "raw", "qcow2")
	runIn(t, dir, "qemu-img", "convert", "-O", "qcow2", "-c", "raw", "qcow2-packed")
	image, small := readFile(t, filepath.Join(dir, "qcow2")), readFile(t, filepath.Join(dir, "qcow2-packed"))
	runIn(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", "backed", "8M")
	runIn(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=outside,data_file_raw=on", "split", "8M")
	runIn(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "large", "1G")
	zeros := make([]byte, diskSize+1)
	for name, row := range map[string]struct {
		source  []byte
		options Options
		text    string
	}{
		"backing file":       {readFile(t, filepath.Join(dir, "backed")), Options{}, "qcow2 with a backing file"},
		"data file":          {readFile(t, filepath.Join(dir, "split")), Options{}, "qcow2 with an external data file"},
		"too large":          {readFile(t, filepath.Join(dir, "large")), Options{}, "image needs 1Gi (virtual size), the claim asks for 16Mi"},
		"encrypted":          {patched(image, 32, 0, 0, 0, 2), Options{}, "encrypted qcow2"},
		"corrupt":            {patched(image, 79, 2), Options{}, "marked as corrupt"},
		"unknown feature":    {patched(image, 78, 1), Options{}, "unknown incompatible features 0x100"},
		"version":            {patched(image, 4, 0, 0, 0, 9), Options{}, "version 9"},
		"cluster bits":       {patched(image, 20, 0, 0, 0, 63), Options{}, "cluster_bits 63"},
		"no size":            {patched(image, 24, make([]byte, 8)...), Options{}, "virtual size 0"},
		"huge size":          {patched(image, 24, bytes.Repeat([]byte{255}, 8)...), Options{}, "virtual size"},
		"L1 table":           {patched(image, 40, 0, 0, 0, 0, 0, 0, 0, 1), Options{}, "L1 table at offset 1"},
		"no L1 table":        {patched(image, 36, 0, 0, 0, 0), Options{}, "0 entries in the L1 table"},
		"L1 table far away":  {patched(image, 40, 0, 1, 0, 0, 0, 0, 0, 0), Options{}, "truncated"},
		"half":               {image[:len(image)/2], Options{}, "truncated: the qcow2 ends"},
		"half packed":        {small[:len(small)/2], Options{}, "truncated: the qcow2 ends"},
		"header only":        {image[:50], Options{}, "header ends too early"},
		"empty":              {nil, Options{}, "the source is empty"},
		"other format":       {image, Options{Format: Raw}, "source is qcow2 but raw was asked for"},
		"not compressed":     {image, Options{Compression: XZ}, "not compressed with xz"},
		"long raw":           {zeros, Options{}, "image needs 16777217 (virtual size), the claim asks for 16Mi"},
		"long raw, packed":   {packed(zeros), Options{}, "image needs more than 16Mi"},
		"half gz":            {packed(image)[:100<<10], Options{}, "truncated: the gz stream ends too early"},
		"damaged gz":         {patched(packed(content()), 100<<10, 1, 2, 3, 4, 5, 6), Options{}, "gz stream"},
		"bomb below a qcow2": {packed(patched(append(image[:1<<17:1<<17], make([]byte, 96<<20)...), 40, 0, 0, 0, 0, 0x10, 0, 0, 0)), Options{}, "image needs more"},
		"dictionary of xz":   {xzWithDictionary(), Options{}, "its dictionary has"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refuse(t, row.source, row.options, row.text)
		})
	}
}

// xzWithDictionary is the beginning of a stream that asks for 4 GiB of memory.
func xzWithDictionary() []byte {
	return append([]byte("\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01\x28\x00\x00\x00"), make([]byte, 64)...)
}

// TestRawGoesOn: an attempt that begins where the last one stopped gives the same disk.
func TestRawGoesOn(t *testing.T) {
	source := content()
	to := &disk{data: make([]byte, diskSize)}
	var copied []int64
	stop := errors.New("enough")
	o := Options{
		Size: diskSize, Format: Auto, Compression: Auto, Length: int64(len(source)), To: to,
		Copied: func(offset int64) error {
			if copied = append(copied, offset); len(copied) == 3 {
				return stop
			}
			return nil
		},
	}
	if err := Copy(bytes.NewReader(source), o); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	o.Start = copied[2]
	if err := Copy(bytes.NewReader(source[o.Start:]), o); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(to.data[:len(source)], source) {
		t.Error("the disk differs from the image")
	}
}

// TestTransportErrors: what goes wrong in reading is not taken for a fault of the image.
func TestTransportErrors(t *testing.T) {
	broken := &TransportError{Err: errors.New("connection reset")}
	for name, source := range map[string][]byte{"raw": content(), "gz": packed(content()), "nothing": nil} {
		from := io.MultiReader(bytes.NewReader(source[:len(source)/2]), &failing{broken})
		err := Copy(from, Options{Size: diskSize, Format: Auto, Compression: Auto, Length: -1, To: &disk{data: make([]byte, diskSize)}})
		if _, ok := errors.AsType[*TransportError](err); !ok {
			t.Errorf("%s: error = %v; want the transport's", name, err)
		}
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

// FuzzCopy: whatever comes, there is no panic and nothing is written beyond the disk.
func FuzzCopy(f *testing.F) {
	header := make([]byte, 4<<9)
	copy(header, "QFI\xfb")
	binary.BigEndian.PutUint32(header[4:], 3)
	binary.BigEndian.PutUint32(header[20:], 9)
	binary.BigEndian.PutUint64(header[24:], 32<<10)
	binary.BigEndian.PutUint32(header[36:], 1)
	binary.BigEndian.PutUint64(header[40:], 512)
	binary.BigEndian.PutUint32(header[100:], 104)
	binary.BigEndian.PutUint64(header[512:], 1024)
	binary.BigEndian.PutUint64(header[1024:], 1536)
	binary.BigEndian.PutUint64(header[1032:], 1<<62|1536)
	f.Add(header)
	f.Add(patched(header, 79, 8, 0, 0, 0, 0, 0, 0, 0, 0))
	f.Add(packed(header))
	f.Add(xzWithDictionary())
	f.Add([]byte("BZh91AY&SY\x00\x00"))
	f.Add([]byte("\x28\xb5\x2f\xfd\x24\x01\x00"))
	f.Fuzz(func(t *testing.T, source []byte) {
		for _, at := range []io.ReaderAt{nil, bytes.NewReader(source)} {
			to := &disk{data: make([]byte, 64<<10)}
			err := Copy(bytes.NewReader(source), Options{
				Size: int64(len(to.data)), Format: Auto, Compression: Auto, Length: int64(len(source)), At: at, To: to,
			})
			if err != nil && strings.Contains(err.Error(), "beyond the disk") {
				t.Error(err)
			}
		}
	})
}
