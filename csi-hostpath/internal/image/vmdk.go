package image

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"
)

// Header, flags and markers of VMware's Virtual Disk Format 5.0.
const (
	vmdkMagic       = "KDMV"
	vmdkHeader      = 512
	vmdkCompressed  = 1 << 16
	vmdkMarkers     = 1 << 17
	vmdkAtEnd       = math.MaxUint64 // the directory is behind the data: the image is a stream
	vmdkDeflate     = 1
	vmdkZeroGrain   = 1
	vmdkMaxGrain    = 1 << 20
	vmdkGrainHead   = 12
	vmdkEndOfStream = 0
	vmdkMaxMarker   = 3
	maxDescriptor   = 1 << 20
)

// vmdk is one sparse extent being read: monolithicSparse or streamOptimized.
type vmdk struct {
	pass
	packed bool
	grains int64 // entries of a grain table
}

func copyVMDK(source *bufio.Reader, o Options, info Info) error {
	v := &vmdk{pass: newPass(VMDK, source, o)}
	v.table, v.unpack = v.tables, v.inflate
	stream, err := v.header()
	if err != nil {
		return err
	}
	v.told(info)
	if stream {
		return v.stream()
	}
	return v.run()
}

// header says whether the image is a stream of markers.
func (v *vmdk) header() (stream bool, err error) {
	head, err := peek(v.source, vmdkHeader)
	if err != nil {
		return false, err
	}
	if !bytes.HasPrefix(head, []byte(vmdkMagic)) {
		return false, refused("vmdk whose data is in another file, or of an ESX host: convert it with qemu-img convert -O qcow2")
	}
	if len(head) < vmdkHeader {
		return false, refused("truncated: the vmdk header ends too early")
	}
	le := binary.LittleEndian
	flags, directory := le.Uint32(head[8:]), le.Uint64(head[56:])
	if err := v.limits(head); err != nil {
		return false, err
	}
	if err := fits(v.size, v.o.Size); err != nil {
		return false, err
	}
	if err := v.descriptor(le.Uint64(head[28:]), le.Uint64(head[36:])); err != nil {
		return false, err
	}
	if directory == vmdkAtEnd {
		if flags&vmdkMarkers == 0 || !v.packed {
			return false, refused("malformed vmdk header: its directory is nowhere")
		}
		return true, v.skip(int64(min(le.Uint64(head[64:]), maxDescriptor)) * sector)
	}
	covers := v.cluster * v.grains
	tables := (v.size + covers - 1) / covers
	if directory == 0 || directory > math.MaxInt64/sector || tables*4 > maxBlockList {
		return false, refused("malformed vmdk header: %d tables, their directory at sector %d", tables, directory)
	}
	return false, v.push(region{kind: tableOne, host: int64(directory) * sector, length: tables * 4})
}

// limits reads the sizes of the header and bounds them.
func (v *vmdk) limits(head []byte) error {
	le := binary.LittleEndian
	version, capacity, grain := le.Uint32(head[4:]), le.Uint64(head[12:]), le.Uint64(head[20:])
	v.grains, v.packed = int64(le.Uint32(head[44:])), le.Uint32(head[8:])&vmdkCompressed != 0
	switch {
	case version < 1 || version > 3:
		return refused("malformed vmdk header: version %d, 1 to 3 are known", version)
	case capacity == 0 || capacity > math.MaxInt64/2/sector:
		return refused("malformed vmdk header: virtual size of %d sectors", capacity)
	case grain > vmdkMaxGrain/sector || !goodBlock(int64(grain)*sector):
		return refused("malformed vmdk header: grains of %d sectors", grain)
	case v.grains < 1 || v.grains > 1<<16:
		return refused("malformed vmdk header: %d grains in a table", v.grains)
	case v.packed && le.Uint16(head[77:]) != vmdkDeflate:
		return refused("vmdk with an unknown compression")
	case !bytes.Equal(head[73:77], []byte("\n \r\n")):
		return refused("malformed vmdk: it was copied as text")
	}
	v.size, v.cluster = int64(capacity)*sector, int64(grain)*sector
	return nil
}

// descriptor looks whether the text inside says that there is more than this file.
func (v *vmdk) descriptor(at, sectors uint64) error {
	if at == 0 || at > maxDescriptor/sector || sectors > maxDescriptor/sector {
		return nil // an extent of another file; without a parent it is whole
	}
	head, err := peek(v.source, int(at+sectors)*sector)
	if err != nil {
		return err
	}
	text := string(head[min(len(head), int(at)*sector):])
	extents := 0
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(strings.TrimRight(line, "\x00\r\n"))
		parent, ok := strings.CutPrefix(line, "parentCID=")
		if ok && !strings.EqualFold(parent, "ffffffff") {
			return refused("vmdk with a parent: flatten it with qemu-img convert")
		}
		if strings.HasPrefix(line, "RW ") || strings.HasPrefix(line, "RDONLY ") {
			extents++
		}
	}
	if extents > 1 {
		return refused("vmdk of %d files: convert it with qemu-img convert -O qcow2", extents)
	}
	return nil
}

// tables reads the directory, or one table of grains.
func (v *vmdk) tables(r region, from io.Reader) error {
	raw := make([]byte, r.length)
	if _, err := io.ReadFull(from, raw); err != nil {
		return v.ended(err)
	}
	for i := range r.length / 4 {
		host := int64(binary.LittleEndian.Uint32(raw[i*4:])) * sector
		if host == 0 || r.kind == tableTwo && host == vmdkZeroGrain*sector {
			continue
		}
		var err error
		if r.kind == tableOne {
			err = v.push(region{kind: tableTwo, host: host, guest: i * v.cluster * v.grains, length: v.grains * 4})
		} else {
			err = v.grain(host, r.guest+i*v.cluster)
		}
		if err != nil {
			return err
		}
	}
	return v.flush()
}

func (v *vmdk) grain(host, guest int64) error {
	if guest >= v.size {
		return nil
	}
	if v.packed {
		return v.data(region{kind: packedData, host: host, guest: guest, length: vmdkGrainHead + 2*v.cluster})
	}
	return v.data(v.block(host, guest))
}

// inflate writes one packed grain, which begins with where it belongs and its length.
func (v *vmdk) inflate(r region, raw []byte) error {
	if len(raw) < vmdkGrainHead {
		return v.ended(io.EOF)
	}
	length := int64(binary.LittleEndian.Uint32(raw[8:]))
	if length > r.length-vmdkGrainHead {
		return refused("malformed vmdk: a grain of %d bytes at offset %d", length, r.host)
	}
	if int64(len(raw)) < vmdkGrainHead+length {
		return v.ended(io.EOF)
	}
	from, err := zlib.NewReader(bytes.NewReader(raw[vmdkGrainHead : vmdkGrainHead+length]))
	if err != nil {
		return refused("malformed vmdk: the grain at offset %d: %v", r.host, err)
	}
	plain, err := io.ReadAll(io.LimitReader(from, v.cluster+1)) // to its end, where the checksum is
	short := min(v.cluster, v.size-r.guest)                     // the last one may be
	if err == nil && (int64(len(plain)) > v.cluster || int64(len(plain)) < short) {
		err = errors.New("it unpacks to " + strconv.Itoa(len(plain)) + " bytes")
	}
	if err != nil {
		return refused("malformed vmdk: the grain at offset %d: %v", r.host, err)
	}
	return v.write(plain, r.guest)
}

// stream reads an image whose tables come last: each grain says where it belongs.
func (v *vmdk) stream() error {
	for {
		head, err := peek(v.source, sector)
		if err != nil {
			return err
		}
		if len(head) < sector {
			return v.ended(io.EOF)
		}
		value, length := binary.LittleEndian.Uint64(head), int64(binary.LittleEndian.Uint32(head[8:]))
		if length == 0 {
			kind := binary.LittleEndian.Uint32(head[12:])
			if kind == vmdkEndOfStream {
				return nil
			}
			if kind > vmdkMaxMarker || value > maxBlockList/sector {
				return refused("malformed vmdk: marker %d of %d sectors at offset %d", kind, value, v.at)
			}
			if err := v.skip(sector + int64(value)*sector); err != nil {
				return err
			}
			continue
		}
		if length > 2*v.cluster || value >= uint64(v.size/sector) || int64(value)*sector%v.cluster != 0 {
			return refused("malformed vmdk: a grain of %d bytes for sector %d at offset %d", length, value, v.at)
		}
		raw, err := peek(v.source, int(vmdkGrainHead+length))
		if err != nil {
			return err
		}
		at := region{kind: packedData, host: v.at, guest: int64(value) * sector, length: vmdkGrainHead + 2*v.cluster}
		if err := v.inflate(at, raw); err != nil {
			return err
		}
		if err := v.skip((vmdkGrainHead + length + sector - 1) / sector * sector); err != nil {
			return err
		}
	}
}
