// Package image reads disk images of strangers and writes what they hold as a raw disk: front to back, in one pass and
// with bounded memory. It opens nothing and knows no network; it runs in the sandboxed child of an import.
package image

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Formats and compressions that are read (storage.md 2.1).
const (
	Auto  = "auto"
	Raw   = "raw"
	Qcow2 = "qcow2"
	VMDK  = "vmdk"
	VDI   = "vdi"
	VHD   = "vhd"
	VHDX  = "vhdx"

	None = "none"
	Gzip = "gz"
	XZ   = "xz"
	Zstd = "zst"
	Bzip = "bz2"
)

// Refused says why an image is not taken. It does not help to try again.
type Refused string

// Error returns the reason.
func (r Refused) Error() string { return string(r) }

func refused(format string, args ...any) error { return Refused(fmt.Sprintf(format, args...)) }

// Options of one image.
type Options struct {
	Size        int64  // of the disk in bytes; nothing is written beyond
	Format      string // as asked for; "auto": by magic
	Compression string
	// Length is how many bytes the source has, -1 where that is not known.
	Length int64
	// Start is the offset in bytes at which From begins, when an earlier attempt wrote all before it; only for images
	// whose format was found to be raw and that are not compressed.
	Start int64
	// At reads the source anywhere; nil where that cannot be done. It is not used for what is compressed.
	At io.ReaderAt
	// To is the disk. It reads as zeros wherever an earlier attempt for the same source did not write.
	To io.WriterAt
	// Told is called with what was found before anything is written; nil: nobody is told.
	Told func(Info)
	// Copied is called with the offset up to which a raw image that is not compressed was written; nil: nobody is told.
	Copied func(offset int64) error
}

// Info is what an image was found to be.
type Info struct {
	Format      string
	Compression string // the outer one first, joined with +
	VirtualSize int64  // bytes; -1 where only the end will tell
}

// peekSize holds the largest piece that is looked at before it is consumed: a compressed cluster of qcow2, which
// occupies at most twice 2 MiB.
const peekSize = 4<<20 + 4096

// Copy writes what the image in from holds. Errors that are of the image's are [Refused]; others are of reading or
// writing. What follows the image in the source is left unread.
func Copy(from io.Reader, o Options) error {
	source := bufio.NewReaderSize(from, peekSize)
	compression := None
	if o.Start == 0 {
		var err error
		if source, compression, err = decompress(source, o); err != nil {
			return err
		}
	}
	if compression != None {
		o.At, o.Length, o.Copied = nil, -1, nil
	}
	format := Raw
	if o.Start == 0 {
		var err error
		if format, err = detect(source); err != nil {
			return err
		}
	}
	if format == Raw && o.Format == VHD {
		format = VHD + fixed
	} else if o.Format != Auto && o.Format != format {
		return refused("source is %s but %s was asked for", format, o.Format)
	}
	read := map[string]func(*bufio.Reader, Options, Info) error{
		Raw: copyRaw, VHD + fixed: copyRaw, Qcow2: copyQcow2, VMDK: copyVMDK, VDI: copyVDI, VHD: copyVHD, VHDX: copyVHDX,
	}[format]
	return read(source, o, Info{Format: strings.TrimSuffix(format, fixed), Compression: compression, VirtualSize: -1})
}

// fixed marks a vhd of fixed size, which has nothing in front.
const fixed = " of fixed size"

// Unpack returns what is inside a stream that may be compressed, bounded by what an image for a disk of a size can have.
func Unpack(from io.Reader, size int64) (io.Reader, error) {
	plain, _, err := decompress(bufio.NewReaderSize(from, peekSize), Options{Compression: Auto, Size: size})
	return plain, err
}

// maxLayers is how many compressions may lie around an image (ST-045: nested once).
const maxLayers = 2

// decompress unwraps the stream.
func decompress(source *bufio.Reader, o Options) (*bufio.Reader, string, error) {
	if o.Compression == None {
		return source, None, nil
	}
	found := ""
	for layer := 0; ; layer++ {
		kind, err := compressionOf(source)
		if err != nil {
			return nil, "", err
		}
		if layer == 0 && o.Compression != Auto && o.Compression != kind {
			return nil, "", refused("source is not compressed with %s but %s was asked for", o.Compression, o.Compression)
		}
		if kind == None {
			break
		}
		if layer == maxLayers {
			return nil, "", refused("compressed more than %d times", maxLayers)
		}
		plain, err := reader(kind, source)
		if err != nil {
			return nil, "", err
		}
		// A bomb is cut off when the disk is full of it, and where its output is skipped, here.
		source = bufio.NewReaderSize(&limited{from: plain, left: o.Size + o.Size/8 + 64<<20, size: o.Size}, peekSize)
		if found != "" {
			found += "+"
		}
		found += kind
	}
	if found == "" {
		found = None
	}
	return source, found, nil
}

// limited ends the reading of something that unpacks to more than any image for the disk can have.
type limited struct {
	from       io.Reader
	left, size int64
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.from.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, refused("image needs more than %s, the claim asks for %s", binarySize(l.size), binarySize(l.size))
	}
	return n, err
}

// peek returns up to n bytes without consuming them.
func peek(source *bufio.Reader, n int) ([]byte, error) {
	head, err := source.Peek(n)
	if err == io.EOF || len(head) > 0 && errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return head, err
}

// detect finds the format by its magic; what has none is raw.
func detect(source *bufio.Reader) (string, error) {
	head, err := peek(source, 512)
	if err != nil {
		return "", err
	}
	if len(head) == 0 {
		return "", refused("the source is empty")
	}
	starts := func(magic string) bool { return bytes.HasPrefix(head, []byte(magic)) }
	switch {
	case starts("QFI\xfb"):
		return Qcow2, nil
	case starts(vmdkMagic), starts("COWD"), starts("# Disk DescriptorFile"):
		return VMDK, nil
	case starts("vhdxfile"):
		return VHDX, nil
	case starts(vhdCookie):
		return VHD, nil
	case len(head) >= 68 && binary.LittleEndian.Uint32(head[64:]) == vdiMagic:
		return VDI, nil
	}
	return Raw, nil
}

// rawPiece is how much of a raw image is read at once, in bytes.
const rawPiece = 1 << 20

// copyRaw copies a raw image, or a vhd of fixed size, which is one with a footer behind.
func copyRaw(source *bufio.Reader, o Options, info Info) error {
	r := &rawCopy{o: o, vhd: info.Format == VHD, at: o.Start, buffer: make([]byte, rawPiece)}
	if info.VirtualSize = o.Length; r.vhd {
		info.VirtualSize = max(-1, o.Length-vhdFooter)
	}
	least := info.VirtualSize
	if o.Format == Auto {
		least -= vhdFooter // it may be a vhd
	}
	if least > o.Size {
		return fits(info.VirtualSize, o.Size)
	}
	if o.Told != nil {
		o.Told(info)
	}
	for {
		n, err := io.ReadFull(source, r.buffer[r.held:])
		last := err == io.EOF || err == io.ErrUnexpectedEOF
		if err != nil && !last {
			return err
		}
		if err := r.piece(n, last); err != nil || last {
			return err
		}
	}
}

// rawCopy holds the end of what was read back until it is known that it is no footer.
type rawCopy struct {
	o      Options
	vhd    bool
	at     int64
	buffer []byte
	held   int
}

// piece writes what was held and the next n bytes, but for what must be held.
func (r *rawCopy) piece(n int, last bool) error {
	n += r.held
	keep := 0
	switch {
	case !last && (r.vhd || r.o.Format == Auto):
		keep = min(n, hole)
	case last:
		tail := max(0, n-vhdFooter)
		found, ok := parseFooter(r.buffer[tail:n])
		switch end := r.at + int64(tail); {
		case r.o.Format == Raw:
		case ok && found.kind == vhdFixed && (end == found.size || end == found.current):
			n = tail
		case r.vhd:
			return refused("malformed vhd: neither a header in front nor a footer behind")
		}
	}
	if end := r.at + int64(n-keep); end > r.o.Size {
		if r.o.Length > r.o.Size {
			return fits(r.o.Length, r.o.Size)
		}
		return refused("image needs more than %s, the claim asks for %s", binarySize(r.o.Size), binarySize(r.o.Size))
	}
	if err := writeSparse(r.o.To, r.buffer[:n-keep], r.at); err != nil {
		return err
	}
	r.at += int64(n - keep)
	r.held = copy(r.buffer, r.buffer[n-keep:n])
	if r.o.Copied == nil {
		return nil
	}
	return r.o.Copied(r.at)
}

// fits says early what can never fit (ST-057).
func fits(needed, size int64) error {
	if needed > size {
		return refused("image needs %s (virtual size), the claim asks for %s", binarySize(needed), binarySize(size))
	}
	return nil
}

func binarySize(n int64) string { return resource.NewQuantity(n, resource.BinarySI).String() }

// hole is the unit in which zeros are left out, in bytes: that of the disk's own sizes.
const hole = 4096

// writeSparse writes the blocks that are not zero.
func writeSparse(to io.WriterAt, data []byte, at int64) error {
	for len(data) > 0 {
		skip := run(data, at, true)
		data, at = data[skip:], at+int64(skip)
		n := run(data, at, false)
		if n == 0 {
			continue
		}
		if _, err := to.WriteAt(data[:n], at); err != nil {
			return err
		}
		data, at = data[n:], at+int64(n)
	}
	return nil
}

// run is the length of the leading blocks that are all zero, or all not.
func run(data []byte, at int64, zero bool) int {
	length := 0
	for length < len(data) {
		end := min(length+hole-int((at+int64(length))%hole), len(data))
		if isZero(data[length:end]) != zero {
			break
		}
		length = end
	}
	return length
}

func isZero(data []byte) bool {
	return len(data) == 0 || data[0] == 0 && bytes.Equal(data[1:], data[:len(data)-1])
}
