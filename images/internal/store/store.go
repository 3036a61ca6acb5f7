// Package store is the cache of built things: files under one directory whose names carry the key of what they were
// built from, so that a file that exists is complete and current.
package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"podvirt.dev/internal/atomicfile"
)

// Store is a cache directory.
type Store struct {
	dir     string
	options Options
	rebuilt map[string]bool
}

// Options change how a store works.
type Options struct {
	Log   io.Writer // is told what is being built; nil tells nobody
	Fresh bool      // build every artefact again, once in the life of the store, even where it is there
}

// Open makes the directory where it is missing.
func Open(dir string, o Options) (*Store, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the image cache: %w", err)
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	return &Store{dir: dir, options: o, rebuilt: map[string]bool{}}, nil
}

// Path names a file of the store.
func (s *Store) Path(name string) string {
	return filepath.Join(s.dir, name)
}

// Lock keeps other processes away from the artefact of that name until release is called. It waits for whoever holds it.
func (s *Store) Lock(name string) (release func(), err error) {
	f, err := os.OpenFile(s.Path("."+name+".lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", name, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", name, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// Ensure returns the path of the artefact "<base>-<key><ext>" and calls build for it where it is missing.
// Build writes to the path it is given; the result gets its final name only when build succeeds.
// Afterwards the link "<base><ext>" points to the artefact, and those of other keys are removed: they are out of date.
func (s *Store) Ensure(ctx context.Context, a Artefact, build func(ctx context.Context, path string) error) (string, error) {
	release, err := s.Lock(a.Base)
	if err != nil {
		return "", err
	}
	defer release()
	final := s.Path(a.name())
	if _, err := os.Stat(final); err == nil && (!s.options.Fresh || s.rebuilt[final]) {
		return final, s.publish(a)
	}
	_, _ = fmt.Fprintf(s.options.Log, "building %s%s\n", a.Base, a.Ext)
	partial := s.Path(".partial-" + a.name())
	if err := os.RemoveAll(partial); err != nil {
		return "", err
	}
	if err := build(ctx, partial); err != nil {
		return "", errors.Join(fmt.Errorf("building %s: %w", a.Base, err), os.RemoveAll(partial))
	}
	// The old artefact goes first: a directory cannot be replaced by a rename, nor may its digest outlive it.
	if err := errors.Join(os.RemoveAll(final), os.RemoveAll(final+digestExt), os.Rename(partial, final)); err != nil {
		return "", err
	}
	s.rebuilt[final] = true
	return final, errors.Join(s.publish(a), s.dropStale(a))
}

// publish points the stable name of an artefact to its current version.
func (s *Store) publish(a Artefact) error {
	link := s.Path(a.Base + a.Ext)
	if current, err := os.Readlink(link); err == nil && current == a.name() {
		return nil
	}
	fresh := s.Path(".link-" + a.name())
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := os.Symlink(a.name(), fresh); err != nil {
		return err
	}
	return os.Rename(fresh, link)
}

// Artefact names one keyed file or directory of the store.
type Artefact struct {
	Base string // what it is, for instance "launcher-rootfs"
	Key  string // what it was built from
	Ext  string // ".tar", ".qcow2" or empty for a directory
}

func (a Artefact) name() string {
	return a.Base + "-" + a.Key + a.Ext
}

func (s *Store) dropStale(a Artefact) error {
	stale, err := filepath.Glob(s.Path(a.Base + "-" + strings.Repeat("[0-9a-f]", len(a.Key)) + a.Ext))
	if err != nil {
		return err
	}
	for _, path := range stale {
		if path == s.Path(a.name()) {
			continue
		}
		if err := errors.Join(os.RemoveAll(path), os.RemoveAll(path+digestExt)); err != nil {
			return err
		}
	}
	return nil
}

const digestExt = ".sha256"

// Digest returns the SHA-256 of a keyed file in hexadecimal and remembers it beside the file.
// It must only be used on files that Ensure made: those never change under one name.
func Digest(path string) (string, error) {
	if known, err := os.ReadFile(path + digestExt); err == nil {
		return strings.TrimSpace(string(known)), nil
	}
	sum, err := Sum(path)
	if err != nil {
		return "", err
	}
	return sum, atomicfile.Write(path+digestExt, []byte(sum+"\n"), 0o644)
}

// Sum returns the SHA-256 of a file in hexadecimal.
func Sum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// KeyOf derives a key from a description: any value that JSON can carry. Equal descriptions have equal keys.
func KeyOf(description any) (string, error) {
	b, err := json.Marshal(description)
	if err != nil {
		return "", fmt.Errorf("describing an artefact: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])[:16], nil
}

// SumTree returns one hash over the names, modes and contents of all files below root.
func SumTree(root string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		sum, err := Sum(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		_, _ = fmt.Fprintf(h, "%s %o %s\n", rel, info.Mode().Perm(), sum)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("hashing %s: %w", root, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
