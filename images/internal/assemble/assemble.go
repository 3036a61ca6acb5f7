// Package assemble turns recipes into image archives in the cache, and leaves alone what is already there.
package assemble

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"podvirt.dev/images/internal/gobuild"
	"podvirt.dev/images/internal/oci"
	"podvirt.dev/images/internal/recipe"
	"podvirt.dev/images/internal/rootfs"
	"podvirt.dev/images/internal/run"
	"podvirt.dev/images/internal/store"
	"podvirt.dev/internal/atomicfile"
)

// DiskBuilder makes the disks of test guests.
type DiskBuilder interface {
	// Build returns the path of the guest's qcow2 image, made where the cache has none that is current.
	Build(ctx context.Context, name string) (string, error)
}

// Builder assembles images. All fields are needed.
type Builder struct {
	Repository string // root of this repository
	Dir        string // where archives go, as NAME.tar
	Roots      rootfs.Builder
	Disks      DiskBuilder
}

// Result says where an image is.
type Result struct {
	Name    string `json:"name"`    // full name of the image
	Digest  string `json:"digest"`  // of its manifest
	Archive string `json:"archive"` // path of the tar archive
	Fresh   bool   `json:"-"`       // written by this call
}

// Record is kept beside an archive as NAME.json.
type Record struct {
	Result
	Key string `json:"key"`
}

// Build makes sure that the image's archive is current.
// Others who build the same image wait: a program must not change between hashing and writing it.
func (b Builder) Build(ctx context.Context, image recipe.Image) (Result, error) {
	release, err := b.Roots.Store.Lock("image-" + image.Name)
	if err != nil {
		return Result{}, err
	}
	defer release()
	parts, err := b.parts(ctx, image)
	if err != nil {
		return Result{}, fmt.Errorf("image %s: %w", image.Name, err)
	}
	key, err := store.KeyOf([]any{image, parts})
	if err != nil {
		return Result{}, err
	}
	if known, err := b.Known(image); err == nil && known.Key == key {
		return known.Result, nil
	}
	result, err := b.write(image, parts, key)
	if err != nil {
		return Result{}, fmt.Errorf("image %s: %w", image.Name, err)
	}
	return result, nil
}

// Known returns what is recorded of an image whose archive exists.
func (b Builder) Known(image recipe.Image) (Record, error) {
	var known Record
	data, err := os.ReadFile(b.recordPath(image))
	if err != nil {
		return known, err
	}
	if err := json.Unmarshal(data, &known); err != nil {
		return known, err
	}
	_, err = os.Stat(known.Archive)
	return known, err
}

func (b Builder) recordPath(image recipe.Image) string {
	return filepath.Join(b.Dir, image.Name+".json")
}

// parts are the built ingredients of an image with the hashes that identify them.
type parts struct {
	Root       string `json:"-"`
	RootDigest string
	Entries    []oci.Entry `json:"-"`
	Sums       []string    // of the entries, in order
}

func (b Builder) parts(ctx context.Context, image recipe.Image) (parts, error) {
	var p parts
	var err error
	if image.Root != nil {
		if p.Root, err = b.Roots.Build(ctx, *image.Root); err != nil {
			return p, err
		}
		if p.RootDigest, err = store.Digest(p.Root); err != nil {
			return p, err
		}
	}
	for _, file := range image.Files {
		entry, sum, err := b.entry(ctx, file)
		if err != nil {
			return p, err
		}
		p.Entries, p.Sums = append(p.Entries, entry), append(p.Sums, sum)
	}
	learnt, err := b.learn(ctx, image, p)
	if err != nil {
		return p, err
	}
	for _, entry := range learnt {
		sum, err := store.Sum(entry.Source)
		if err != nil {
			return p, err
		}
		p.Entries, p.Sums = append(p.Entries, entry), append(p.Sums, sum)
	}
	return p, nil
}

func (b Builder) entry(ctx context.Context, file recipe.File) (oci.Entry, string, error) {
	entry := oci.Entry{Path: file.Path, Mode: file.Mode, Link: file.Link, Dir: file.Dir}
	var sum string
	var err error
	switch {
	case file.Program != nil:
		if entry.Source, err = b.compile(ctx, *file.Program, filepath.Base(file.Path)); err != nil {
			return entry, "", err
		}
		sum, err = store.Sum(entry.Source)
	case file.Disk != "":
		if entry.Source, err = b.Disks.Build(ctx, file.Disk); err != nil {
			return entry, "", err
		}
		sum, err = store.Digest(entry.Source)
	}
	if entry.Mode == 0 {
		entry.Mode = defaultMode(file)
	}
	return entry, sum, err
}

func defaultMode(file recipe.File) fs.FileMode {
	if file.Disk != "" {
		return 0o644
	}
	return 0o755
}

func (b Builder) compile(ctx context.Context, p recipe.Program, name string) (string, error) {
	out := b.Roots.Store.Path(filepath.Join("programs", name))
	program := gobuild.Program{Dir: filepath.Join(b.Repository, p.Module), Package: p.Package, CGO: p.CGO, Tags: p.Tags}
	return out, gobuild.Build(ctx, program, out)
}

func (b Builder) write(image recipe.Image, p parts, key string) (Result, error) {
	layers, err := p.layers()
	if err != nil {
		return Result{}, err
	}
	img, err := oci.Image(layers, oci.Config{
		Entrypoint: image.Entrypoint, Cmd: image.Cmd, Env: image.Env, User: image.User, WorkingDir: "/",
	}, run.Epoch)
	if err != nil {
		return Result{}, err
	}
	digest, err := img.Digest()
	if err != nil {
		return Result{}, err
	}
	archive := filepath.Join(b.Dir, image.Name+".tar")
	partial := filepath.Join(b.Dir, ".partial-"+image.Name+".tar")
	if err := oci.WriteArchive(partial, img, image.Ref()); err != nil {
		return Result{}, errors.Join(err, os.Remove(partial))
	}
	if err := os.Rename(partial, archive); err != nil {
		return Result{}, err
	}
	result := Result{Name: image.Ref(), Digest: digest.String(), Archive: archive, Fresh: true}
	data, err := json.Marshal(Record{Result: result, Key: key})
	if err != nil {
		return Result{}, err
	}
	return result, atomicfile.Write(b.recordPath(image), data, 0o644)
}

// layers are the root file system, which hardly ever changes, and the files in a thin layer above it.
func (p parts) layers() ([]v1.Layer, error) {
	var layers []v1.Layer
	if p.Root != "" {
		layer, err := oci.ArchiveLayer(p.Root, p.RootDigest)
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	layer, err := oci.FilesLayer(p.Entries, run.Epoch)
	if err != nil {
		return nil, err
	}
	return append(layers, layer), nil
}
