package importer

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"podvirt.dev/csi-hostpath/internal/fetch"
	"podvirt.dev/csi-hostpath/internal/image"
)

// diskDir is where an image of a registry has its disk.
const diskDir = "disk/"

// container is an image of a registry.
type container struct {
	reference name.Reference
	transport http.RoundTripper
	layers    []v1.Descriptor // the uppermost first
	digest    v1.Hash
}

// copyRegistry fills the volume with the one disk of an image and returns the image's digest (ST-044).
func (w *worker) copyRegistry(ctx context.Context, options fetch.Options) (string, error) {
	found, err := w.resolve(ctx, options)
	if err != nil {
		return "", err
	}
	total := int64(0)
	for _, layer := range found.layers {
		total += layer.Size
	}
	w.total.Store(total)
	options.Transport, options.Headers, options.User, options.Password = found.transport, http.Header{}, "", ""
	options.Fixed = true
	if disks := found.disks(); len(disks) > 0 {
		return found.digest.String(), w.copyArtifact(ctx, options, found, disks)
	}
	files := &members{wanted: w.job.Member, seen: map[string]bool{}}
	for _, layer := range found.layers {
		options.URL = found.blob(layer.Digest)
		err := w.copyBlob(ctx, options, layer.Digest, func(from io.Reader) error { return w.copyLayer(from, files) })
		if err != nil {
			return "", err
		}
	}
	if err := files.check(); err != nil {
		return "", err
	}
	return found.digest.String(), w.out.Sync()
}

// blob is the URL of a layer.
func (c *container) blob(digest v1.Hash) string {
	repository := c.reference.Context()
	return fmt.Sprintf("%s://%s/v2/%s/blobs/%s", repository.Scheme(), repository.RegistryStr(), repository.RepositoryStr(), digest)
}

// titleKey is the annotation that holds the name of a file in an artifact (OCI image spec, annotations).
const titleKey = "org.opencontainers.image.title"

// disks are the layers that are no file trees, by their names: those of an OCI artifact that is a disk.
func (c *container) disks() map[string]v1.Descriptor {
	found := map[string]v1.Descriptor{}
	for _, layer := range c.layers {
		if layer.MediaType.IsLayer() {
			continue
		}
		name := layer.Annotations[titleKey]
		if name == "" {
			name = layer.Digest.String()
		}
		found[name] = layer
	}
	return found
}

// copyArtifact fills the volume with a layer that is a disk: the named one, or the only one.
func (w *worker) copyArtifact(ctx context.Context, options fetch.Options, found *container, disks map[string]v1.Descriptor) error {
	names := slices.Sorted(maps.Keys(disks))
	wanted := w.job.Member
	if wanted == "" && len(names) == 1 {
		wanted = names[0]
	}
	layer, ok := disks[wanted]
	switch list := strings.Join(names, ", "); {
	case wanted == "":
		return image.Refused("podvirt.dev/import-member is needed; the source holds: " + list)
	case !ok:
		return image.Refused(fmt.Sprintf("%q not found; the source holds: %s", wanted, list))
	}
	options.URL = found.blob(layer.Digest)
	w.total.Store(layer.Size)
	err := w.copyBlob(ctx, options, layer.Digest, func(from io.Reader) error {
		return image.Copy(from, image.Options{
			Size: w.job.Size, Format: w.job.Format, Compression: w.job.Compression, Length: layer.Size, To: counted{w},
			Told: func(info image.Info) { w.info.Store(&info) },
		})
	})
	if err != nil {
		return err
	}
	return w.out.Sync()
}

// resolve finds the image, as often as it takes.
func (w *worker) resolve(ctx context.Context, options fetch.Options) (*container, error) {
	pause := w.job.Tuning.FirstPause
	if pause == 0 {
		pause = fetch.FirstPause
	}
	for {
		found, err := w.job.find(ctx, options)
		var refused image.Refused
		if err == nil || errors.As(err, &refused) || ctx.Err() != nil {
			return found, err
		}
		options.Retrying(err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
		pause = min(2*pause, fetch.LastPause)
	}
}

func (j *job) find(ctx context.Context, options fetch.Options) (*container, error) {
	var strictness []name.Option
	if j.Insecure {
		strictness = append(strictness, name.Insecure)
	}
	reference, err := name.ParseReference(strings.TrimPrefix(j.URL, "docker://"), strictness...)
	if err != nil {
		return nil, image.Refused(err.Error())
	}
	base := &secure{next: options.NewTransport(), plain: j.Insecure}
	repository := reference.Context()
	rt, err := transport.NewWithContext(ctx, repository.Registry, j.login(), base, []string{repository.Scope(transport.PullScope)})
	if err != nil {
		return nil, registryError(err)
	}
	found, err := remote.Get(reference, remote.WithContext(ctx), remote.WithTransport(rt), remote.WithPlatform(v1.Platform{OS: "linux", Architecture: j.Arch}))
	if err != nil {
		return nil, registryError(err)
	}
	if found.MediaType.IsIndex() {
		if err := hasArch(found, j.Arch); err != nil {
			return nil, err
		}
	}
	chosen, err := found.Image()
	if err != nil {
		return nil, registryError(err)
	}
	manifest, err := chosen.Manifest()
	if err != nil {
		return nil, registryError(err)
	}
	digest, err := chosen.Digest()
	if err != nil {
		return nil, registryError(err)
	}
	layers := slices.Clone(manifest.Layers)
	slices.Reverse(layers)
	return &container{reference: reference, transport: rt, layers: layers, digest: digest}, nil
}

func (j *job) login() authn.Authenticator {
	switch {
	case j.Token != "":
		return &authn.Bearer{Token: j.Token}
	case j.User != "" || j.Password != "":
		return &authn.Basic{Username: j.User, Password: j.Password}
	}
	return authn.Anonymous
}

// hasArch says what an index has when it is not what is wanted.
func hasArch(found *remote.Descriptor, wanted string) error {
	index, err := found.ImageIndex()
	if err != nil {
		return registryError(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return registryError(err)
	}
	var has []string
	for _, entry := range manifest.Manifests {
		if entry.Platform != nil && entry.Platform.OS == "linux" {
			has = append(has, entry.Platform.Architecture)
		}
	}
	if !slices.Contains(has, wanted) {
		return image.Refused(fmt.Sprintf("index has %s, not %s; see podvirt.dev/import-arch", strings.Join(has, ", "), wanted))
	}
	return nil
}

// registryError tells what will not change from what may.
func registryError(err error) error {
	if said, ok := errors.AsType[*transport.Error](err); ok {
		if said.StatusCode >= 400 && said.StatusCode < 500 && said.StatusCode != http.StatusTooManyRequests && said.StatusCode != http.StatusRequestTimeout {
			return image.Refused(fmt.Sprintf("the registry: %d %s", said.StatusCode, http.StatusText(said.StatusCode)))
		}
		return err
	}
	err = fetch.Lasting(err)
	if permanent, ok := errors.AsType[fetch.Permanent](err); ok {
		return image.Refused(string(permanent))
	}
	return err
}

// secure refuses requests that anybody could read, unless the administrator allowed them. The library would fall back to
// plain HTTP for private addresses.
type secure struct {
	next  http.RoundTripper
	plain bool
}

// RoundTrip makes a request.
func (s *secure) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !s.plain {
		return nil, fetch.Permanent("plain HTTP is for registries in storage.import.insecure-registries and claims with podvirt.dev/import-insecure")
	}
	return s.next.RoundTrip(r)
}

// copyBlob reads one layer to its end. Its digest is that of all its bytes.
func (w *worker) copyBlob(ctx context.Context, options fetch.Options, digest v1.Hash, read func(io.Reader) error) error {
	if err := w.open(ctx, options, fetch.Pin{}, 0); err != nil {
		return err
	}
	defer w.stream.Load().Close()
	sum := sha256.New()
	w.hashes = map[string]hash.Hash{"sha256": sum}
	if err := read(source{w}); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, source{w}); err != nil {
		return err
	}
	if got := fmt.Sprintf("sha256:%x", sum.Sum(nil)); got != digest.String() {
		return image.Refused(fmt.Sprintf("layer differs: expected %s, got %s", digest, got))
	}
	return nil
}

// copyLayer copies the disk, if it is in this layer.
func (w *worker) copyLayer(from io.Reader, files *members) error {
	plain, err := image.Unpack(from, w.job.Size)
	if err != nil {
		return err
	}
	layer := tar.NewReader(plain)
	for {
		header, err := layer.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return badLayer(err)
		}
		if !files.take(header) {
			continue
		}
		err = image.Copy(layer, image.Options{
			Size: w.job.Size, Format: w.job.Format, Compression: w.job.Compression, Length: header.Size, To: counted{w},
			Told: func(info image.Info) { w.info.Store(&info) },
		})
		if err != nil {
			return badLayer(err)
		}
	}
	files.endLayer()
	return nil
}

// badLayer tells a layer that is none from a connection that broke.
func badLayer(err error) error {
	var transport *image.TransportError
	var refused image.Refused
	if errors.As(err, &transport) || errors.As(err, &refused) || !errors.Is(err, tar.ErrHeader) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return image.Refused("damaged layer: " + err.Error())
}

// members are the files below disk/ that were seen, the uppermost layer first. Only ordinary files count: links, devices
// and names that leave the directory are never followed.
type members struct {
	wanted string
	seen   map[string]bool // also what a layer above has removed
	files  []string
	copied string
	hides  bool // this layer hides all of disk/ in those below
	hidden bool
}

// take decides whether an entry is the disk.
func (m *members) take(header *tar.Header) bool {
	file := strings.TrimPrefix(path.Clean("/"+header.Name), "/")
	inside, ok := strings.CutPrefix(file, diskDir)
	if !ok || m.hidden {
		return false
	}
	dir, base := path.Split(inside)
	if base == ".wh..wh..opq" {
		m.hides = true
		return false
	}
	if removed, ok := strings.CutPrefix(base, ".wh."); ok {
		m.seen[dir+removed] = true
		return false
	}
	if header.Typeflag != tar.TypeReg || m.seen[inside] {
		return false
	}
	m.seen[inside] = true
	m.files = append(m.files, inside)
	if m.copied != "" || m.wanted != "" && m.wanted != inside && m.wanted != file {
		return false
	}
	m.copied = inside
	return true
}

func (m *members) endLayer() { m.hidden = m.hidden || m.hides }

// check says why there is no disk, or more than one.
func (m *members) check() error {
	list := strings.Join(m.files, ", ")
	switch {
	case len(m.files) == 0:
		return image.Refused("image has no file below disk/")
	case m.copied == "":
		return image.Refused(fmt.Sprintf("%q not found; the source holds: %s", m.wanted, list))
	case m.wanted == "" && len(m.files) > 1:
		return image.Refused("podvirt.dev/import-member is needed; the source holds: " + list)
	}
	return nil
}
