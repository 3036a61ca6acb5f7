package installer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/internal/atomicfile"
)

// probeTimeout bounds the trial run of a new binary.
const probeTimeout = 20 * time.Second

// InstallBinary puts the program source into the directory of plugins: written beside, run once with the verb VERSION,
// renamed. A binary that runs at this moment keeps its inode. It says whether anything changed; on error the old one stays.
func InstallBinary(ctx context.Context, source, dir string) (changed bool, err error) {
	target := filepath.Join(dir, api.CNIType)
	if same, err := sameContent(source, target); err != nil || same {
		return false, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, fmt.Errorf("%w; is it read-only? network.bin-dir names another directory", err)
	}
	staged, err := stage(source, dir)
	if err != nil {
		return false, fmt.Errorf("%w; network.bin-dir names another directory", err)
	}
	defer func() {
		if removeErr := os.Remove(staged); removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
	}()
	if err := probe(ctx, staged); err != nil {
		return false, err
	}
	if err := os.Rename(staged, target); err != nil {
		return false, fmt.Errorf("installing the plugin: %w", err)
	}
	return true, atomicfile.SyncDir(dir)
}

// stage copies the program beside its target, complete and executable.
func stage(source, dir string) (name string, err error) {
	in, err := os.Open(source)
	if err != nil {
		return "", fmt.Errorf("installing the plugin: %w", err)
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.CreateTemp(dir, "."+api.CNIType+".*")
	if err != nil {
		return "", fmt.Errorf("installing the plugin: %w", err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Chmod(0o755), out.Sync(), out.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("installing the plugin: %w", err), os.Remove(out.Name()))
	}
	return out.Name(), nil
}

// probe runs the plugin with the verb VERSION, so that one that cannot run on this node is never in the chain.
func probe(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = []string{"CNI_COMMAND=VERSION"}
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("the plugin does not run on this node, the installed one stays: %w", err)
	}
	var answer struct {
		SupportedVersions []string `json:"supportedVersions"`
	}
	if err := json.Unmarshal(out, &answer); err != nil || !slices.Contains(answer.SupportedVersions, "1.0.0") {
		return fmt.Errorf("the plugin does not run on this node, the installed one stays: VERSION answered %q", out)
	}
	return nil
}

func sameContent(a, b string) (bool, error) {
	one, err := os.Open(a)
	if err != nil {
		return false, fmt.Errorf("reading our own program: %w", err)
	}
	defer func() { _ = one.Close() }()
	two, err := os.Open(b)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the installed plugin: %w", err)
	}
	defer func() { _ = two.Close() }()
	info, err := two.Stat()
	if err != nil || info.Mode().Perm()&0o111 == 0 {
		return false, err
	}
	const chunk = 1 << 18
	x, y := make([]byte, chunk), make([]byte, chunk)
	for {
		n, err1 := io.ReadFull(one, x)
		m, err2 := io.ReadFull(two, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		end1 := errors.Is(err1, io.EOF) || errors.Is(err1, io.ErrUnexpectedEOF)
		end2 := errors.Is(err2, io.EOF) || errors.Is(err2, io.ErrUnexpectedEOF)
		if end1 || end2 {
			return end1 && end2, nil
		}
		if err := errors.Join(err1, err2); err != nil {
			return false, err
		}
	}
}
