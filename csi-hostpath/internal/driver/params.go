package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/filesystem"
	"podvirt.dev/csi-hostpath/internal/pool"
	"podvirt.dev/csi-hostpath/internal/poolconfig"
	"podvirt.dev/csi-hostpath/internal/volume"
	"podvirt.dev/csi-hostpath/internal/words"
)

// Keys that external-provisioner adds with --extra-create-metadata.
const (
	paramClaimName      = "csi.storage.k8s.io/pvc/name"
	paramClaimNamespace = "csi.storage.k8s.io/pvc/namespace"
	reservedParams      = "csi.storage.k8s.io/"
)

// Annotations of a claim that shape a new volume (storage.md 2.1).
const (
	annotationContent       = api.Prefix + "content"
	annotationPreallocation = api.Prefix + "preallocation"
	annotationShareable     = api.Prefix + "shareable"
	annotationCloneMode     = api.Prefix + "clone-mode"
)

const (
	// defaultSize is for a request that names no size, in bytes.
	defaultSize = 1 << 30
	auto        = "auto"
)

// Words of parameter clone and annotation podvirt.dev/clone-mode.
const (
	cloneReflink = "reflink"
	cloneCopy    = "copy"
)

// classParams are the parameters of a StorageClass (storage.md 2.3).
type classParams struct {
	pool, content, preallocation, hardSize, directIO, clone string
}

// parseClass reads the parameters strictly; the message names class, parameter, and the nearest word.
func parseClass(class string, params map[string]string) (classParams, error) {
	parsed := classParams{content: auto, hardSize: auto, directIO: auto, clone: auto}
	known := map[string]struct {
		to      *string
		allowed []string
	}{
		"pool":          {to: &parsed.pool},
		"content":       {&parsed.content, []string{auto, string(volume.ContentDisk), string(volume.ContentFiles)}},
		"preallocation": {&parsed.preallocation, preallocations()},
		"hardSize":      {&parsed.hardSize, []string{auto, poolconfig.HardSizeProject, poolconfig.HardSizeImage}},
		"directIO":      {&parsed.directIO, []string{auto, "on", "off"}},
		"clone":         {&parsed.clone, []string{auto, cloneReflink, cloneCopy}},
		"crossNode":     {new(string), []string{"allow", "deny"}},
	}
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(params)) {
		if strings.HasPrefix(key, reservedParams) {
			continue
		}
		value, param := params[key], known[key]
		switch {
		case param.to == nil:
			nearest := words.Nearest(key, slices.Sorted(maps.Keys(known)))
			errs = append(errs, fmt.Errorf("StorageClass %s: %s: unknown parameter; nearest: %s", class, key, nearest))
		case param.allowed != nil && !slices.Contains(param.allowed, value):
			errs = append(errs, fmt.Errorf("StorageClass %s: %w", class, notOneOf(key, value, param.allowed)))
		default:
			*param.to = value
		}
	}
	return parsed, invalid(errors.Join(errs...))
}

func notOneOf(key, value string, allowed []string) error {
	return fmt.Errorf("%s: %q: not one of %s; nearest: %s", key, value, strings.Join(allowed, ", "), words.Nearest(value, allowed))
}

func preallocations() []string {
	return []string{string(volume.PreallocateNone), string(volume.PreallocateFalloc), string(volume.PreallocateFull)}
}

// refusal is an error of the caller's whose text, fixed by storage.md, stands alone. It is errInvalid.
type refusal struct{ error }

// Is makes a refusal errInvalid.
func (refusal) Is(target error) bool { return target == errInvalid }

// Unwrap returns the error that was refused.
func (r refusal) Unwrap() error { return r.error }

// invalid marks an error as the caller's; nil stays nil.
func invalid(err error) error {
	if err == nil {
		return nil
	}
	return refusal{err}
}

// correctable is an error whose text stands alone and that an edit of the claim mends. It is errClaim: after InvalidArgument the
// provisioner leaves a claim alone for five minutes, whatever it says by then, unless its StorageClass is made anew.
type correctable struct{ error }

// Is makes the error errClaim.
func (correctable) Is(target error) bool { return target == errClaim }

// Unwrap returns the error.
func (c correctable) Unwrap() error { return c.error }

// newVolume turns a CreateVolume request into the pool's name and what to make there.
func (c *unlockedController) newVolume(ctx context.Context, req *csi.CreateVolumeRequest) (string, volume.Request, error) {
	params := req.GetParameters()
	claim := volume.Claim{Namespace: params[paramClaimNamespace], Name: params[paramClaimName]}
	info, err := claimInfo(ctx, c.opts.Claims, claim)
	if err != nil {
		return "", volume.Request{}, err
	}
	class, err := parseClass(info.Class, params)
	if err != nil {
		return "", volume.Request{}, err
	}
	claim.UID = info.UID
	size, err := sizeOf(req.GetCapacityRange())
	if err != nil {
		return "", volume.Request{}, err
	}
	where, err := c.opts.Pools.ByName(class.pool)
	if err != nil {
		return "", volume.Request{}, fmt.Errorf("%w: %w", errElsewhere, err)
	}
	from, err := c.sourceOf(req)
	if err != nil {
		return "", volume.Request{}, err
	}
	if from != nil && class.content == auto {
		class.content = string(from.from.Content) // "disk if it comes from a disk"
	}
	if mode := info.Annotations[annotationCloneMode]; mode != "" {
		if modes := []string{auto, cloneReflink, cloneCopy}; !slices.Contains(modes, mode) {
			return "", volume.Request{}, correctable{notOneOf(annotationCloneMode, mode, modes)}
		}
		class.clone = mode
	}
	filled, err := c.imports.prepare(ctx, claim, info.Annotations, from != nil)
	if err != nil {
		return "", volume.Request{}, err
	}
	made := volume.Request{Name: req.GetName(), Claim: claim, Size: size, DirectIO: class.directIO, Parameters: stored(params)}
	shaped := shaping{class: class, annotations: info.Annotations, where: where, source: from, filled: filled != nil}
	if err := shape(&made, req.GetVolumeCapabilities(), shaped); err != nil {
		return "", volume.Request{}, err
	}
	if err := from.begin(&made, req, class, where); err != nil {
		return "", volume.Request{}, err
	}
	if filled != nil {
		made.Origin, made.Fill = volume.Origin{Kind: volume.OriginImport, UUID: filled.digest}, filled.fill
	}
	return where.Name, made, from.hold(c.node.unlockedNode, &made, where)
}

func claimInfo(ctx context.Context, claims Claims, claim volume.Claim) (ClaimInfo, error) {
	if claims == nil || claim.Name == "" {
		return ClaimInfo{}, nil
	}
	info, err := claims.Claim(ctx, claim.Namespace, claim.Name)
	if err != nil {
		return ClaimInfo{}, fmt.Errorf("reading claim %s: %w", claim, err)
	}
	return info, nil
}

// stored are the parameters that meta.json keeps.
func stored(params map[string]string) map[string]string {
	kept := map[string]string{}
	for key, value := range params {
		if !strings.HasPrefix(key, reservedParams) {
			kept[key] = value
		}
	}
	if len(kept) == 0 {
		return nil
	}
	return kept
}

func sizeOf(r *csi.CapacityRange) (int64, error) {
	required, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	if required < 0 || limit < 0 {
		return 0, fmt.Errorf("%w: size %d, limit %d", errInvalid, required, limit)
	}
	size := required
	if size == 0 {
		size = defaultSize
		if limit > 0 {
			size = min(size, limit/4096*4096)
		}
	}
	rounded := volume.Round(size)
	switch {
	case rounded < volume.MinSize:
		return 0, fmt.Errorf("%w: %d bytes, the smallest volume has %d", volume.ErrTooLarge, size, volume.MinSize)
	case limit > 0 && rounded > limit:
		return 0, fmt.Errorf("%w: %d bytes are asked for, %d in whole blocks of 4096, the limit is %d", volume.ErrTooLarge, size, rounded, limit)
	}
	return rounded, nil
}

// shaping is what decides about the shape of a new volume beside its capabilities.
type shaping struct {
	class       classParams
	annotations map[string]string
	where       pool.Pool
	source      *source // nil: blank, or filled from outside
	filled      bool
}

// shape fills in mode, content, preallocation and file system.
func shape(r *volume.Request, capabilities []*csi.VolumeCapability, s shaping) error {
	fsType, writers, err := modeOf(r, capabilities)
	if err != nil {
		return err
	}
	if !writers && s.source == nil && !s.filled {
		return fmt.Errorf("%w: a read-only volume without a source would stay empty", errInvalid)
	}
	var ofClass, ofClaim []error
	r.Content, err = s.content(r.Mode)
	ofClaim = append(ofClaim, err)
	r.Preallocation, err = preallocationOf(s.annotations[annotationPreallocation], s.class.preallocation)
	ofClaim = append(ofClaim, err)
	if s.class.hardSize == poolconfig.HardSizeProject {
		ofClass = append(ofClass, fmt.Errorf("StorageClass parameter hardSize: %q: pool %s enforces sizes by %s",
			s.class.hardSize, s.where.Name, s.where.HardSize))
	}
	if r.Preallocation == volume.PreallocateFalloc && s.where.Abilities.FileSystem == filesystem.Btrfs {
		ofClaim = append(ofClaim, fmt.Errorf("%s: %q: falloc is not supported by file system btrfs of pool %s: none, full",
			annotationPreallocation, r.Preallocation, s.where.Name))
	}
	if s.source == nil && r.Mode == volume.ModeFilesystem && (s.where.HardSize == poolconfig.HardSizeImage || s.class.hardSize == poolconfig.HardSizeImage) {
		r.FSType, err = imageType(fsType, *r)
		ofClass = append(ofClass, err)
	}
	all := errors.Join(append(ofClaim, ofClass...)...)
	if errors.Join(ofClaim...) != nil {
		return correctable{all}
	}
	return invalid(all)
}

// content is what the volume holds: a disk where one is imported.
func (s shaping) content(mode volume.Mode) (volume.Content, error) {
	class := s.class.content
	if s.filled && class == auto {
		class = string(volume.ContentDisk)
	}
	content, err := contentOf(mode, s.annotations[annotationContent], class)
	if s.filled && err == nil && content != volume.ContentDisk {
		err = fmt.Errorf("%s: %q: an image is imported into content disk only", annotationContent, content)
	}
	return content, err
}

// imageType is the file system inside the volume's image.
func imageType(asked string, r volume.Request) (string, error) {
	if asked == "" {
		asked = filesystem.Default(r.Size)
	}
	if r.Content == volume.ContentDisk {
		return asked, filesystem.CheckDisk(asked, r.Size)
	}
	return asked, filesystem.Check(asked, r.Size)
}

// modeOf sets the volume mode and returns the file system asked for and whether somebody will write.
func modeOf(r *volume.Request, capabilities []*csi.VolumeCapability) (fsType string, writers bool, err error) {
	for _, capability := range capabilities {
		mode, err := checkCapability(capability)
		if err != nil {
			return "", false, err
		}
		if r.Mode != "" && r.Mode != mode {
			return "", false, fmt.Errorf("%w: a volume is Block or Filesystem, not both", errInvalid)
		}
		r.Mode = mode
		fsType = capability.GetMount().GetFsType()
		writers = writers || !readerOnly(capability)
	}
	return fsType, writers, nil
}

func contentOf(mode volume.Mode, annotation, class string) (volume.Content, error) {
	asked := class
	if annotation != "" {
		asked = annotation
	}
	switch {
	case mode == volume.ModeBlock && annotation == string(volume.ContentFiles):
		return "", fmt.Errorf("%s: %q: a Block volume is always content disk", annotationContent, annotation)
	case mode == volume.ModeBlock, asked == string(volume.ContentDisk):
		return volume.ContentDisk, nil
	case asked == auto, asked == string(volume.ContentFiles):
		return volume.ContentFiles, nil
	}
	return "", notOneOf(annotationContent, annotation, []string{string(volume.ContentDisk), string(volume.ContentFiles)})
}

func preallocationOf(annotation, class string) (volume.Preallocation, error) {
	asked := class
	if annotation != "" {
		asked = annotation
	}
	if asked == "" {
		return volume.PreallocateNone, nil
	}
	if !slices.Contains(preallocations(), asked) {
		return "", notOneOf(annotationPreallocation, asked, preallocations())
	}
	return volume.Preallocation(asked), nil
}
