package journal

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestEntries(t *testing.T) {
	s := New(t.TempDir())
	if _, err := s.Load("c", "eth0"); !errors.Is(err, ErrNone) {
		t.Errorf("Load of nothing = %v; want ErrNone", err)
	}
	must(t, s.Remove("c", "eth0"))
	want := Entry{
		Version: Version, Network: "pods", ContainerID: "c", IfName: "eth0", Netns: "/x", NetnsInode: 7, Done: true,
		NICs:    []NIC{{Tap: "tap0", Addresses: []string{"10.0.2.1/24"}, Rules: 3}},
		Sysctls: []Sysctl{{Path: "net/ipv4/ip_forward", Before: "0", After: "1"}},
	}
	must(t, s.Save(want))
	got, err := s.Load("c", "eth0")
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Load: %v (-want,+got)\n%s", err, diff)
	}
	must(t, s.Remove("c", "eth0"))
	if all, err := s.All(); len(all) != 0 || err != nil {
		t.Errorf("All = %v, %v; want nothing", all, err)
	}
}

func TestOneBadFileHidesNoOther(t *testing.T) {
	dir := t.TempDir()
	s := New(dir)
	must(t, s.Save(Entry{ContainerID: "good", IfName: "eth0"}))
	for name, content := range map[string]string{"newer-eth0.json": `{"version":99}`, "broken-eth0.json": `{`} {
		must(t, os.WriteFile(filepath.Join(dir, "attachments", name), []byte(content), 0o600))
	}
	all, err := s.All()
	if len(all) != 1 || all[0].ContainerID != "good" || err == nil {
		t.Errorf("All = %v, %v; want the good one and an error about the others", all, err)
	}
	if _, err := s.Load("newer", "eth0"); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("Load of another version = %v; want an error that says so", err)
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	s := New(dir)
	unlock, err := s.Lock("c", "eth0", time.Second)
	must(t, err)
	if _, err := s.Lock("c", "eth0", 50*time.Millisecond); !errors.Is(err, ErrBusy) {
		t.Errorf("second Lock = %v; want ErrBusy", err)
	}
	other, err := s.Lock("d", "eth0", 0)
	must(t, err)
	must(t, other())

	must(t, s.Save(Entry{ContainerID: "c", IfName: "eth0"}))
	must(t, unlock())
	if _, err := os.Stat(s.lockFile("c", "eth0")); err != nil {
		t.Errorf("lock of an attachment that exists: %v; want the file kept", err)
	}
	again, err := s.Lock("c", "eth0", time.Second)
	must(t, err)
	must(t, s.Remove("c", "eth0"))
	must(t, again())
	if left, _ := filepath.Glob(filepath.Join(dir, "locks", "*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestTidy(t *testing.T) {
	dir := t.TempDir()
	s := New(dir)
	must(t, s.Save(Entry{ContainerID: "kept", IfName: "eth0"}))
	unlock, err := s.Lock("kept", "eth0", 0)
	must(t, err)
	must(t, unlock())
	temporary := filepath.Join(dir, "attachments", ".dead-eth0.json.123")
	stale := filepath.Join(dir, "locks", "dead-eth0")
	for _, name := range []string{temporary, stale} {
		must(t, os.WriteFile(name, nil, 0o600))
	}
	must(t, s.Tidy(time.Now()))
	if _, err := os.Stat(temporary); err != nil {
		t.Error("a temporary file of a living writer was removed")
	}
	must(t, s.Tidy(time.Now().Add(time.Hour)))
	for name, want := range map[string]bool{temporary: false, stale: false, s.lockFile("kept", "eth0"): true, s.file("kept", "eth0"): true} {
		if _, err := os.Stat(name); (err == nil) != want {
			t.Errorf("%s: %v; want it there: %v", name, err, want)
		}
	}
}

func TestStamp(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "yet")
	s := New(dir)
	for _, now := range []time.Time{time.Now(), time.Now().Add(time.Hour)} { // made, then renewed
		must(t, s.Stamp(now))
		info, err := os.Stat(filepath.Join(dir, Called))
		must(t, err)
		if diff := info.ModTime().Sub(now).Abs(); diff > time.Second {
			t.Errorf("stamp says %s; want %s", info.ModTime(), now)
		}
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("state directory has mode %v, %v; want 0700", info.Mode(), err)
	}
}
