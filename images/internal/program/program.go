// Package program is the command line of images.
package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"podvirt.dev/images/internal/assemble"
	"podvirt.dev/images/internal/guest"
	"podvirt.dev/images/internal/recipe"
	"podvirt.dev/images/internal/rootfs"
	"podvirt.dev/images/internal/store"
	"podvirt.dev/internal/cli"
)

const usage = `usage: images [flags] COMMAND [NAME...]

Commands:
  list              the images that can be built
  build NAME...     build image archives; "all" builds every one but the optional csi-snapshotter and snapshot-controller
  digest NAME...    print the manifest digest of built images, one "NAME DIGEST" per line
  rootfs NAME       print the directory with an image's root file system, unpacked, without podvirt's programs;
                    "kernel" is the kernel and the modules for the tests below test/kernel, "mtty" sample drivers for it
  disk NAME         print the path of a test guest's qcow2 image; it is built where it is missing

Archives are $PODVIRT_CACHE/images/NAME.tar (default of PODVIRT_CACHE: /var/cache/podvirt).

Flags:
`

// Exit codes: done, failed, wrong usage.
const (
	exitFailed = 1
	exitUsage  = 2
)

// errUsage marks mistakes on the command line.
var errUsage = errors.New("wrong usage")

// Run is the program.
func Run(ctx context.Context, args []string, std cli.Streams) int {
	err := run(ctx, args, std)
	switch {
	case err == nil || errors.Is(err, pflag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprintf(std.Err, "images: %v\n", err)
		return exitUsage
	default:
		fmt.Fprintf(std.Err, "images: %v\n", err)
		return exitFailed
	}
}

type options struct {
	cache    string
	mirror   string
	security string
	fresh    bool
}

func run(ctx context.Context, args []string, std cli.Streams) error {
	var o options
	flags := pflag.NewFlagSet("images", pflag.ContinueOnError)
	flags.SetOutput(std.Err)
	flags.Usage = func() { fmt.Fprint(std.Err, usage, flags.FlagUsages()) }
	flags.StringVar(&o.cache, "cache", fromEnv("PODVIRT_CACHE", "/var/cache/podvirt"), "directory of built things")
	flags.StringVar(&o.mirror, "mirror", fromEnv("PODVIRT_MIRROR", rootfs.DebianMirror), "Debian mirror")
	flags.StringVar(&o.security, "security-mirror", fromEnv("PODVIRT_SECURITY_MIRROR", rootfs.DebianSecurityMirror),
		"mirror of Debian's security archive")
	flags.BoolVar(&o.fresh, "fresh", false, "build root file systems and disks again, with today's package versions")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if flags.NArg() == 0 {
		flags.Usage()
		return fmt.Errorf("%w: which command?", errUsage)
	}
	builder, disks, err := o.builder(ctx, std.Err)
	if err != nil {
		return err
	}
	p := program{builder: builder, disks: disks, std: std}
	return p.command(ctx, flags.Arg(0), flags.Args()[1:])
}

func (o options) builder(ctx context.Context, log io.Writer) (assemble.Builder, *guest.Builder, error) {
	repository, err := repository(ctx)
	if err != nil {
		return assemble.Builder{}, nil, err
	}
	dir := filepath.Join(o.cache, "images")
	parts, err := store.Open(filepath.Join(dir, "parts"), store.Options{Log: log, Fresh: o.fresh})
	if err != nil {
		return assemble.Builder{}, nil, err
	}
	roots := rootfs.Builder{Store: parts, Mirror: o.mirror, Security: o.security}
	disks := &guest.Builder{Roots: roots, Repository: repository}
	return assemble.Builder{Repository: repository, Dir: dir, Roots: roots, Disks: disks}, disks, nil
}

// repository is the directory of the module that the program runs in.
func repository(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "podvirt.dev")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("images must be run inside podvirt's repository: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

type program struct {
	builder assemble.Builder
	disks   *guest.Builder
	std     cli.Streams
}

func (p program) command(ctx context.Context, command string, names []string) error {
	commands := map[string]func(context.Context, []recipe.Image) error{
		"build": p.build, "digest": p.digest, "rootfs": p.rootfs, "disk": p.disk,
	}
	if command == "list" {
		for _, image := range recipe.All() {
			fmt.Fprintln(p.std.Out, image.Name)
		}
		return nil
	}
	do, ok := commands[command]
	if !ok {
		return fmt.Errorf("%w: no command %q", errUsage, command)
	}
	table := recipe.All()
	if command == "rootfs" {
		table = append(table, recipe.Kernel(), recipe.Samples())
	}
	images, err := find(table, names)
	if err != nil {
		return err
	}
	return do(ctx, images)
}

// find returns the named images of a table, in its order.
func find(table []recipe.Image, names []string) ([]recipe.Image, error) {
	if len(names) == 0 {
		return nil, fmt.Errorf("%w: which image?", errUsage)
	}
	for _, name := range names {
		known := slices.ContainsFunc(table, func(image recipe.Image) bool { return image.Name == name })
		if !known && name != "all" {
			return nil, fmt.Errorf("%w: no image %q", errUsage, name)
		}
	}
	return slices.DeleteFunc(table, func(image recipe.Image) bool {
		return !slices.Contains(names, image.Name) && (image.Optional || !slices.Contains(names, "all"))
	}), nil
}

// build builds what it can: an image that fails does not keep the others from being built.
func (p program) build(ctx context.Context, images []recipe.Image) error {
	var failed []error
	for _, image := range images {
		start := time.Now()
		result, err := p.builder.Build(ctx, image)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		state := "unchanged"
		if result.Fresh {
			state = fmt.Sprintf("built in %.1f s", time.Since(start).Seconds())
		}
		fmt.Fprintf(p.std.Out, "%s %s %s (%s)\n", result.Name, result.Digest, result.Archive, state)
	}
	return errors.Join(failed...)
}

func (p program) digest(_ context.Context, images []recipe.Image) error {
	for _, image := range images {
		known, err := p.builder.Known(image)
		if err != nil {
			return fmt.Errorf("image %s is not built: %w", image.Name, err)
		}
		fmt.Fprintln(p.std.Out, known.Name, known.Digest)
	}
	return nil
}

func (p program) rootfs(ctx context.Context, images []recipe.Image) error {
	for _, image := range images {
		if image.Root == nil {
			return fmt.Errorf("%w: image %s has no root file system", errUsage, image.Name)
		}
		dir, err := p.builder.Roots.Unpack(ctx, *image.Root)
		if err != nil {
			return err
		}
		fmt.Fprintln(p.std.Out, dir)
	}
	return nil
}

func (p program) disk(ctx context.Context, images []recipe.Image) error {
	for _, image := range images {
		path, err := p.disks.Build(ctx, image.Name)
		if err != nil {
			return err
		}
		fmt.Fprintln(p.std.Out, path)
	}
	return nil
}

func fromEnv(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}
