// Package rootfs makes root file systems from Debian packages with mmdebstrap(1). The result is a tar archive whose
// bytes depend on the recipe and on the package versions of the mirror only.
package rootfs

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"podvirt.dev/images/internal/run"
	"podvirt.dev/images/internal/store"
)

// revision is part of every key; raise it when this package changes what it produces from the same recipe.
const revision = 1

// Recipe describes a root file system.
type Recipe struct {
	Name     string
	Suite    string   // Debian's code name
	Variant  string   // of mmdebstrap; "essential" where empty
	Packages []string // besides those of the variant; recommended packages are not followed
	Exclude  []string // path patterns that dpkg leaves out, see dpkg(1) --path-exclude
	Prepare  string   // shell script run when the essential packages are there; $1 is the root directory
	Purge    []string // packages to take out again: dependencies of the wanted ones that nothing uses in a container
	Overlay  string   // directory on this machine whose files are added; its path is no part of the key, its content is
	Finish   string   // shell script run last; $1 is the root directory
}

// Mirrors of Debian; DebianMirror and its security archive are the defaults of a Builder.
const (
	DebianMirror         = "http://deb.debian.org/debian"
	DebianSecurityMirror = "http://deb.debian.org/debian-security"
)

// Builder builds recipes into a store. The zero value of Mirror and Security means Debian's own servers.
type Builder struct {
	Store    *store.Store
	Mirror   string
	Security string
}

// Build returns the path of the recipe's archive and builds it where the store has none of this recipe.
// It needs root. Package versions are those of the day it was built; they are listed in the archive's dpkg status.
func (b Builder) Build(ctx context.Context, r Recipe) (string, error) {
	key, err := r.Key()
	if err != nil {
		return "", err
	}
	artefact := store.Artefact{Base: r.Name + "-rootfs", Key: key, Ext: ".tar"}
	return b.Store.Ensure(ctx, artefact, func(ctx context.Context, path string) error {
		return b.bootstrap(ctx, r, path)
	})
}

// Key identifies what the recipe produces.
func (r Recipe) Key() (string, error) {
	description := struct {
		Recipe   Recipe
		Overlay  string
		Revision int
	}{Recipe: r, Revision: revision}
	if r.Overlay != "" {
		sum, err := store.SumTree(r.Overlay)
		if err != nil {
			return "", err
		}
		description.Overlay, description.Recipe.Overlay = sum, ""
	}
	return store.KeyOf(description)
}

// Unpack returns the directory with the recipe's root file system and unpacks it where it is missing.
func (b Builder) Unpack(ctx context.Context, r Recipe) (string, error) {
	archive, err := b.Build(ctx, r)
	if err != nil {
		return "", err
	}
	key, err := r.Key()
	if err != nil {
		return "", err
	}
	artefact := store.Artefact{Base: r.Name + "-rootfs", Key: key}
	return b.Store.Ensure(ctx, artefact, func(ctx context.Context, path string) error {
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(path, "dev"), 0o755); err != nil {
			return err
		}
		return run.Command(ctx, "tar", "--extract", "--numeric-owner", "--same-permissions", "--file", archive, "--directory", path)
	})
}

func (b Builder) bootstrap(ctx context.Context, r Recipe, target string) error {
	main := "deb " + orElse(b.Mirror, DebianMirror) + " " + r.Suite + " main"
	security := "deb " + orElse(b.Security, DebianSecurityMirror) + " " + r.Suite + "-security main"
	return run.Command(ctx, "mmdebstrap", append(b.options(r), "--format=tar", "--skip=output/dev", r.Suite, target, main, security)...)
}

func (b Builder) options(r Recipe) []string {
	args := []string{
		"--quiet", "--mode=root", "--variant=" + orElse(r.Variant, "essential"),
		"--keyring=/usr/share/keyrings/debian-archive-keyring.gpg",
		`--aptopt=APT::Install-Recommends "false"`, `--aptopt=Acquire::Languages "none"`,
		"--include=" + strings.Join(r.Packages, ","),
	}
	for _, pattern := range r.Exclude {
		args = append(args, "--dpkgopt=path-exclude="+pattern)
	}
	if r.Prepare != "" {
		args = append(args, "--essential-hook="+r.Prepare)
	}
	if len(r.Purge) > 0 {
		args = append(args, "--customize-hook="+purgeScript(r.Purge))
	}
	if r.Overlay != "" {
		args = append(args, `--customize-hook=cp -r --preserve=mode --no-target-directory "`+r.Overlay+`" "$1"`)
	}
	if r.Finish != "" {
		args = append(args, "--customize-hook="+r.Finish)
	}
	return args
}

// purgeScript removes packages without running their maintainer scripts: some of those need what is removed with them.
func purgeScript(packages []string) string {
	names := strings.Join(packages, " ")
	return `for p in ` + names + `; do rm -f "$1/var/lib/dpkg/info/$p".p*rm "$1/var/lib/dpkg/info/$p":*.p*rm; done; ` +
		`chroot "$1" dpkg --force-all --no-triggers --purge ` + names + ` >/dev/null 2>&1`
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
