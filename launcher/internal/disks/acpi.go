package disks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"podvirt.dev/launcher/internal/domain"
)

// maxTable is the most bytes of a table (VM-064): QEMU counts them with 16 bits (hw/acpi/core.c, acpi_table_add).
const maxTable = 64<<10 - 1

// Header of every ACPI table (ACPI 6.5, 5.2.6): its signature, its length, which counts the header.
const (
	tableLength = 4
	tableHeader = 36
)

// ACPI finds the tables of a volume that activate software of the machine's maker (VM-064). A file that is no table of its kind is
// refused: guests leave such a table alone without a word.
func ACPI(dir string) ([]domain.Table, error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &Error{Path: dir, Err: err}
	}
	defer func() { _ = root.Close() }()
	var found []domain.Table
	for _, kind := range []string{"slic", "msdm"} {
		f, err := root.Open(kind)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		path := filepath.Join(dir, kind)
		if err != nil {
			return nil, &Error{Path: path, Err: errors.New(oneCause(err))}
		}
		table, err := io.ReadAll(io.LimitReader(f, maxTable+1))
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, &Error{Path: path, Err: err}
		}
		if wrong := tableWrong(table, strings.ToUpper(kind)); wrong != "" {
			return nil, &Error{Path: path, Err: errors.New(wrong)}
		}
		found = append(found, domain.Table{Kind: kind, Path: path})
	}
	if len(found) == 0 {
		return nil, &Error{Path: dir, Err: errors.New("neither slic nor msdm; found: " + content(root.FS()))}
	}
	return found, nil
}

// tableWrong says what is wrong with a table; "" is nothing.
func tableWrong(table []byte, signature string) string {
	switch {
	case len(table) > maxTable:
		return "longer than 64 KiB"
	case len(table) < tableHeader:
		return fmt.Sprintf("%d bytes; an ACPI table has %d and more", len(table), tableHeader)
	case string(table[:tableLength]) != signature:
		return fmt.Sprintf("signature %q; want %s", table[:tableLength], signature)
	}
	if says := binary.LittleEndian.Uint32(table[tableLength:]); says != uint32(len(table)) {
		return fmt.Sprintf("%d bytes; its header says %d", len(table), says)
	}
	var sum byte
	for _, b := range table {
		sum += b
	}
	if sum != 0 {
		return "its checksum is wrong"
	}
	return ""
}
