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

	"k8s.io/apimachinery/pkg/api/resource"
)

// Formats and compressions that are read (storage.md 2.1).
const (
	Auto  = "auto"
	Raw   = "raw"
	Qcow2 = "qcow2"

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
	format := Raw
	if o.Start == 0 {
		var err error
		if format, err = detect(source); err != nil {
			return err
		}
	}
	if o.Format != Auto && o.Format != format {
		return refused("source is %s but %s was asked for", format, o.Format)
	}
	info := Info{Format: format, Compression: compression, VirtualSize: -1}
	if compression != None {
		o.At, o.Length, o.Copied = nil, -1, nil
	}
	if format == Qcow2 {
		return copyQcow2(source, o, info)
	}
	return copyRaw(source, o, info)
}

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
	case starts("KDMV"), starts("COWD"), starts("# Disk DescriptorFile"):
		return "", unsupported("vmdk")
	case starts("vhdxfile"):
		return "", unsupported("vhdx")
	case starts("conectix"):
		return "", unsupported("vhd")
	case len(head) >= 68 && binary.LittleEndian.Uint32(head[64:]) == 0xbeda107f:
		return "", unsupported("vdi")
	}
	return Raw, nil
}

func unsupported(format string) error {
	return refused("source is %s, which this version does not read; convert it: qemu-img convert -O qcow2", format)
}

// rawPiece is how much of a raw image is read at once, in bytes.
const rawPiece = 1 << 20

func copyRaw(source *bufio.Reader, o Options, info Info) error {
	if o.Length >= 0 {
		info.VirtualSize = o.Length
		if err := fits(o.Length, o.Size); err != nil {
			return err
		}
	}
	if o.Told != nil {
		o.Told(info)
	}
	buffer := make([]byte, rawPiece)
	for at := o.Start; ; {
		n, err := io.ReadFull(source, buffer)
		if at+int64(n) > o.Size {
			return refused("image needs more than %s, the claim asks for %s", binarySize(o.Size), binarySize(o.Size))
		}
		if err := writeSparse(o.To, buffer[:n], at); err != nil {
			return err
		}
		at += int64(n)
		if o.Copied != nil {
			if err := o.Copied(at); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF, err == io.ErrUnexpectedEOF:
			return nil
		case err != nil:
			return err
		}
	}
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
