package image

import (
	"bufio"
	"encoding/binary"
	"io"
	"math"
	"slices"
)

// Footer and dynamic header of the Virtual Hard Disk Image Format Specification 1.0. A dynamic image begins with a copy of
// its footer; a fixed one is a raw disk with a footer behind.
const (
	vhdCookie, vhdDynamicCookie = "conectix", "cxsparse"
	vhdFooter, vhdDynamicHeader = 512, 1024
	vhdFixed, vhdDynamic        = 2, 3
	vhdNoBlock                  = math.MaxUint32
)

// footer is what of a footer matters.
type footer struct {
	kind    uint32
	header  int64 // offset of the dynamic header
	size    int64 // of the disk, bytes
	current int64 // the same, or what is meant if size is of the geometry
}

// parseFooter returns false for what is none.
func parseFooter(raw []byte) (footer, bool) {
	if len(raw) < vhdFooter || string(raw[:8]) != vhdCookie || !checksummed(raw[:vhdFooter], 64) {
		return footer{}, false
	}
	be := binary.BigEndian
	f := footer{kind: be.Uint32(raw[60:]), header: int64(be.Uint64(raw[16:]) & math.MaxInt64), current: int64(be.Uint64(raw[48:]) & math.MaxInt64)}
	f.size = f.current
	// Which of its two sizes is meant depends on who wrote it, as block/vpc.c of QEMU knows: the largest geometry says nothing.
	current := []string{"win ", "qem2", "d2v ", "tap\x00", "CTXS", "wa\x00\x00"}
	geometry := int64(be.Uint16(raw[56:])) * int64(raw[58]) * int64(raw[59])
	if !slices.Contains(current, string(raw[28:32])) && geometry != 65535*16*255 {
		f.size = geometry * sector
	}
	return f, true
}

// checksummed verifies the complement of the sum of all bytes but those of the sum itself.
func checksummed(raw []byte, at int) bool {
	sum := uint32(0)
	for i, b := range raw {
		if i < at || i >= at+4 {
			sum += uint32(b)
		}
	}
	return binary.BigEndian.Uint32(raw[at:]) == ^sum
}

// vhd is one dynamic image being read.
type vhd struct {
	pass
	bitmap int64 // bytes before the data of each block
}

func copyVHD(source *bufio.Reader, o Options, info Info) error {
	v := &vhd{pass: newPass(VHD, source, o)}
	v.table = v.tables
	head, err := peek(source, vhdFooter)
	if err != nil {
		return err
	}
	f, ok := parseFooter(head)
	switch {
	case !ok:
		return refused("malformed vhd header: its checksum is wrong")
	case f.kind != vhdDynamic:
		return refused("vhd of type %d: only fixed and dynamic disks are read; merge it with its parent", f.kind)
	case f.size == 0 || f.header < vhdFooter:
		return refused("malformed vhd header: virtual size %d, its header at offset %d", f.size, f.header)
	}
	v.size = f.size
	if err := fits(v.size, o.Size); err != nil {
		return err
	}
	if err := v.push(region{kind: tableOne, host: f.header, length: vhdDynamicHeader}); err != nil {
		return err
	}
	v.told(info)
	return v.run()
}

func (v *vhd) tables(r region, from io.Reader) error {
	raw := make([]byte, r.length)
	if _, err := io.ReadFull(from, raw); err != nil {
		return v.ended(err)
	}
	be := binary.BigEndian
	if r.kind == tableOne {
		v.cluster = int64(be.Uint32(raw[32:]))
		if string(raw[:8]) != vhdDynamicCookie || !checksummed(raw, 36) || !goodBlock(v.cluster) {
			return refused("malformed vhd header: blocks of %d bytes", v.cluster)
		}
		bits := v.cluster / sector / 8
		v.bitmap = (bits + sector - 1) / sector * sector
		needed, count := (v.size+v.cluster-1)/v.cluster, int64(be.Uint32(raw[28:]))
		if count < needed || needed*4 > maxBlockList {
			return refused("malformed vhd header: %d blocks, %d are needed", count, needed)
		}
		return v.push(region{kind: tableTwo, host: int64(be.Uint64(raw[16:]) & math.MaxInt64), length: needed * 4})
	}
	for i := range r.length / 4 {
		block := be.Uint32(raw[i*4:])
		if block == vhdNoBlock {
			continue
		}
		if err := v.data(v.block(int64(block)*sector+v.bitmap, i*v.cluster)); err != nil {
			return err
		}
	}
	return v.flush()
}
