package image

import (
	"archive/tar"
	"bufio"
	"errors"
	"io"
	"path"
	"slices"
	"strings"
)

// CopyMember writes what one disk of an appliance (ova: a tar file) holds: the one that member names, or the only one.
// Only ordinary files count. All of the archive is read.
func CopyMember(from io.Reader, o Options, member string) error {
	plain, compression, err := decompress(bufio.NewReaderSize(from, peekSize), Options{Compression: Auto, Size: o.Size})
	if err != nil {
		return err
	}
	at := o.At
	if compression != None {
		at = nil
	}
	source := &counting{from: plain}
	archive := tar.NewReader(source)
	var disks []string
	for copied := false; ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return oneOf(disks, member)
		}
		if err != nil {
			return badArchive(err)
		}
		name := path.Clean(header.Name)
		if header.Typeflag != tar.TypeReg || !isDisk(name) && name != member {
			continue
		}
		disks = append(disks, name)
		if copied || member != "" && name != member {
			continue
		}
		copied = true
		inner := o
		inner.Length, inner.Start, inner.Copied, inner.At = header.Size, 0, nil, nil
		if at != nil {
			inner.At = io.NewSectionReader(at, source.read, header.Size)
		}
		if err := Copy(archive, inner); err != nil {
			return badArchive(err)
		}
	}
}

// counting knows where in a source it is.
type counting struct {
	from io.Reader
	read int64
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.read += int64(n)
	return n, err
}

// isDisk says whether a file of an appliance is a disk by its name, packed or not.
func isDisk(name string) bool {
	name = strings.TrimSuffix(strings.ToLower(name), ".gz")
	return slices.Contains([]string{".vmdk", ".vdi", ".vhd", ".vhdx", ".qcow2", ".img", ".raw"}, path.Ext(name))
}

// oneOf says why none of the disks was the one.
func oneOf(disks []string, member string) error {
	switch {
	case len(disks) == 0:
		return refused("the archive holds no disk")
	case member != "" && !slices.Contains(disks, member):
		return refused("%q not found; the source holds: %s", member, strings.Join(disks, ", "))
	case member == "" && len(disks) > 1:
		return refused("podvirt.dev/import-member is needed; the source holds: %s", strings.Join(disks, ", "))
	}
	return nil
}

// badArchive tells an archive that is none from what went wrong below it.
func badArchive(err error) error {
	var transport *TransportError
	var already Refused
	if errors.As(err, &transport) || errors.As(err, &already) || !errors.Is(err, tar.ErrHeader) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return refused("damaged archive: %v", err)
}
