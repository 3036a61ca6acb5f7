// Package run calls the tools that build images.
package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// Epoch is the modification time, in seconds since 1970, of everything in an image: 2026-01-01 UTC.
const Epoch = 1767225600

// Error is a tool that failed, with what it wrote.
type Error struct {
	Command string
	Output  string
	Err     error
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s: %v: %s", e.Command, e.Err, strings.TrimSpace(e.Output))
}

func (e *Error) Unwrap() error { return e.Err }

// Command runs a tool and waits for it. Its output is kept for the error, an *Error.
func Command(ctx context.Context, name string, args ...string) error {
	return start(ctx, nil, name, args)
}

// WithInput is Command with a file as standard input.
func WithInput(ctx context.Context, input, name string, args ...string) (err error) {
	f, err := os.Open(input)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return start(ctx, f, name, args)
}

func start(ctx context.Context, input io.Reader, name string, args []string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "SOURCE_DATE_EPOCH="+strconv.Itoa(Epoch),
		"PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	var output bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = input, &output, &output
	if err := cmd.Run(); err != nil {
		return &Error{Command: name, Output: output.String(), Err: err}
	}
	return nil
}
