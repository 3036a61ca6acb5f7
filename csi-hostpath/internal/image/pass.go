package image

import (
	"bufio"
	"container/heap"
	"errors"
	"io"
	"math"
)

// maxRegions bounds what must be remembered of an image; only one that is fragmented as no tool leaves it has more.
const maxRegions = 1 << 20

// pass reads an image by its parts. Where they lie is a queue ordered by offset: reading it in that order reads the file
// front to back, as long as each table lies before what it points to. That is how tools write.
type pass struct {
	o       Options
	format  string
	source  *bufio.Reader
	at      int64 // offset of source in the file
	queue   regions
	pending region // data that the next piece may prolong
	size    int64  // virtual
	cluster int64  // unit of the format, bytes
	piece   []byte

	// table reads a region that is no data.
	table func(r region, from io.Reader) error
	// unpack writes what a region of packed data holds; at the end of the file there may be less than its length.
	unpack func(r region, packed []byte) error
}

type regionKind uint8

const (
	tableOne regionKind = iota // that everything hangs on
	tableTwo                   // that table one points to
	plainData
	packedData
)

// region is a part of the file that is needed. guest is the offset in the disk of what it describes or holds.
type region struct {
	host, guest, length int64
	present             uint32 // subclusters to copy; all ones: everything
	kind                regionKind
}

type regions []region

func (r regions) Len() int           { return len(r) }
func (r regions) Less(i, j int) bool { return r[i].host < r[j].host }
func (r regions) Swap(i, j int)      { r[i], r[j] = r[j], r[i] }

// Push is for package heap.
func (r *regions) Push(x any) { *r = append(*r, x.(region)) } //nolint:forcetypeassert // heap passes back what push put in

// Pop is for package heap.
func (r *regions) Pop() any {
	last := (*r)[len(*r)-1]
	*r = (*r)[:len(*r)-1]
	return last
}

func newPass(format string, source *bufio.Reader, o Options) pass {
	return pass{o: o, format: format, source: source, piece: make([]byte, rawPiece)}
}

// told says what the image is, once its header is read.
func (p *pass) told(info Info) {
	info.VirtualSize = p.size
	if p.o.Told != nil {
		p.o.Told(info)
	}
}

// run reads all that was pushed, and what that leads to.
func (p *pass) run() error {
	for len(p.queue) > 0 {
		next, _ := heap.Pop(&p.queue).(region)
		if err := p.read(next); err != nil {
			return err
		}
	}
	return nil
}

func (p *pass) push(r region) error {
	if len(p.queue) >= maxRegions {
		return refused("%s is too fragmented; rewrite it with qemu-img convert", p.format)
	}
	heap.Push(&p.queue, r)
	return nil
}

// data adds a piece of the disk; pieces that follow each other in the file and in the disk are read as one.
func (p *pass) data(next region) error {
	last := &p.pending
	whole := next.kind == plainData && last.kind == plainData && next.present == math.MaxUint32 && last.present == math.MaxUint32
	if last.length > 0 && whole && last.host+last.length == next.host && last.guest+last.length == next.guest {
		last.length += next.length
		return nil
	}
	err := p.flush()
	p.pending = next
	return err
}

// flush ends a run of pieces.
func (p *pass) flush() error {
	last := p.pending
	p.pending = region{}
	if last.length == 0 {
		return nil
	}
	return p.push(last)
}

// read brings the stream to a region and reads it. What lies behind already is read by itself where the source can.
func (p *pass) read(r region) error {
	if r.host < p.at {
		if p.o.At == nil {
			return refused("this %s cannot be read in one pass: its parts are not in order; serve it with range requests or as raw", p.format)
		}
		return p.take(r, bufio.NewReaderSize(io.NewSectionReader(p.o.At, r.host, r.length), int(min(r.length, 1<<20))))
	}
	if err := p.skip(r.host - p.at); err != nil {
		return err
	}
	if r.kind == packedData { // the next one may begin in the last sector of this one
		packed, err := peek(p.source, int(r.length))
		if err != nil {
			return err
		}
		return p.unpack(r, packed)
	}
	p.at += r.length
	return p.take(r, p.source)
}

func (p *pass) skip(bytes int64) error {
	for bytes > 0 {
		n, err := p.source.Discard(int(min(bytes, 1<<30)))
		bytes -= int64(n)
		p.at += int64(n)
		if err != nil {
			return p.ended(err)
		}
	}
	return nil
}

// take consumes a region.
func (p *pass) take(r region, from io.Reader) error {
	switch r.kind {
	case plainData:
		return p.copyData(r, from)
	case packedData:
		packed := make([]byte, r.length)
		n, err := io.ReadFull(from, packed)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return p.ended(err)
		}
		return p.unpack(r, packed[:n])
	default:
		return p.table(r, from)
	}
}

// ended says that an image is not whole, where that is why reading ended.
func (p *pass) ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return refused("truncated: the %s ends before its data does", p.format)
	}
	return err
}

func (p *pass) copyData(r region, from io.Reader) error {
	piece := p.piece
	if r.present != math.MaxUint32 {
		piece = piece[:p.cluster/32]
	}
	for done := int64(0); done < r.length; {
		n := min(int64(len(piece)), r.length-done)
		if _, err := io.ReadFull(from, piece[:n]); err != nil {
			return p.ended(err)
		}
		if r.present == math.MaxUint32 || r.present>>(done/int64(len(piece)))&1 != 0 {
			if err := p.write(piece[:n], r.guest+done); err != nil {
				return err
			}
		}
		done += n
	}
	return nil
}

// write writes what lies inside the disk.
func (p *pass) write(data []byte, guest int64) error {
	if over := guest + int64(len(data)) - p.size; over > 0 {
		data = data[:max(0, int64(len(data))-over)]
	}
	return writeSparse(p.o.To, data, guest)
}

// block is one unit of an image at an offset of its file, as long as the disk goes.
func (p *pass) block(host, guest int64) region {
	length := min(p.cluster, (p.size-guest+sector-1)/sector*sector)
	return region{kind: plainData, host: host, guest: guest, length: length, present: math.MaxUint32}
}

// sector is the unit of offsets in most formats, in bytes.
const sector = 512
