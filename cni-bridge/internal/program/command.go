package program

import (
	"context"

	"podvirt.dev/internal/cli"
)

func asCommand(ctx context.Context, args []string, std cli.Streams) int {
	return exitUsage
}
