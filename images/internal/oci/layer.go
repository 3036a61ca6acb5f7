// Package oci makes container images from tar archives and lists of files, and writes them as archives that
// containerd and Docker import. Equal inputs give equal bytes: times are fixed, order is that of the path.
package oci

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"sort"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Entry is one file, directory or symbolic link of a layer. Exactly one of Source, Data, Link and Dir says which.
type Entry struct {
	Path   string // absolute, in the image
	Mode   fs.FileMode
	UID    int
	GID    int
	Source string // file on this machine
	Data   []byte
	Link   string
	Dir    bool
}

// rawLayer is an uncompressed layer: images stay on this machine, and compressing costs more than copying.
type rawLayer struct {
	open   func() (io.ReadCloser, error)
	digest v1.Hash
	size   int64
}

var _ v1.Layer = (*rawLayer)(nil)

func (l *rawLayer) Digest() (v1.Hash, error)             { return l.digest, nil }
func (l *rawLayer) DiffID() (v1.Hash, error)             { return l.digest, nil }
func (l *rawLayer) Compressed() (io.ReadCloser, error)   { return l.open() }
func (l *rawLayer) Uncompressed() (io.ReadCloser, error) { return l.open() }
func (l *rawLayer) Size() (int64, error)                 { return l.size, nil }
func (l *rawLayer) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }

// ArchiveLayer is a layer made of a tar archive as it is. Digest is the archive's SHA-256 in hexadecimal.
func ArchiveLayer(archive, digest string) (v1.Layer, error) {
	info, err := os.Stat(archive)
	if err != nil {
		return nil, err
	}
	return &rawLayer{
		open:   func() (io.ReadCloser, error) { return os.Open(archive) },
		digest: v1.Hash{Algorithm: "sha256", Hex: digest},
		size:   info.Size(),
	}, nil
}

// FilesLayer is a layer of the entries and the directories above them; epoch is the time of all of them, in seconds
// since 1970. Sources are read twice, now for the digest and again when the image is written, and must not change between.
func FilesLayer(entries []Entry, epoch int64) (v1.Layer, error) {
	entries = withParents(entries)
	counter := &counter{hash: sha256.New()}
	if err := writeTar(counter, entries, epoch); err != nil {
		return nil, err
	}
	return &rawLayer{
		open: func() (io.ReadCloser, error) {
			r, w := io.Pipe()
			go func() { _ = w.CloseWithError(writeTar(w, entries, epoch)) }()
			return r, nil
		},
		digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(counter.hash.Sum(nil))},
		size:   counter.n,
	}, nil
}

type counter struct {
	hash hash.Hash
	n    int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.hash.Write(p)
}

// withParents adds the missing directories and sorts by path, so that a directory comes before what is in it.
// Directories that a lower layer may have as symbolic links (/bin, /lib, /sbin) must not be named by entries.
func withParents(entries []Entry) []Entry {
	have := map[string]bool{"/": true}
	for _, e := range entries {
		have[path.Clean(e.Path)] = true
	}
	all := append([]Entry(nil), entries...)
	for _, e := range entries {
		for dir := path.Dir(path.Clean(e.Path)); !have[dir]; dir = path.Dir(dir) {
			have[dir] = true
			all = append(all, Entry{Path: dir, Mode: 0o755, Dir: true})
		}
	}
	sort.Slice(all, func(i, j int) bool { return path.Clean(all[i].Path) < path.Clean(all[j].Path) })
	return all
}

func writeTar(w io.Writer, entries []Entry, epoch int64) error {
	tw := tar.NewWriter(w)
	for _, e := range entries {
		if err := writeEntry(tw, e, time.Unix(epoch, 0)); err != nil {
			return fmt.Errorf("adding %s to a layer: %w", e.Path, err)
		}
	}
	return tw.Close()
}

func writeEntry(tw *tar.Writer, e Entry, at time.Time) (err error) {
	h := &tar.Header{
		Name: strings.TrimPrefix(path.Clean(e.Path), "/"), Mode: tarMode(e.Mode), Uid: e.UID, Gid: e.GID, ModTime: at,
		Typeflag: tar.TypeReg, Format: tar.FormatPAX,
	}
	var content io.Reader
	switch {
	case e.Dir:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	case e.Link != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Link
	case e.Source != "":
		f, err := os.Open(e.Source)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		h.Size, content = info.Size(), f
	default:
		h.Size, content = int64(len(e.Data)), strings.NewReader(string(e.Data))
	}
	if err := tw.WriteHeader(h); err != nil || content == nil {
		return err
	}
	_, err = io.Copy(tw, content)
	return err
}

// tarMode keeps the permission bits and the sticky bit.
func tarMode(m fs.FileMode) int64 {
	mode := int64(m.Perm())
	if m&fs.ModeSticky != 0 {
		mode |= 0o1000
	}
	return mode
}
