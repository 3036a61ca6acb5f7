package program

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"podvirt.dev/internal/atomicfile"
)

// mark is what a launcher leaves for the next one of the same container, which has the guest back by it (VM-125).
// /run/podvirt outlives the container, so that it says of which one it speaks.
type mark struct {
	Container string    `json:"container"` // identity of the container's first process
	Domain    string    `json:"domain"`
	PID       int       `json:"pid"` // of QEMU
	Started   time.Time `json:"started"`
	Boots     int       `json:"boots"`
}

// container identifies this container among those that ran in the Pod: by the start time, in clock ticks since the boot
// of the node, of the process that started the launcher (field 22 of proc_pid_stat(5)).
func container() string {
	raw, err := os.ReadFile("/proc/" + itoa(os.Getppid()) + "/stat")
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	fields := strings.Fields(rest)
	const startTime = 22 - 3 // the rest begins with field 3
	if len(fields) <= startTime {
		return ""
	}
	return itoa(os.Getppid()) + "@" + fields[startTime]
}

// readMark returns the mark of an earlier launcher of this container, or nil.
func readMark() (*mark, error) {
	raw, err := os.ReadFile(markFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // there was no earlier launcher
	}
	if err != nil {
		return nil, err
	}
	var m mark
	if err := json.Unmarshal(raw, &m); err != nil || m.Container != container() || m.Container == "" {
		return nil, nil //nolint:nilnil,nilerr // of an earlier container, or unreadable
	}
	return &m, nil
}

func (m mark) write() error {
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return atomicfile.Write(markFile, raw, 0o600)
}

// sweep removes what an earlier container of this Pod left in /run/podvirt: no process of it lives. What QEMU can do is
// kept, since asking it costs seconds.
func sweep() error {
	stale := []string{markFile, reapedFile}
	for _, dir := range []string{"run", "lib", "log", "etc", "home", "libvirt.log"} {
		stale = append(stale, filepath.Join(libvirtRoot, dir))
	}
	var errs []error
	for _, path := range stale {
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}
