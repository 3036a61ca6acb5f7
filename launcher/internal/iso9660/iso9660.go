// Package iso9660 writes a few files as a CD image: ISO 9660 (ECMA-119) with Rock Ridge names for Linux and the BSDs and
// Joliet names for Windows. All files lie in the root directory; they are written from memory, and nothing but the
// image touches a disk, since what a guest is seeded with is secret.
package iso9660

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf16"
)

// File is one file of the image.
type File struct {
	Name    string // at most 64 UTF-16 units, without slash
	Content []byte
}

// ErrName is wrapped by errors about names that cannot stand on the image.
var ErrName = errors.New("name does not fit on a CD image")

const (
	sector = 2048

	// The first sectors of the image, in their order.
	atPrimary = 16 + iota - 1
	atJoliet
	atTerminator
	atPathTables // four sectors: little and big endian, primary and Joliet
	atRoot       = atPathTables + 4

	maxNames = 64 // of the files; the two directories then have a known small size
)

// Write writes the image. The same label, time and files give the same bytes. The label has at most 32 characters.
func Write(w io.Writer, label string, modified time.Time, files []File) error {
	if err := check(label, files); err != nil {
		return err
	}
	img := newImage(label, modified.UTC(), files)
	for _, part := range img.parts() {
		if _, err := w.Write(part); err != nil {
			return fmt.Errorf("writing CD image: %w", err)
		}
	}
	return nil
}

func check(label string, files []File) error {
	if len(label) > 32 {
		return fmt.Errorf("label %q: %w: at most 32 characters", label, ErrName)
	}
	if len(files) > maxNames {
		return fmt.Errorf("%d files: %w: at most %d", len(files), ErrName, maxNames)
	}
	seen := make(map[string]bool)
	for _, f := range files {
		switch {
		case f.Name == "" || len(utf16.Encode([]rune(f.Name))) > 64 || len(f.Name) > 120 || strings.ContainsAny(f.Name, "/\x00"):
			return fmt.Errorf("%q: %w", f.Name, ErrName)
		case seen[f.Name]:
			return fmt.Errorf("%q: %w: twice", f.Name, ErrName)
		}
		seen[f.Name] = true
	}
	return nil
}

// image is the layout: where each directory and file begins, in sectors.
type image struct {
	label    string
	modified time.Time
	files    []File
	starts   []uint32 // of the files

	primary, joliet []byte // root directories
	end             uint32 // number of sectors
}

func newImage(label string, modified time.Time, files []File) *image {
	img := &image{label: label, modified: modified, files: slices.Clone(files)}
	slices.SortFunc(img.files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	img.starts = make([]uint32, len(files))
	size1, size2 := len(img.directory(rockRidge, 0)), len(img.directory(joliet, 0))
	next := uint32(atRoot + (size1+size2)/sector)
	for i, f := range img.files {
		img.starts[i] = next
		next += sectors(len(f.Content))
	}
	img.end = next
	img.primary = img.directory(rockRidge, atRoot)
	img.joliet = img.directory(joliet, img.jolietRoot())
	return img
}

func (img *image) jolietRoot() uint32 {
	if img.primary == nil {
		return 0
	}
	return atRoot + uint32(len(img.primary)/sector)
}

func sectors(size int) uint32 { return uint32((size + sector - 1) / sector) }

// parts returns the image piece by piece, each a whole number of sectors.
func (img *image) parts() [][]byte {
	terminator := make([]byte, sector)
	copy(terminator, "\xffCD001\x01")
	parts := [][]byte{
		make([]byte, 16*sector),
		img.descriptor(rockRidge, img.primary, atRoot, atPathTables),
		img.descriptor(joliet, img.joliet, img.jolietRoot(), atPathTables+2),
		terminator,
		pathTable(binary.LittleEndian, atRoot), pathTable(binary.BigEndian, atRoot),
		pathTable(binary.LittleEndian, img.jolietRoot()), pathTable(binary.BigEndian, img.jolietRoot()),
		img.primary, img.joliet,
	}
	for _, f := range img.files {
		parts = append(parts, f.Content, make([]byte, int(sectors(len(f.Content)))*sector-len(f.Content)))
	}
	return parts
}

// pathTableSize is that of a table with nothing but the root directory.
const pathTableSize = 10

func pathTable(order binary.ByteOrder, root uint32) []byte {
	t := make([]byte, sector)
	t[0] = 1 // length of the root's name
	order.PutUint32(t[2:], root)
	order.PutUint16(t[6:], 1)
	return t
}

// naming is one of the two sets of names of an image.
type naming int

const (
	rockRidge naming = iota
	joliet
)

// descriptor returns the primary or supplementary volume descriptor (ECMA-119 sections 8.4, 8.5).
func (img *image) descriptor(names naming, root []byte, at, pathTables uint32) []byte {
	d := make([]byte, sector)
	copy(d, "\x01CD001\x01")
	text := func(from, to int, s string) { copy(d[from:to], pad(names, s, to-from)) }
	if names == joliet {
		d[0] = 2
		copy(d[88:], "%/E") // UCS-2 level 3
	}
	text(8, 40, "")
	text(40, 72, img.label)
	both32(d[80:], img.end)
	both16(d[120:], 1)
	both16(d[124:], 1)
	both16(d[128:], sector)
	both32(d[132:], pathTableSize)
	binary.LittleEndian.PutUint32(d[140:], pathTables)
	binary.BigEndian.PutUint32(d[148:], pathTables+1)
	copy(d[156:190], img.record("\x00", at, uint32(len(root)), true))
	for _, field := range [][2]int{{190, 318}, {318, 446}, {446, 574}, {574, 702}, {702, 739}, {739, 776}, {776, 813}} {
		text(field[0], field[1], "")
	}
	stamp := img.modified.Format("20060102150405") + "00\x00"
	copy(d[813:], stamp)
	copy(d[830:], stamp)
	copy(d[847:], "0000000000000000\x00")
	copy(d[864:], "0000000000000000\x00")
	d[881] = 1
	return d
}

// pad fills a text of a descriptor with blanks: one byte each, or two in Joliet.
func pad(names naming, s string, size int) []byte {
	if names == rockRidge {
		return []byte(s + strings.Repeat(" ", size-len(s)))
	}
	out := make([]byte, 0, size)
	for _, unit := range utf16.Encode([]rune(s)) {
		if len(out)+2 <= size {
			out = binary.BigEndian.AppendUint16(out, unit)
		}
	}
	for len(out)+2 <= size {
		out = append(out, 0, ' ')
	}
	return append(out, make([]byte, size-len(out))...)
}

// directory returns the root directory, a whole number of sectors; at is where it will lie.
func (img *image) directory(names naming, at uint32) []byte {
	var records [][]byte
	size := uint32(0)
	if at != 0 {
		size = uint32(len(img.directory(names, 0)))
	}
	self, parent := img.record("\x00", at, size, true), img.record("\x01", at, size, true)
	if names == rockRidge {
		self = extend(self, suspBegin(), rockRidgeMark(), posix(true))
		parent = extend(parent, posix(true))
	}
	records = append(records, self, parent)
	for i, f := range img.files {
		if names == joliet {
			records = append(records, img.record(string(pad(joliet, f.Name, 2*len(utf16.Encode([]rune(f.Name))))),
				img.starts[i], uint32(len(f.Content)), false))
			continue
		}
		short := fmt.Sprintf("F%07d.;1", i) // in the order of the names, as the directory must be
		record := img.record(short, img.starts[i], uint32(len(f.Content)), false)
		records = append(records, extend(record, posix(false), rockRidgeName(f.Name)))
	}
	var d []byte
	for _, record := range records {
		if room := sector - len(d)%sector; len(record) > room { // a record does not cross sectors
			d = append(d, make([]byte, room)...)
		}
		d = append(d, record...)
	}
	return append(d, make([]byte, int(sectors(len(d)))*sector-len(d))...)
}

// record returns a directory record (ECMA-119 section 9.1).
func (img *image) record(name string, at, size uint32, directory bool) []byte {
	r := make([]byte, 33, 256)
	both32(r[2:], at)
	both32(r[10:], size)
	t := img.modified
	copy(r[18:], []byte{byte(t.Year() - 1900), byte(t.Month()), byte(t.Day()), byte(t.Hour()), byte(t.Minute()), byte(t.Second()), 0})
	if directory {
		r[25] = 2
	}
	both16(r[28:], 1)
	r[32] = byte(len(name))
	return extend(append(r, name...))
}

// extend appends entries of the system use area and pads the record to an even length.
func extend(record []byte, entries ...[]byte) []byte {
	if len(record)%2 == 1 {
		record = append(record, 0)
	}
	for _, entry := range entries {
		record = append(record, entry...)
	}
	if len(record)%2 == 1 {
		record = append(record, 0)
	}
	record[0] = byte(len(record))
	return record
}

// suspBegin is entry SP: here the system use sharing protocol is used.
func suspBegin() []byte { return []byte{'S', 'P', 7, 1, 0xbe, 0xef, 0} }

// rockRidgeMark is entry ER, without which no system looks for Rock Ridge names.
func rockRidgeMark() []byte {
	const id = "RRIP_1991A"
	return append([]byte{'E', 'R', byte(8 + len(id)), 1, byte(len(id)), 0, 0, 1}, id...)
}

// posix is entry PX: mode, links, uid and gid.
func posix(directory bool) []byte {
	mode, links := uint32(0o100444), uint32(1)
	if directory {
		mode, links = 0o040555, 2
	}
	e := make([]byte, 36)
	copy(e, []byte{'P', 'X', 36, 1})
	both32(e[4:], mode)
	both32(e[12:], links)
	return e
}

// rockRidgeName is entry NM.
func rockRidgeName(name string) []byte {
	return append([]byte{'N', 'M', byte(5 + len(name)), 1, 0}, name...)
}

// both32 writes a number in both byte orders, as ISO 9660 wants it.
func both32(b []byte, n uint32) {
	binary.LittleEndian.PutUint32(b, n)
	binary.BigEndian.PutUint32(b[4:], n)
}

func both16(b []byte, n uint16) {
	binary.LittleEndian.PutUint16(b, n)
	binary.BigEndian.PutUint16(b[2:], n)
}
