package assemble

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"podvirt.dev/images/internal/oci"
	"podvirt.dev/images/internal/recipe"
	"podvirt.dev/images/internal/run"
	"podvirt.dev/images/internal/store"
)

// learnRevision is part of the key; raise it when the script below changes what it produces.
const learnRevision = 1

// learnScript runs a command in something like a container of the image, in a mount namespace that goes with the shell.
// $1 is the unpacked root file system, $2 a program to add and $3 its place, $4 the user, $5 the directory for the
// results; the command follows, and gets the directory as its last argument.
const learnScript = `set -eu
root=$1 program=$2 place=$3 user=$4 results=$5
shift 5
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o "lowerdir=$root,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
cp "$program" "/mnt/root$place"
mount -t proc proc /mnt/root/proc
for dir in dev run tmp; do mount -t tmpfs -o mode=1777 tmpfs "/mnt/root/$dir"; done
mknod -m 666 /mnt/root/dev/null c 1 3
mknod -m 666 /mnt/root/dev/zero c 1 5
mknod -m 666 /mnt/root/dev/urandom c 1 9
chroot "--userspec=$user" /mnt/root "$@" /tmp/results
cp /mnt/root/tmp/results/* "$results"`

// learn returns the files by which an image knows beforehand what it would else find out at every start. They are made
// once for a root file system, not again for a new program: they speak of what the packages can do.
func (b Builder) learn(ctx context.Context, image recipe.Image, p parts) ([]oci.Entry, error) {
	if image.Learn == nil {
		return nil, nil
	}
	key, err := store.KeyOf([]any{learnRevision, image.Learn, p.RootDigest})
	if err != nil {
		return nil, err
	}
	artefact := store.Artefact{Base: image.Name + "-learnt", Key: key}
	dir, err := b.Roots.Store.Ensure(ctx, artefact, func(ctx context.Context, path string) error {
		return b.runLearn(ctx, image, path)
	})
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return nil, err
	}
	var entries []oci.Entry
	for _, file := range files {
		entries = append(entries, oci.Entry{Path: image.Learn.Dir + "/" + filepath.Base(file), Mode: 0o644, Source: file})
	}
	return entries, nil
}

func (b Builder) runLearn(ctx context.Context, image recipe.Image, target string) error {
	root, err := b.Roots.Unpack(ctx, *image.Root)
	if err != nil {
		return err
	}
	if err := os.Mkdir(target, 0o755); err != nil {
		return err
	}
	program := image.Learn.Command[0]
	args := []string{
		"--mount", "--propagation", "private", "sh", "-c", learnScript, "learn",
		root, b.Roots.Store.Path(filepath.Join("programs", filepath.Base(program))), program, image.User, target,
	}
	if err := run.Command(ctx, "unshare", append(args, image.Learn.Command...)...); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(target, "*"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := fixTimes(file); err != nil {
			return err
		}
	}
	return nil
}

// fixTimes replaces the times of the files that libvirt has looked at, which every build would change. Whoever uses the
// answers puts those of the files in the container there.
func fixTimes(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	times := regexp.MustCompile(`<(qemuctime|selfctime)>[0-9]+<`)
	return os.WriteFile(file, times.ReplaceAll(text, []byte("<$1>"+strconv.Itoa(run.Epoch)+"<")), 0o644)
}
