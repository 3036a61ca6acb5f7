package volume

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"podvirt.dev/internal/atomicfile"
)

// Identity is the content of .podvirt/pool.json: a pool is recognised by it, never guessed (ST-006).
type Identity struct {
	Format  int       `json:"format"`
	ID      string    `json:"id"` // 16 hex digits
	Node    string    `json:"node"`
	Created time.Time `json:"created"`
}

// Names in a pool (storage.md 2.8).
const (
	controlDir  = ".podvirt"
	poolFile    = "pool.json"
	lockFile    = "lock"
	volumesDir  = "volumes"
	snapsDir    = "snapshots"
	tmpDir      = "tmp"
	trashDir    = "trash"
	metaFile    = "meta.json"
	diskFile    = "disk.img"
	fsImageFile = "fs.img"
)

// ReadIdentity returns the identity of the pool at a path; its error wraps fs.ErrNotExist where there is no pool.
func ReadIdentity(path string) (Identity, error) {
	name := filepath.Join(path, controlDir, poolFile)
	data, err := os.ReadFile(name)
	if err != nil {
		return Identity{}, err
	}
	var id Identity
	if err := json.Unmarshal(data, &id); err != nil {
		return Identity{}, fmt.Errorf("%s: %w", name, err)
	}
	if id.Format > Format {
		return id, fmt.Errorf("%w: %s has format %d, this driver knows up to %d", ErrNotReady, name, id.Format, Format)
	}
	if len(id.ID) != 16 {
		return id, fmt.Errorf("%w: %s: id %q is not 16 hex digits", ErrNotReady, name, id.ID)
	}
	return id, nil
}

// ensureIdentity makes an unused directory a pool, or reads whose pool it is.
func ensureIdentity(path, node string) (Identity, error) {
	id, err := ReadIdentity(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return id, err
	}
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return Identity{}, err
	}
	id = Identity{Format: Format, ID: hex.EncodeToString(random[:]), Node: node, Created: time.Now().UTC().Truncate(time.Second)}
	data, err := json.MarshalIndent(id, "", " ")
	if err != nil {
		return Identity{}, err
	}
	if err := os.MkdirAll(filepath.Join(path, controlDir), 0o700); err != nil {
		return Identity{}, err
	}
	if err := atomicfile.Write(filepath.Join(path, controlDir, poolFile), append(data, '\n'), 0o600); err != nil {
		return Identity{}, err
	}
	return id, atomicfile.SyncDir(path)
}

// takeLock keeps a second driver out for as long as the returned file is open; the kernel drops it with the process.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(path, controlDir, lockFile), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
	}
	return f, nil
}
