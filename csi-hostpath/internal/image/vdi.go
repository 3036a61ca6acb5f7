package image

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"math"
)

// Header of VirtualBox's format, version 1.1, as block/vdi.c of QEMU describes it.
const (
	vdiMagic     = 0xbeda107f
	vdiVersion   = 0x00010001
	vdiHeader    = 512
	vdiNoBlock   = 0xfffffffe // and above: discarded, or never written
	maxBlockList = 64 << 20   // bytes of the list of blocks of any format: 16 TiB at the usual 1 MiB
	minBlock     = 4096
	maxBlock     = 256 << 20
)

// vdi is one image being read.
type vdi struct {
	pass
	base int64 // offset of block 0
}

func copyVDI(source *bufio.Reader, o Options, info Info) error {
	v := &vdi{pass: newPass(VDI, source, o)}
	v.table = v.blocks
	if err := v.header(); err != nil {
		return err
	}
	v.told(info)
	return v.run()
}

func (v *vdi) header() error {
	head, err := peek(v.source, vdiHeader)
	if err != nil {
		return err
	}
	if len(head) < vdiHeader {
		return refused("truncated: the vdi header ends too early")
	}
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(head[at:]) }
	size, block, count := binary.LittleEndian.Uint64(head[368:]), u32(376), int64(u32(384))
	zero := make([]byte, 16)
	switch {
	case u32(68) != vdiVersion:
		return refused("malformed vdi header: version %#x, %#x is known", u32(68), vdiVersion)
	case u32(76) != 1 && u32(76) != 2 || !bytes.Equal(head[424:440], zero) || !bytes.Equal(head[440:456], zero):
		return refused("vdi with a parent: clone it with VBoxManage clonemedium")
	case !goodBlock(int64(block)) || u32(380) != 0:
		return refused("malformed vdi header: blocks of %d and %d bytes", block, u32(380))
	case size == 0 || size > math.MaxInt64/2:
		return refused("malformed vdi header: virtual size %d", size)
	}
	v.size, v.cluster, v.base = int64(size), int64(block), int64(u32(344))
	if err := fits(v.size, v.o.Size); err != nil {
		return err
	}
	needed := (v.size + v.cluster - 1) / v.cluster
	if count < needed || needed*4 > maxBlockList {
		return refused("malformed vdi header: %d blocks, %d are needed", count, needed)
	}
	return v.push(region{kind: tableOne, host: int64(u32(340)), length: needed * 4})
}

// goodBlock says whether a format may divide a disk into blocks of so many bytes.
func goodBlock(bytes int64) bool {
	return bytes >= minBlock && bytes <= maxBlock && bytes&(bytes-1) == 0
}

// blocks reads the list of blocks.
func (v *vdi) blocks(r region, from io.Reader) error {
	list := make([]byte, r.length)
	if _, err := io.ReadFull(from, list); err != nil {
		return v.ended(err)
	}
	for i := range r.length / 4 {
		block := binary.LittleEndian.Uint32(list[i*4:])
		if block >= vdiNoBlock {
			continue
		}
		if err := v.data(v.block(v.base+int64(block)*v.cluster, i*v.cluster)); err != nil {
			return err
		}
	}
	return v.flush()
}
