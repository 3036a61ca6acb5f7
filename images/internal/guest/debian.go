package guest

import (
	"context"
	"errors"

	"podvirt.dev/images/internal/rootfs"
)

func debianRoot() rootfs.Recipe { return rootfs.Recipe{} }

func (b *Builder) debian(ctx context.Context, target string) error { return errors.New("x") }
