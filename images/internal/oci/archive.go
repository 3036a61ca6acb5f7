package oci

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Config is what a container of the image runs.
type Config struct {
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string // "uid:gid"
	WorkingDir string
}

// Image puts the layers, lowest first, and the configuration together.
func Image(layers []v1.Layer, c Config, epoch int64) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{
		Architecture: "amd64", OS: "linux", Created: v1.Time{Time: time.Unix(epoch, 0).UTC()},
		RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, User: c.User, WorkingDir: c.WorkingDir},
	})
	if err != nil {
		return nil, err
	}
	addenda := make([]mutate.Addendum, 0, len(layers))
	for _, layer := range layers {
		addenda = append(addenda, mutate.Addendum{Layer: layer, MediaType: types.OCIUncompressedLayer})
	}
	return mutate.Append(img, addenda...)
}

// WriteArchive writes the image as a tar archive with an OCI image layout and, beside it, the manifest.json of
// "docker save": "ctr images import" and "docker load" both take it, and give it the name.
func WriteArchive(target string, img v1.Image, name string) (err error) {
	f, err := os.Create(target)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	aw := &archiveWriter{tw: tar.NewWriter(f), have: map[v1.Hash]bool{}}
	if err := aw.image(img, name); err != nil {
		return fmt.Errorf("writing image %s: %w", name, err)
	}
	return aw.tw.Close()
}

type archiveWriter struct {
	tw   *tar.Writer
	have map[v1.Hash]bool
}

// dockerManifest is the entry of manifest.json in Docker's image format v1.2.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (a *archiveWriter) image(img v1.Image, name string) error {
	docker := dockerManifest{RepoTags: []string{name}}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, layer := range layers {
		if err := a.layer(layer, &docker); err != nil {
			return err
		}
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	if docker.Config, err = a.blob(config); err != nil {
		return err
	}
	return a.indexes(img, name, docker)
}

// indexes writes the files that lead to the blobs.
func (a *archiveWriter) indexes(img v1.Image, name string, docker dockerManifest) error {
	raw, err := img.RawManifest()
	if err != nil {
		return err
	}
	if _, err := a.blob(raw); err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	index := v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType: types.OCIManifestSchema1, Digest: digest, Size: int64(len(raw)),
			Platform:    &v1.Platform{Architecture: "amd64", OS: "linux"},
			Annotations: map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name},
		}},
	}
	return errors.Join(
		a.json("index.json", index),
		a.json("oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}),
		a.json("manifest.json", []dockerManifest{docker}),
	)
}

func (a *archiveWriter) layer(layer v1.Layer, docker *dockerManifest) (err error) {
	digest, err := layer.Digest()
	if err != nil {
		return err
	}
	size, err := layer.Size()
	if err != nil {
		return err
	}
	docker.Layers = append(docker.Layers, blobPath(digest))
	if a.have[digest] {
		return nil
	}
	a.have[digest] = true
	r, err := layer.Compressed()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	return a.file(blobPath(digest), size, r)
}

func (a *archiveWriter) blob(data []byte) (string, error) {
	digest, size, err := v1.SHA256(bytes.NewReader(data))
	if err != nil {
		return "", err
	}
	return blobPath(digest), a.file(blobPath(digest), size, bytes.NewReader(data))
}

func (a *archiveWriter) json(name string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return a.file(name, int64(len(data)), bytes.NewReader(data))
}

func (a *archiveWriter) file(name string, size int64, content io.Reader) error {
	if err := a.tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := io.Copy(a.tw, content)
	return err
}

func blobPath(digest v1.Hash) string {
	return "blobs/" + digest.Algorithm + "/" + digest.Hex
}
