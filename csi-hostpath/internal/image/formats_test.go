package image

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// others are images of the content in the formats of other programs.
func others(t *testing.T, dir string) (names []string) {
	t.Helper()
	for name, args := range map[string][]string{
		"vmdk":        {"vmdk"},
		"vmdk-zeroed": {"vmdk", "-o", "zeroed_grain=on"},
		"vmdk-packed": {"vmdk", "-o", "subformat=streamOptimized"},
		"vdi":         {"vdi"},
		"vdi-static":  {"vdi", "-o", "static=on"},
		"vhd":         {"vpc", "-o", "force_size=on"},
		"vhd-fixed":   {"vpc", "-o", "force_size=on,subformat=fixed"},
		"vhdx":        {"vhdx"},
		"vhdx-small":  {"vhdx", "-o", "block_size=1M"},
		"vhdx-fixed":  {"vhdx", "-o", "subformat=fixed,block_size=1M"},
	} {
		runIn(t, dir, append(append([]string{"qemu-img", "convert", "-O"}, args...), "raw", name)...)
		names = append(names, name)
	}
	if err := os.WriteFile(filepath.Join(dir, "vmdk-stream"), streamed(content()), 0o600); err != nil {
		t.Fatal(err)
	}
	// QEMU reads it too: it is no invention.
	runIn(t, dir, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", "vmdk-stream", "raw-again")
	if !bytes.Equal(readFile(t, filepath.Join(dir, "raw-again")), content()) {
		t.Fatal("QEMU reads the stream of grains in another way")
	}
	return append(names, "vmdk-stream")
}

// streamed is a streamOptimized vmdk as VMware's tools write it: grains with markers, all tables at the end.
func streamed(disk []byte) []byte {
	const grain, entries = 64 << 10, 512
	le := binary.LittleEndian
	description := "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n"
	header := make([]byte, sector)
	copy(header, vmdkMagic)
	le.PutUint32(header[4:], 3)
	le.PutUint32(header[8:], 1|vmdkCompressed|vmdkMarkers)
	le.PutUint64(header[12:], uint64(len(disk)/sector))
	le.PutUint64(header[20:], grain/sector)
	le.PutUint64(header[28:], 1)
	le.PutUint64(header[36:], 1)
	le.PutUint32(header[44:], entries)
	le.PutUint64(header[56:], vmdkAtEnd)
	le.PutUint64(header[64:], 2)
	copy(header[73:], "\n \r\n")
	le.PutUint16(header[77:], vmdkDeflate)
	out := append(bytes.Clone(header), pad([]byte(description))...)
	marker := func(sectors, kind int) {
		m := make([]byte, sector)
		le.PutUint64(m, uint64(sectors))
		le.PutUint32(m[12:], uint32(kind))
		out = append(out, m...)
	}
	table := make([]byte, entries*4)
	for at := 0; at < len(disk); at += grain {
		piece := disk[at:min(at+grain, len(disk))]
		if isZero(piece) {
			continue
		}
		var packed bytes.Buffer
		w := zlib.NewWriter(&packed)
		_, _ = w.Write(piece) // to memory
		_ = w.Close()
		head := make([]byte, vmdkGrainHead)
		le.PutUint64(head, uint64(at/sector))
		le.PutUint32(head[8:], uint32(packed.Len()))
		le.PutUint32(table[at/grain*4:], uint32(len(out)/sector))
		out = append(out, pad(append(head, packed.Bytes()...))...)
	}
	marker(len(table)/sector, 1)
	first := len(out) / sector
	out = append(out, table...)
	marker(1, 2)
	directory := len(out) / sector
	out = append(out, pad(le.AppendUint32(nil, uint32(first)))...)
	marker(1, 3)
	le.PutUint64(header[56:], uint64(directory))
	out = append(out, header...)
	marker(0, 0)
	return out
}

func pad(data []byte) []byte {
	return append(data, make([]byte, (sector-len(data)%sector)%sector)...)
}

// TestGeometry: the size of a vhd is what QEMU takes for it, rounded up to cylinders where nothing else is said.
func TestGeometry(t *testing.T) {
	needs(t, "qemu-img")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "raw"), content(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, subformat := range []string{"dynamic", "fixed"} {
		runIn(t, dir, "qemu-img", "convert", "-O", "vpc", "-o", "subformat="+subformat, "raw", "vhd")
		runIn(t, dir, "qemu-img", "convert", "-f", "vpc", "-O", "raw", "vhd", "again")
		want, source := readFile(t, filepath.Join(dir, "again")), readFile(t, filepath.Join(dir, "vhd"))
		to := &disk{data: make([]byte, len(want))}
		for _, format := range []string{Auto, VHD} {
			o := Options{Size: int64(len(want)), Format: format, Compression: Auto, Length: int64(len(source)), To: to}
			if err := Copy(bytes.NewReader(source), o); err != nil {
				t.Fatalf("%s, %s: %v", subformat, format, err)
			}
			if !bytes.Equal(to.data, want) {
				t.Errorf("%s, %s: the disk differs from what QEMU reads", subformat, format)
			}
		}
	}
}

// TestBlocksInAnyOrder: blocks that lie in another order than in the disk are read in one pass.
func TestBlocksInAnyOrder(t *testing.T) {
	needs(t, "qemu-img", "qemu-io")
	for format, driver := range map[string]string{VDI: "vdi", VHD: "vpc", VHDX: "vhdx", VMDK: "vmdk"} {
		dir := t.TempDir()
		runIn(t, dir, "qemu-img", "create", "-q", "-f", driver, "mixed", "12M")
		runIn(t, dir, "qemu-io", "-f", driver, "-c", "write -P 7 8M 64k", "-c", "write -P 9 4M 64k", "-c", "write -P 5 0 64k", "mixed")
		runIn(t, dir, "qemu-img", "convert", "-f", driver, "-O", "raw", "mixed", "raw")
		want := readFile(t, filepath.Join(dir, "raw"))
		to := &disk{data: make([]byte, diskSize)}
		err := Copy(bytes.NewReader(readFile(t, filepath.Join(dir, "mixed"))), Options{
			Size: diskSize, Format: format, Compression: None, Length: -1, To: to,
		})
		if err != nil {
			t.Errorf("%s: %v", format, err)
		} else if !bytes.Equal(to.data[:len(want)], want) || want[4<<20] != 9 {
			t.Errorf("%s: the disk differs from what QEMU reads", format)
		}
	}
}

// resealed writes the checksum of a vhd anew.
func resealed(data []byte, from, length, at int) []byte {
	sum := uint32(0)
	binary.BigEndian.PutUint32(data[from+at:], 0)
	for _, b := range data[from : from+length] {
		sum += uint32(b)
	}
	binary.BigEndian.PutUint32(data[from+at:], ^sum)
	return data
}

// resigned writes the checksum of a structure of a vhdx anew.
func resigned(data []byte, from, length int) []byte {
	binary.LittleEndian.PutUint32(data[from+4:], 0)
	binary.LittleEndian.PutUint32(data[from+4:], crc32.Checksum(data[from:from+length], crc32.MakeTable(crc32.Castagnoli)))
	return data
}

// TestOthersRefused: what other programs wrote and is no image for the disk is refused by name.
func TestOthersRefused(t *testing.T) {
	needs(t, "qemu-img")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "raw"), content(), 0o600); err != nil {
		t.Fatal(err)
	}
	others(t, dir)
	read := func(name string) []byte { return readFile(t, filepath.Join(dir, name)) }
	runIn(t, dir, "qemu-img", "create", "-q", "-f", "vmdk", "-b", "vmdk", "-F", "vmdk", "child")
	runIn(t, dir, "qemu-img", "convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", "raw", "flat")
	for name, driver := range map[string]string{"large.vmdk": "vmdk", "large.vdi": "vdi", "large.vhd": "vpc", "large.vhdx": "vhdx"} {
		runIn(t, dir, "qemu-img", "create", "-q", "-f", driver, name, "1G")
	}
	vmdk, vdi, vhd, vhdx, stream := read("vmdk"), read("vdi"), read("vhd"), read("vhdx"), read("vmdk-stream")
	header := 64 << 10
	if binary.LittleEndian.Uint64(vhdx[header+8:]) < binary.LittleEndian.Uint64(vhdx[header*2+8:]) {
		header *= 2
	}
	for name, row := range map[string]struct {
		source []byte
		format string
		text   string
	}{
		"vmdk of two files":       {read("flat"), "", "vmdk whose data is in another file"},
		"vmdk of ESX":             {[]byte("COWD" + strings.Repeat("\x00", 600)), "", "vmdk whose data is in another file, or of an ESX host"},
		"vmdk with a parent":      {read("child"), "", "vmdk with a parent"},
		"vmdk, too large":         {read("large.vmdk"), "", "image needs 1Gi (virtual size), the claim asks for 16Mi"},
		"vmdk, version":           {patched(vmdk, 4, 9), "", "version 9"},
		"vmdk, grain":             {patched(vmdk, 20, 3), "", "grains of 3 sectors"},
		"vmdk, tables":            {patched(vmdk, 44, 0, 0, 0, 0), "", "0 grains in a table"},
		"vmdk, as text":           {patched(vmdk, 75, '\n'), "", "copied as text"},
		"vmdk, half":              {vmdk[:len(vmdk)/2], "", "truncated: the vmdk ends"},
		"vmdk, header":            {vmdk[:200], "", "the vmdk header ends too early"},
		"vmdk, no directory":      {patched(vmdk, 56, 0, 0, 0, 0, 0, 0, 0, 0), "", "their directory at sector 0"},
		"stream, half":            {stream[:len(stream)/2], "", "truncated: the vmdk ends"},
		"stream, grain elsewhere": {patched(stream, 2*sector, 1), "", "for sector 1 at offset 1024"},
		"stream, damaged grain":   {patched(stream, 2*sector+200, 1, 2, 3, 4, 5, 6, 7, 8), "", "malformed vmdk: the grain at offset"},
		"stream, marker":          {patched(stream, 2*sector+8, 0, 0, 0, 0, 77, 0, 0, 0), "", "marker 77"},
		"vdi, too large":          {read("large.vdi"), "", "image needs 1Gi"},
		"vdi, version":            {patched(vdi, 68, 9), "", "version 0x10009"},
		"vdi with a parent":       {patched(vdi, 440, 1), "", "vdi with a parent"},
		"vdi, difference":         {patched(vdi, 76, 4), "", "vdi with a parent"},
		"vdi, blocks":             {patched(vdi, 376, 1), "", "blocks of 1048577 and 0 bytes"},
		"vdi, few blocks":         {patched(vdi, 384, 1), "", "1 blocks, 8 are needed"},
		"vdi, half":               {vdi[:len(vdi)/2], "", "truncated: the vdi ends"},
		"vhd, too large":          {read("large.vhd"), "", "image needs 1"},
		"vhd, damaged":            {patched(vhd, 60, 9), "", "malformed vhd header: its checksum is wrong"},
		"vhd with a parent":       {resealed(patched(vhd, 63, 4), 0, vhdFooter, 64), "", "vhd of type 4"},
		"vhd, blocks":             {resealed(patched(vhd, 512+32, 0, 0, 0, 1), 512, vhdDynamicHeader, 36), "", "blocks of 1 bytes"},
		"vhd, few blocks":         {resealed(patched(vhd, 512+28, 0, 0, 0, 1), 512, vhdDynamicHeader, 36), "", "1 blocks, 4 are needed"},
		"vhd, half":               {vhd[:len(vhd)/2], "", "truncated: the vhd ends"},
		"no vhd":                  {content(), VHD, "neither a header in front nor a footer behind"},
		"vhdx, too large":         {read("large.vhdx"), "", "image needs 1Gi"},
		"vhdx, half":              {vhdx[:len(vhdx)/2], "", "truncated: the vhdx ends"},
		"vhdx, header only":       {vhdx[:300<<10], "", "the vhdx header ends too early"},
		"vhdx, damaged":           {patched(patched(vhdx, 64<<10+10, 7), 128<<10+10, 7), "", "no header with a right checksum"},
		"vhdx, open":              {resigned(patched(vhdx, header+48, 1), header, vhdxHeader), "", "its log must be replayed"},
		"vhdx, no regions":        {patched(patched(vhdx, 192<<10+4, 7, 7, 7, 7), 256<<10+4, 7, 7, 7, 7), "", "no region table"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refuse(t, row.source, Options{Format: row.format}, row.text)
		})
	}
}

// plausible is a small image of each format; most of what is wrong in one is in its header.
func plausible(format string) []byte {
	le, be := binary.LittleEndian, binary.BigEndian
	image := make([]byte, 128<<10)
	switch format {
	case VMDK:
		return streamed(bytes.Repeat([]byte{7}, 64<<10))
	case VDI:
		le.PutUint32(image[64:], vdiMagic)
		for at, value := range map[int]uint32{68: vdiVersion, 76: 1, 340: 512, 344: 4096, 368: 64 << 10, 376: 4096, 384: 16} {
			le.PutUint32(image[at:], value)
		}
		for i := range uint32(16) {
			le.PutUint32(image[512+4*i:], 15-i)
		}
	case VHD:
		copy(image, vhdCookie)
		copy(image[28:], "win ")
		be.PutUint32(image[60:], vhdDynamic)
		be.PutUint64(image[16:], 512)
		be.PutUint64(image[48:], 64<<10)
		copy(image[512:], vhdDynamicCookie)
		be.PutUint64(image[512+16:], 1536)
		be.PutUint32(image[512+28:], 16)
		be.PutUint32(image[512+32:], 4096)
		for i := range uint32(16) {
			be.PutUint32(image[1536+4*i:], 4+9*i)
		}
	case VHDX:
		image = make([]byte, 5<<20)
		copy(image, "vhdxfile")
		copy(image[64<<10:], "head")
		le.PutUint16(image[64<<10+66:], 1)
		table, metadata := image[192<<10:], image[2<<20:]
		copy(table, "regi\x00\x00\x00\x00\x02")
		for i, region := range []string{vhdxBAT, vhdxMetadataTable} {
			copy(table[16+32*i:], region)
			le.PutUint64(table[16+32*i+16:], uint64(i+1)<<20)
			le.PutUint32(table[16+32*i+24:], 1<<20)
		}
		copy(metadata, "metadata\x00\x00\x03")
		for i, item := range []string{vhdxParameters, vhdxDiskSize, vhdxSectorSize} {
			copy(metadata[32+32*i:], item)
			le.PutUint32(metadata[32+32*i+16:], uint32(64<<10+8*i))
		}
		le.PutUint32(metadata[64<<10:], 1<<20)
		le.PutUint32(metadata[64<<10+8:], 64<<10)
		le.PutUint32(metadata[64<<10+16:], 512)
		le.PutUint64(image[1<<20:], 3<<20|vhdxPresent)
	}
	return image
}

// parts are where the headers and tables of a plausible image begin.
func parts(format string) []int {
	if format == VHDX {
		return []int{64 << 10, 192 << 10, 1 << 20, 2 << 20, 2<<20 + 64<<10}
	}
	return []int{0, 512, 1024, 1536}
}

// whole makes magic numbers and checksums right again, or no change would come through.
func whole(format string, image []byte) []byte {
	copy(image, map[string]string{VMDK: vmdkMagic, VHD: vhdCookie, VHDX: "vhdxfile"}[format])
	switch format {
	case VDI:
		binary.LittleEndian.PutUint32(image[64:], vdiMagic)
	case VHD:
		resealed(resealed(image, 0, vhdFooter, 64), 512, vhdDynamicHeader, 36)
	case VHDX:
		copy(image[64<<10:], "head")
		copy(image[192<<10:], "regi")
		resigned(resigned(image, 64<<10, vhdxHeader), 192<<10, vhdxRegionTable)
	}
	return image
}

// survives copies an image in both ways: whatever it is, there is no panic, and nothing is written beyond the disk.
func survives(t *testing.T, source []byte) (copied bool) {
	t.Helper()
	for _, at := range []io.ReaderAt{nil, bytes.NewReader(source)} {
		to := &disk{data: make([]byte, 64<<10)}
		err := Copy(bytes.NewReader(source), Options{
			Size: int64(len(to.data)), Format: Auto, Compression: None, Length: int64(len(source)), At: at, To: to,
		})
		if _, refusal := errors.AsType[Refused](err); err != nil && !refusal {
			t.Error(err)
		}
		copied = err == nil
	}
	return copied
}

// TestHostile: images with words changed at random where their formats have their numbers.
func TestHostile(t *testing.T) {
	for _, format := range []string{VMDK, VDI, VHD, VHDX} {
		t.Run(format, func(t *testing.T) {
			if !survives(t, whole(format, plausible(format))) {
				t.Error("the image is refused as it is")
			}
			random := rand.New(rand.NewPCG(7, 8))
			tries := 300
			if format == VHDX {
				tries = 60 // they are large
			}
			for range tries {
				image := plausible(format)
				for range 1 + random.IntN(6) {
					at := parts(format)[random.IntN(len(parts(format)))] + random.IntN(128)*4
					binary.LittleEndian.PutUint32(image[at:], []uint32{0, 1, 1 << random.IntN(32), random.Uint32(), 0xffffffff}[random.IntN(5)])
				}
				survives(t, whole(format, image))
			}
		})
	}
}

// FuzzFormats changes a piece of an image.
func FuzzFormats(f *testing.F) {
	formats := []string{VMDK, VDI, VHD, VHDX}
	for kind := range uint8(4) {
		f.Add(kind, uint8(1), uint16(16), []byte{1, 2})
	}
	f.Fuzz(func(t *testing.T, kind, part uint8, at uint16, change []byte) {
		format := formats[kind%4]
		image, places := plausible(format), parts(format)
		copy(image[places[int(part)%len(places)]+int(at)%2048:], change[:min(len(change), 512)])
		survives(t, whole(format, image))
	})
}
