// Package guest builds the disks of test guests.
package guest

import (
	"context"
	"errors"
	"podvirt.dev/images/internal/rootfs"
)

// Builder x.
type Builder struct {
	Roots   rootfs.Builder
	Sources string
}

// Build x.
func (b *Builder) Build(ctx context.Context, name string) (string, error) { return "", errors.New("x") }
