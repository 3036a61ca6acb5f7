package image

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// maxDictionary is the largest dictionary of xz and the largest window of zstd that is unpacked, in bytes: those of xz -9
// and zstd --ultra -22.
const (
	maxDictionary = 64 << 20
	maxWindow     = 128 << 20
)

// compressionOf finds the compression by its magic.
func compressionOf(source *bufio.Reader) (string, error) {
	head, err := peek(source, 10)
	if err != nil {
		return "", err
	}
	starts := func(magic string) bool { return bytes.HasPrefix(head, []byte(magic)) }
	switch {
	case starts("\x1f\x8b\x08"):
		return Gzip, nil
	case starts("\xfd7zXZ\x00"):
		return XZ, nil
	case starts("\x28\xb5\x2f\xfd"):
		return Zstd, nil
	case len(head) == 10 && starts("BZh") && head[3] >= '1' && head[3] <= '9' && string(head[4:]) == "1AY&SY":
		return Bzip, nil
	}
	return None, nil
}

// reader unpacks a stream of a kind.
func reader(kind string, source *bufio.Reader) (io.Reader, error) {
	var plain io.Reader
	var err error
	switch kind {
	case Gzip:
		plain, err = gzip.NewReader(source)
	case XZ:
		if err = checkDictionary(source); err == nil {
			plain, err = xz.NewReader(source)
		}
	case Zstd:
		plain, err = zstd.NewReader(source, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	case Bzip:
		plain = bzip2.NewReader(source)
	}
	if err != nil {
		return nil, damaged(kind, err)
	}
	return &unpacking{kind: kind, from: plain, below: source}, nil
}

// unpacking tells what is wrong with the packed stream from what goes wrong below it.
type unpacking struct {
	kind  string
	from  io.Reader
	below *bufio.Reader
}

func (u *unpacking) Read(p []byte) (int, error) {
	n, err := u.from.Read(p)
	if err == nil || err == io.EOF {
		return n, err
	}
	return n, damaged(u.kind, err)
}

func damaged(kind string, err error) error {
	var transport *TransportError
	var already Refused
	switch {
	case errors.As(err, &transport), errors.As(err, &already):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return refused("truncated: the %s stream ends too early", kind)
	}
	return refused("damaged %s stream: %v", kind, err)
}

// TransportError marks what went wrong in reading the source itself, so that it is not taken for a fault of the image.
type TransportError struct{ Err error }

// Error returns the text of the cause.
func (e *TransportError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *TransportError) Unwrap() error { return e.Err }

// checkDictionary refuses the memory that the first block of an xz stream would ask for (xz file format 1.2.1, 3.1); later
// blocks are stopped by the limit of the process.
func checkDictionary(source *bufio.Reader) error {
	head, err := peek(source, 12+1024)
	if err != nil || len(head) < 16 {
		return err
	}
	filters := int(head[13]&3) + 1
	at := 14
	for _, present := range []bool{head[13]&0x40 != 0, head[13]&0x80 != 0} { // compressed and uncompressed size
		for present && at < len(head) {
			at++
			present = head[at-1]&0x80 != 0
		}
	}
	for range filters {
		if at+2 >= len(head) {
			return nil
		}
		if id, size := head[at], head[at+1]; id == 0x21 && size == 1 {
			capacity, err := lzma.DecodeDictCap(head[at+2])
			if err == nil && capacity > maxDictionary {
				err = fmt.Errorf("its dictionary has %d bytes, %d are allowed", capacity, maxDictionary)
			}
			return err
		}
		at += 2 + int(head[at+1])
	}
	return nil
}
