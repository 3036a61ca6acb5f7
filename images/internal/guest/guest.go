// Package guest builds the disks of test guests from Debian packages and the files below test/guests.
package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"podvirt.dev/images/internal/rootfs"
	"podvirt.dev/images/internal/store"
)

// revision is part of every key; raise it when this package or package disk changes what it produces.
const revision = 1

// ErrUnknown says that there is no guest of a name.
var ErrUnknown = errors.New("no such guest")

// Builder builds guests. All fields are needed.
type Builder struct {
	Roots      rootfs.Builder
	Repository string // root of this repository
}

// Build returns the path of the guest's qcow2 image, made where the cache has none of this recipe.
func (b *Builder) Build(ctx context.Context, name string) (string, error) {
	builders := map[string]struct {
		build   func(context.Context, string) error
		roots   []rootfs.Recipe
		sources []string
	}{
		"guest-tiny":     {b.tiny, []rootfs.Recipe{tinyRoot()}, []string{"tiny"}},
		"guest-hardware": {b.hardware, []rootfs.Recipe{hardwareRoot()}, []string{"tiny", "hardware"}},
		"guest-debian":   {b.debian, []rootfs.Recipe{tinyRoot(), b.debianRoot()}, []string{"debian"}},
	}
	builder, ok := builders[name]
	if !ok {
		return "", fmt.Errorf("%s: %w", name, ErrUnknown)
	}
	key, err := b.key(builder.sources, builder.roots)
	if err != nil {
		return "", err
	}
	return b.Roots.Store.Ensure(ctx, store.Artefact{Base: name, Key: key, Ext: ".qcow2"}, builder.build)
}

func (b *Builder) key(sources []string, roots []rootfs.Recipe) (string, error) {
	ingredients := []any{revision}
	for _, name := range sources {
		sum, err := store.SumTree(b.source(name))
		if err != nil {
			return "", err
		}
		ingredients = append(ingredients, sum)
	}
	for _, root := range roots {
		key, err := root.Key()
		if err != nil {
			return "", err
		}
		ingredients = append(ingredients, key)
	}
	return store.KeyOf(ingredients)
}

// source names a file of the guests' folder.
func (b *Builder) source(name ...string) string {
	return filepath.Join(append([]string{b.Repository, "test", "guests"}, name...)...)
}

// kernel finds the release of the one kernel in a root file system.
func kernel(root string) (release string, err error) {
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil {
		return "", err
	}
	if len(images) != 1 {
		return "", fmt.Errorf("%d kernels in %s: want one", len(images), root)
	}
	return strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-"), nil
}

// words reads a list: one word per line, # begins a comment.
func words(file string) ([]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list []string
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		list = append(list, strings.Fields(line)...)
	}
	return slices.Clip(list), nil
}
