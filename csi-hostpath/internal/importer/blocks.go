package importer

import (
	"crypto/sha256"
	"fmt"
	"hash"

	"podvirt.dev/csi-hostpath/internal/image"
)

// blockSize is the unit in which answers of a server are compared, in bytes.
const blockSize = 256 << 10

// blockSum is the beginning of a block's SHA-256.
type blockSum [16]byte

// blocks remember what a stream has brought, so that a piece that is asked for again, because the image needs it out of
// order, is the same one: the checksum of the source is that of the stream (ST-047).
type blocks struct {
	off     bool // nothing will be asked for again
	sums    []blockSum
	current hash.Hash
	filled  int
	early   map[int64]blockSum // asked for before the stream had brought the whole block
}

// write is told what the stream brings.
func (b *blocks) write(p []byte) error {
	for len(p) > 0 && !b.off {
		if b.current == nil {
			b.current = sha256.New()
		}
		n := min(len(p), blockSize-b.filled)
		b.current.Write(p[:n])
		b.filled += n
		p = p[n:]
		if b.filled == blockSize {
			if err := b.end(); err != nil {
				return err
			}
		}
	}
	return nil
}

// end closes a block; the last one of the stream may be short.
func (b *blocks) end() error {
	if b.filled == 0 || b.off {
		return nil
	}
	sum, i := blockSum(b.current.Sum(nil)[:16]), int64(len(b.sums))
	b.current.Reset()
	b.filled = 0
	b.sums = append(b.sums, sum)
	if other, asked := b.early[i]; asked && other != sum {
		return differs(i)
	}
	return nil
}

// check compares a whole block that was asked for with what the stream brought, now or when it does.
func (b *blocks) check(i int64, data []byte) error {
	full := sha256.Sum256(data)
	sum := blockSum(full[:16])
	if i < int64(len(b.sums)) {
		if b.sums[i] != sum {
			return differs(i)
		}
		return nil
	}
	if b.early == nil {
		b.early = map[int64]blockSum{}
	}
	if other, asked := b.early[i]; asked && other != sum {
		return differs(i)
	}
	b.early[i] = sum
	return nil
}

func differs(block int64) error {
	return image.Refused(fmt.Sprintf("the server sent two versions of the bytes from offset %d on", block*blockSize))
}
