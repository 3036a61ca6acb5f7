package disks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/domain"
)

// createEmpty makes a new sparse disk, unless it is there from an earlier start of the container.
func (m Maker) createEmpty(ctx context.Context, path string, size int64) error {
	if err := m.roomFor(size); err != nil {
		return err
	}
	return m.create(ctx, path, "-f", "qcow2", "--", path, strconv.FormatInt(size, 10))
}

// roomFor refuses an empty disk that is larger than the whole file system of the scratch volume. That an emptyDir has a
// smaller limit the parser has seen to.
func (m Maker) roomFor(size int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(m.Scratch, &st); err != nil {
		return fmt.Errorf("%s: %w", m.Scratch, err)
	}
	if total := int64(st.Blocks) * st.Bsize; size > total {
		return fmt.Errorf("empty=%d: %s has %d bytes", size, m.Scratch, total)
	}
	return nil
}

// overlay puts a qcow2 layer over the disk, to which the guest's writes go.
func (m Maker) overlay(ctx context.Context, d *domain.Disk) error {
	path := filepath.Join(m.Scratch, d.Options.Name+".overlay.qcow2")
	if d.Options.Overlay == api.OverlayStart {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	base := domain.Backing{Source: d.Source, Block: d.Block, Format: d.Format}
	if err := m.create(ctx, path, "-f", "qcow2", "-b", base.Source, "-F", base.Format, "--", path); err != nil {
		return err
	}
	d.Source, d.Block, d.Format, d.Backing = path, false, "qcow2", &base
	return nil
}

// create runs qemu-img create under another name and renames: a launcher that dies in between leaves no half image.
func (m Maker) create(ctx context.Context, path string, args ...string) error {
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	temporary := path + ".new"
	for i, a := range args {
		if a == path {
			args[i] = temporary
		}
	}
	cmd := exec.CommandContext(ctx, m.QemuImg, append([]string{"create", "-q"}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		_ = os.Remove(temporary)
		return &CommandError{Args: cmd.Args, Stderr: strings.TrimSpace(stderr.String()), Err: err}
	}
	return os.Rename(temporary, path)
}

// CommandError is a failure of qemu-img.
type CommandError struct {
	Args   []string
	Stderr string
	Err    error
}

// Error returns the command's last words, or how it ended where it said nothing.
func (e *CommandError) Error() string {
	if e.Stderr == "" {
		return fmt.Sprintf("%s: %v", filepath.Base(e.Args[0]), e.Err)
	}
	return e.Stderr
}

// Unwrap returns how the command ended.
func (e *CommandError) Unwrap() error { return e.Err }
