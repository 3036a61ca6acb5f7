// Package gobuild builds Go programs for images.
package gobuild

import (
	"context"
	"os"
	"path/filepath"

	"podvirt.dev/images/internal/run"
)

// Program is a Go program.
type Program struct {
	Dir     string // a directory inside its module
	Package string
	CGO     bool // link the C library of this machine, which must not be newer than that of the image
	Tags    string
}

// Build writes the program to target, without paths, symbols or version control stamps: equal source gives equal bytes.
func Build(ctx context.Context, p Program, target string) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	cgo := "CGO_ENABLED=0"
	if p.CGO {
		cgo = "CGO_ENABLED=1"
	}
	return run.Command(ctx, "env", "-C", p.Dir, "GOWORK=off", cgo, "go", "build", "-trimpath", "-buildvcs=false", "-tags="+p.Tags,
		"-ldflags=-s -w -buildid= -X podvirt.dev/internal/cli.Version=dev", "-o", target, p.Package)
}
