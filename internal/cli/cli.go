// Package cli is the common edge of every podvirt binary: signals, the logger, and the exit code.
// A main function is one line, os.Exit(cli.Main(run)), and the program below it never calls os.Exit.
package cli

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Streams are the standard streams of the process.
type Streams struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
}

// Run is a whole program: args come without the program's name, and the result is the exit code.
// The context carries the logger and ends at the first SIGINT or SIGTERM.
type Run func(ctx context.Context, args []string, std Streams) int

// Version is set by the linker: -X podvirt.dev/internal/cli.Version=v1.0.0.
var Version = "devel"

// Main runs a program with the process's own arguments and streams.
// A second signal kills the process: the default action is restored as soon as the first one was seen.
func Main(run Run) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	std := Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}
	return run(WithLogger(ctx, std.Err, 0), os.Args[1:], std)
}
