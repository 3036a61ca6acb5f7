package image

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// Offsets, bits and limits of docs/interop/qcow2.rst of QEMU.
const (
	headerV2, headerV3 = 72, 104

	incompatibleCorrupt    = 1 << 1
	incompatibleDataFile   = 1 << 2
	incompatibleZstd       = 1 << 3
	incompatibleExtended   = 1 << 4
	incompatibleUnderstood = 1<<0 | incompatibleZstd | incompatibleExtended // bit 0: refcounts may be old; they are not read

	entryOffset     = 0x00fffffffffffe00
	entryCompressed = 1 << 62
	entryZero       = 1

	maxL1 = 32 << 20 / 8 // entries, as in QEMU
)

// qcow2 is one image being read.
type qcow2 struct {
	pass
	version  uint32
	extended bool // two words per entry: the second says which subclusters are there
	zstd     *zstd.Decoder
}

func copyQcow2(source *bufio.Reader, o Options, info Info) error {
	q := &qcow2{pass: newPass(Qcow2, source, o)}
	q.table, q.unpack = q.tables, q.inflate
	if err := q.header(); err != nil {
		return err
	}
	if q.zstd != nil {
		defer q.zstd.Close()
	}
	q.told(info)
	return q.run()
}

// header reads and judges the header.
func (q *qcow2) header() error {
	head, err := peek(q.source, headerV3+8)
	if err != nil {
		return err
	}
	if len(head) < headerV2 {
		return refused("truncated: the qcow2 header ends too early")
	}
	u32, u64 := binary.BigEndian.Uint32, binary.BigEndian.Uint64
	q.version = u32(head[4:])
	bits := u32(head[20:])
	virtual := u64(head[24:])
	switch {
	case q.version != 2 && q.version != 3:
		return refused("malformed qcow2 header: version %d, 2 and 3 are known", q.version)
	case u64(head[8:]) != 0:
		return refused("qcow2 with a backing file: flatten it with qemu-img convert")
	case u32(head[32:]) != 0:
		return refused("encrypted qcow2: decrypt it with qemu-img convert")
	case bits < 9 || bits > 21:
		return refused("malformed qcow2 header: cluster_bits %d, 9 to 21 are allowed", bits)
	case virtual == 0 || virtual > math.MaxInt64/2:
		return refused("malformed qcow2 header: virtual size %d", virtual)
	}
	q.cluster, q.size = 1<<bits, int64(virtual)
	if err := q.features(head); err != nil {
		return err
	}
	if err := fits(q.size, q.o.Size); err != nil {
		return err
	}
	return q.first(head)
}

// first finds the table that everything hangs on.
func (q *qcow2) first(head []byte) error {
	u32, u64 := binary.BigEndian.Uint32, binary.BigEndian.Uint64
	perTable := q.cluster / q.entryBytes() * q.cluster
	tables := (q.size + perTable - 1) / perTable
	l1, entries := int64(u64(head[40:])&math.MaxInt64), int64(u32(head[36:]))
	switch {
	case entries < tables || entries > maxL1:
		return refused("malformed qcow2 header: %d entries in the L1 table, %d are needed", entries, tables)
	case l1 < headerV2 || l1%q.cluster != 0:
		return refused("malformed qcow2 header: L1 table at offset %d", l1)
	}
	return q.push(region{kind: tableOne, host: l1, length: tables * 8})
}

// features reads what version 3 added.
func (q *qcow2) features(head []byte) error {
	if q.version < 3 {
		return nil
	}
	if len(head) < headerV3 {
		return refused("truncated: the qcow2 header ends too early")
	}
	incompatible := binary.BigEndian.Uint64(head[72:])
	switch {
	case incompatible&incompatibleDataFile != 0:
		return refused("qcow2 with an external data file: flatten it with qemu-img convert")
	case incompatible&incompatibleCorrupt != 0:
		return refused("qcow2 is marked as corrupt: repair it with qemu-img check -r all")
	case incompatible&^incompatibleUnderstood != 0:
		return refused("qcow2 with unknown incompatible features %#x", incompatible&^incompatibleUnderstood)
	}
	q.extended = incompatible&incompatibleExtended != 0
	if q.extended && q.cluster < 1<<14 {
		return refused("malformed qcow2 header: extended L2 entries with clusters of %d bytes", q.cluster)
	}
	if incompatible&incompatibleZstd == 0 {
		return nil
	}
	if len(head) < headerV3+1 || head[headerV3] != 1 {
		return refused("qcow2 with an unknown compression type")
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	q.zstd = decoder
	return err
}

func (q *qcow2) entryBytes() int64 {
	if q.extended {
		return 16
	}
	return 8
}

// tables reads a table.
func (q *qcow2) tables(r region, from io.Reader) error {
	if r.kind == tableOne {
		return q.readL1(r, from)
	}
	return q.readL2(r, from)
}

func (q *qcow2) readL1(r region, from io.Reader) error {
	perTable := q.cluster / q.entryBytes() * q.cluster
	var word [8]byte
	for i := range r.length / 8 {
		if _, err := io.ReadFull(from, word[:]); err != nil {
			return q.ended(err)
		}
		offset := int64(binary.BigEndian.Uint64(word[:]) & entryOffset)
		if offset == 0 {
			continue
		}
		if offset%q.cluster != 0 {
			return refused("malformed qcow2: L2 table at offset %d", offset)
		}
		if err := q.push(region{kind: tableTwo, host: offset, guest: i * perTable, length: q.cluster}); err != nil {
			return err
		}
	}
	return nil
}

func (q *qcow2) readL2(r region, from io.Reader) error {
	table := make([]byte, r.length)
	if _, err := io.ReadFull(from, table); err != nil {
		return q.ended(err)
	}
	guest := r.guest
	for at := int64(0); at < r.length && guest < q.size; at += q.entryBytes() {
		next, err := q.entry(table[at:], guest)
		if err != nil {
			return err
		}
		guest += q.cluster
		if next.length == 0 {
			continue
		}
		if err := q.data(next); err != nil {
			return err
		}
	}
	return q.flush()
}

// entry reads one entry of an L2 table; a region of length 0 is a cluster of zeros.
func (q *qcow2) entry(raw []byte, guest int64) (region, error) {
	word := binary.BigEndian.Uint64(raw)
	if word&entryCompressed != 0 {
		bits := 62 - (uint(clusterBits(q.cluster)) - 8)
		offset := int64(word & (1<<bits - 1))
		sectors := int64(word&(1<<62-1)>>bits) + 1
		return region{kind: packedData, host: offset, guest: guest, length: sectors*512 - offset&511}, nil
	}
	present := uint32(math.MaxUint32)
	switch {
	case q.extended:
		bitmap := binary.BigEndian.Uint64(raw[8:])
		present = uint32(bitmap) &^ uint32(bitmap>>32)
	case q.version >= 3 && word&entryZero != 0:
		present = 0
	}
	offset := int64(word & entryOffset)
	if offset == 0 || present == 0 {
		return region{}, nil
	}
	if offset%q.cluster != 0 {
		return region{}, refused("malformed qcow2: data at offset %d", offset)
	}
	length := min(q.cluster, (q.size-guest+511)&^511)
	return region{kind: plainData, host: offset, guest: guest, length: length, present: present}, nil
}

func clusterBits(cluster int64) int {
	bits := 0
	for ; cluster > 1; cluster >>= 1 {
		bits++
	}
	return bits
}

// inflate writes one compressed cluster.
func (q *qcow2) inflate(r region, packed []byte) error {
	plain := make([]byte, q.cluster)
	var from io.Reader
	if q.zstd != nil {
		if err := q.zstd.Reset(bytes.NewReader(packed)); err != nil {
			return refused("malformed qcow2: compressed cluster at offset %d: %v", r.host, err)
		}
		from = q.zstd
	} else {
		from = flate.NewReader(bytes.NewReader(packed))
	}
	if _, err := io.ReadFull(from, plain); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) && int64(len(packed)) < r.length {
			return refused("truncated: the qcow2 ends before its data does")
		}
		return refused("malformed qcow2: compressed cluster at offset %d: %v", r.host, err)
	}
	return q.write(plain, r.guest)
}
