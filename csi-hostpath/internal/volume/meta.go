package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"podvirt.dev/internal/atomicfile"
)

// Format is the version of the layout on disk that this code writes (storage.md 2.8).
const Format = 1

// State is the stage of life of a volume (storage.md 2.8).
type State string

// States. A volume or snapshot appears below volumes/ already whole, so blank ones are never anything but ready.
const (
	StateCreating State = "creating"
	StateFilling  State = "filling"
	StateReady    State = "ready"
	StateDeleting State = "deleting"
)

// Content is what a volume holds (storage.md, words of section 1).
type Content string

// Contents.
const (
	ContentDisk  Content = "disk"  // one raw image
	ContentFiles Content = "files" // a file tree
)

// Mode is the volume mode of the claim.
type Mode string

// Modes.
const (
	ModeBlock      Mode = "Block"
	ModeFilesystem Mode = "Filesystem"
)

// Preallocation says how much of a volume is reserved at once (storage.md 2.1).
type Preallocation string

// Preallocations.
const (
	PreallocateNone   Preallocation = "none"
	PreallocateFalloc Preallocation = "falloc"
	PreallocateFull   Preallocation = "full"
)

// Claim names the claim that a volume was made for.
type Claim struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
}

// String returns the name that people know.
func (c Claim) String() string {
	if c.Name == "" {
		return "(no claim)"
	}
	return c.Namespace + "/" + c.Name
}

// Meta is the content of meta.json. Everything a class said is copied into it: a class that is made anew with other
// parameters does not change its volumes (ST-007).
type Meta struct {
	Format        int               `json:"format"`
	UUID          string            `json:"uuid"`
	Name          string            `json:"name"` // of CreateVolume; unique in a pool
	Claim         Claim             `json:"claim"`
	Size          int64             `json:"size"` // bytes the user has
	Promised      int64             `json:"promised"`
	Content       Content           `json:"content"`
	Mode          Mode              `json:"mode"`
	Preallocation Preallocation     `json:"preallocation"`
	FSType        string            `json:"fsType,omitempty"` // of fs.img; empty: no image
	DirectIO      string            `json:"directIO"`
	Source        string            `json:"source"`           // blank, or an [Origin]
	Family        string            `json:"family,omitempty"` // uuid of the first of those that may share blocks
	Shared        int64             `json:"shared,omitempty"` // bytes that were the origin's in the beginning
	Parameters    map[string]string `json:"parameters,omitempty"`
	State         State             `json:"state"`
	Created       time.Time         `json:"created"`
	Checksum      string            `json:"checksum"` // sha256 of this object with an empty checksum
}

func (m Meta) sum() (string, error) {
	m.Checksum = ""
	data, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	digest := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(digest[:]), nil
}

// write replaces meta.json in dir.
func (m Meta) write(dir string) error {
	sum, err := m.sum()
	if err != nil {
		return err
	}
	m.Checksum = sum
	data, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, metaFile), append(data, '\n'), 0o600)
}

// readMeta reads and checks meta.json in dir. Its error wraps [ErrDamaged] unless the format is only too new.
func readMeta(dir string) (Meta, error) {
	data, err := os.ReadFile(filepath.Join(dir, metaFile))
	if err != nil {
		return Meta{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	var meta Meta
	if err := json.Unmarshal(data, &meta); err != nil {
		return Meta{}, fmt.Errorf("%w: meta.json: %w", ErrDamaged, err)
	}
	if meta.Format > Format {
		return meta, fmt.Errorf("%w: format %d, this driver knows up to %d", ErrDamaged, meta.Format, Format)
	}
	sum, err := meta.sum()
	if err != nil {
		return Meta{}, err
	}
	if sum != meta.Checksum {
		return meta, fmt.Errorf("%w: meta.json does not match its checksum", ErrDamaged)
	}
	if meta.UUID != filepath.Base(dir) {
		return meta, fmt.Errorf("%w: meta.json belongs to volume %s", ErrDamaged, meta.UUID)
	}
	return meta, nil
}
