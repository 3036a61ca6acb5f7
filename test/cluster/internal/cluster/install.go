package cluster

import (
	"context"
	"errors"
	"io"
)

// Install does.
func (c *Cluster) Install(ctx context.Context) error { return errors.New("later") }

// Demo does.
func (c *Cluster) Demo(ctx context.Context, out io.Writer) error { return errors.New("later") }
