package image

import (
	"bufio"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math"
)

// Places and limits of [MS-VHDX] 2.
const (
	vhdxHead        = 1 << 20 // header section
	vhdxHeader      = 4096
	vhdxRegionTable = 64 << 10
	vhdxMetadata    = 1 << 20 // more is not allowed
	vhdxMaxEntries  = 2047

	vhdxParent = 1 << 1 // of the file parameters
)

// GUIDs as they lie in the file ([MS-VHDX] 2.2.3 and 2.6.2).
const (
	vhdxBAT           = "\x66\x77\xc2\x2d\x23\xf6\x00\x42\x9d\x64\x11\x5e\x9b\xfd\x4a\x08"
	vhdxMetadataTable = "\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e"
	vhdxParameters    = "\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b"
	vhdxDiskSize      = "\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8"
	vhdxSectorSize    = "\x1d\xbf\x41\x81\x6f\xa9\x09\x47\xba\x47\xf2\x33\xa8\xfa\xab\x5f"
)

// States of a block ([MS-VHDX] 2.5.1.1).
const (
	vhdxPresent       = 6
	vhdxPartlyPresent = 7
)

// vhdx is one image being read. Either of its two tables may come first.
type vhdx struct {
	pass
	info   Info
	bat    []byte
	sector int64 // logical, bytes; 0: the metadata is not read yet
}

func copyVHDX(source *bufio.Reader, o Options, info Info) error {
	v := &vhdx{pass: newPass(VHDX, source, o), info: info}
	v.table = v.tables
	if err := v.header(); err != nil {
		return err
	}
	return v.run()
}

// header reads the header section.
func (v *vhdx) header() error {
	head, err := peek(v.source, vhdxHead)
	if err != nil {
		return err
	}
	if len(head) < vhdxHead {
		return refused("truncated: the vhdx header ends too early")
	}
	le := binary.LittleEndian
	var current []byte
	for _, at := range []int{64 << 10, 128 << 10} {
		raw := head[at : at+vhdxHeader]
		if sealed(raw, "head") && (current == nil || le.Uint64(raw[8:]) > le.Uint64(current[8:])) {
			current = raw
		}
	}
	switch {
	case current == nil:
		return refused("malformed vhdx header: no header with a right checksum")
	case le.Uint16(current[66:]) != 1:
		return refused("malformed vhdx header: version %d, 1 is known", le.Uint16(current[66:]))
	case string(current[48:64]) != string(make([]byte, 16)):
		return refused("vhdx was not closed: its log must be replayed; attach it once, or use qemu-img check -r all")
	}
	for _, at := range []int{192 << 10, 256 << 10} {
		if raw := head[at : at+vhdxRegionTable]; sealed(raw, "regi") {
			return v.regions(raw)
		}
	}
	return refused("malformed vhdx header: no region table with a right checksum")
}

// sealed verifies signature and checksum of a structure.
func sealed(raw []byte, signature string) bool {
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(0, table, raw[:4])
	sum = crc32.Update(sum, table, make([]byte, 4))
	sum = crc32.Update(sum, table, raw[8:])
	return string(raw[:4]) == signature && binary.LittleEndian.Uint32(raw[4:]) == sum
}

func (v *vhdx) regions(raw []byte) error {
	le := binary.LittleEndian
	count, found := le.Uint32(raw[8:]), 0
	if count > vhdxMaxEntries {
		return refused("malformed vhdx: %d regions", count)
	}
	for i := range int(count) {
		entry := raw[16+32*i:]
		at, length := int64(le.Uint64(entry[16:])&math.MaxInt64), int64(le.Uint32(entry[24:]))
		r := region{host: at, length: length}
		switch string(entry[:16]) {
		case vhdxBAT:
			r.kind = tableTwo
		case vhdxMetadataTable:
			r.kind, r.length = tableOne, min(length, vhdxMetadata)
		default:
			if le.Uint32(entry[28:])&1 != 0 {
				return refused("vhdx with an unknown required region")
			}
			continue
		}
		if at < vhdxHead || length < vhdxRegionTable || length > maxBlockList {
			return refused("malformed vhdx: a region of %d bytes at offset %d", length, at)
		}
		found |= 1 << r.kind
		if err := v.push(r); err != nil {
			return err
		}
	}
	if found != 1<<tableOne|1<<tableTwo || len(v.queue) != 2 {
		return refused("malformed vhdx: not one block allocation table and one metadata table")
	}
	return nil
}

// tables reads the metadata or the block allocation table. When both are there, the rest is known.
func (v *vhdx) tables(r region, from io.Reader) error {
	raw := make([]byte, r.length)
	if _, err := io.ReadFull(from, raw); err != nil {
		return v.ended(err)
	}
	if r.kind == tableOne {
		if err := v.metadata(raw); err != nil {
			return err
		}
	} else {
		v.bat = raw
	}
	if v.bat == nil || v.sector == 0 {
		return nil
	}
	return v.blocks()
}

func (v *vhdx) metadata(raw []byte) error {
	le := binary.LittleEndian
	if string(raw[:8]) != "metadata" {
		return refused("malformed vhdx: no metadata table")
	}
	flags := uint32(0)
	for i := range min(int(le.Uint16(raw[10:])), vhdxMaxEntries) {
		entry := raw[32+32*i:]
		at := int64(le.Uint32(entry[16:]))
		if at > int64(len(raw))-8 {
			return refused("malformed vhdx: metadata at offset %d", at)
		}
		item := raw[at:]
		switch string(entry[:16]) {
		case vhdxParameters:
			v.cluster, flags = int64(le.Uint32(item)), le.Uint32(item[4:])
		case vhdxDiskSize:
			v.size = int64(min(le.Uint64(item), math.MaxInt64/2))
		case vhdxSectorSize:
			v.sector = int64(le.Uint32(item))
		}
	}
	switch {
	case flags&vhdxParent != 0:
		return refused("vhdx with a parent: merge it with Merge-VHD")
	case !goodBlock(v.cluster) || v.cluster < 1<<20 || v.sector != 512 && v.sector != 4096:
		return refused("malformed vhdx: blocks of %d bytes, sectors of %d", v.cluster, v.sector)
	case v.size == 0:
		return refused("malformed vhdx: virtual size 0")
	}
	if err := fits(v.size, v.o.Size); err != nil {
		return err
	}
	v.told(v.info)
	return nil
}

// blocks reads the block allocation table. After the blocks that one bitmap of sectors describes comes an entry for it.
func (v *vhdx) blocks() error {
	ratio := (1 << 23) * v.sector / v.cluster
	needed := (v.size + v.cluster - 1) / v.cluster
	if entries := int64(len(v.bat) / 8); needed+(needed-1)/ratio > entries {
		return refused("malformed vhdx: %d blocks in its table, %d are needed", entries, needed)
	}
	for i := range needed {
		entry := binary.LittleEndian.Uint64(v.bat[8*(i+i/ratio):])
		host := int64(entry >> 20 << 20 & math.MaxInt64)
		switch entry & 7 {
		case vhdxPresent:
			if host < vhdxHead {
				return refused("malformed vhdx: data at offset %d", host)
			}
			if err := v.data(v.block(host, i*v.cluster)); err != nil {
				return err
			}
		case vhdxPartlyPresent:
			return refused("vhdx with a parent: merge it with Merge-VHD")
		}
	}
	return v.flush()
}
