package disks

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
)

// Fields of the header of a qcow2 image (QEMU, docs/interop/qcow2.rst). All numbers are big-endian.
const (
	qcow2Magic           = 0x514649fb // "QFI\xfb"
	qcow2BackingOffset   = 8
	qcow2Incompatible    = 72
	qcow2HeaderLength    = 104
	qcow2ExternalDataBit = 1 << 2
)

// Errors of images that QEMU would follow to another file of the container.
var (
	errBackingFile  = errors.New("the image refers to a backing file, which is not allowed")
	errExternalData = errors.New("the image refers to an external data file, which is not allowed")
)

type qcow2Header struct {
	version      uint32
	backing      uint64 // offset of the backing file's name; 0: none
	incompatible uint64 // feature bits; only from version 3 on
}

// readQcow2 returns the header of a qcow2 image, or nil where the file is none.
func readQcow2(path string) (*qcow2Header, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, cause(err)
	}
	defer func() { _ = f.Close() }()
	raw := make([]byte, qcow2HeaderLength)
	n, err := io.ReadFull(f, raw)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, cause(err)
	}
	if n < qcow2Incompatible || binary.BigEndian.Uint32(raw) != qcow2Magic {
		return nil, nil //nolint:nilnil // no header and no error: not a qcow2 image
	}
	h := &qcow2Header{
		version: binary.BigEndian.Uint32(raw[4:]),
		backing: binary.BigEndian.Uint64(raw[qcow2BackingOffset:]),
	}
	if h.version >= 3 {
		h.incompatible = binary.BigEndian.Uint64(raw[qcow2Incompatible:])
	}
	return h, nil
}

// harmless refuses an image that names other files: it comes from a registry, and QEMU would open /vm/pod or a Secret
// for the guest to read.
func (h *qcow2Header) harmless() error {
	switch {
	case h.backing != 0:
		return errBackingFile
	case h.incompatible&qcow2ExternalDataBit != 0:
		return errExternalData
	default:
		return nil
	}
}
