package cluster

import (
	"context"
	"errors"
	"io"
)

// Demo does.
func (c *Cluster) Demo(ctx context.Context, out io.Writer) error { return errors.New("later") }
