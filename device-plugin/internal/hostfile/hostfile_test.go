package hostfile

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestKeeperPutsFilesBack(t *testing.T) {
	root := t.TempDir()
	profile := File{Path: filepath.Join(root, "seccomp", "podvirt", "launcher.json"), Content: []byte("{}"), Mode: 0o644}
	hook := File{Path: filepath.Join(root, "bin", "hook"), Content: []byte("#!"), Mode: 0o755}
	keeper := NewKeeper([]File{profile, hook})
	reports := start(t, keeper)
	await(t, "first report", func() bool { return <-reports == nil })

	damage := map[string]func() error{
		"file removed":         func() error { return os.Remove(profile.Path) },
		"file changed":         func() error { return os.WriteFile(hook.Path, []byte("evil"), 0o755) },
		"mode changed":         func() error { return os.Chmod(hook.Path, 0o777) },
		"directory moved away": func() error { return os.Rename(filepath.Dir(profile.Path), filepath.Join(root, "old")) },
		"file replaced by a link": func() error {
			return replaceByLink(hook.Path, filepath.Join(root, "elsewhere"))
		},
	}
	for name, do := range damage {
		t.Run(name, func(t *testing.T) {
			if err := do(); err != nil {
				t.Fatal(err)
			}
			await(t, "files are back", func() bool { return intact(profile) && intact(hook) })
		})
	}
}

func TestKeeperReportsWhatItCannotWrite(t *testing.T) {
	root := t.TempDir()
	blocked := File{Path: filepath.Join(root, "blocked", "f"), Content: []byte("x"), Mode: 0o644}
	if err := os.WriteFile(filepath.Dir(blocked.Path), nil, 0o644); err != nil { // a file where the directory should be
		t.Fatal(err)
	}
	fine := File{Path: filepath.Join(root, "f"), Content: []byte("x"), Mode: 0o644}
	err := NewKeeper([]File{blocked, fine}).Restore()
	if err == nil || !strings.Contains(err.Error(), blocked.Path) {
		t.Errorf("Restore = %v; want an error naming %s", err, blocked.Path)
	}
	if !intact(fine) {
		t.Error("the other file was not written")
	}
}

func start(t *testing.T, keeper *Keeper) <-chan error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	reports := make(chan error, 100)
	done := make(chan error, 1)
	go func() { done <- keeper.Run(ctx, func(err error) { reports <- err }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	return reports
}

func intact(f File) bool {
	info, err := os.Lstat(f.Path)
	if err != nil || info.Mode() != f.Mode {
		return false
	}
	content, err := os.ReadFile(f.Path)
	return err == nil && string(content) == string(f.Content)
}

func replaceByLink(name, target string) error {
	if err := os.WriteFile(target, []byte("#!"), 0o755); err != nil {
		return err
	}
	if err := os.Remove(name); err != nil {
		return err
	}
	return os.Symlink(target, name)
}

// await polls for one second, the time the keeper has.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Second)
	for {
		select {
		case <-deadline:
			t.Fatalf("not within a second: %s", what)
		case <-tick.C:
			if ok() {
				return
			}
		}
	}
}
