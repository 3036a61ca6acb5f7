package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"podvirt.dev/internal/atomicfile"
	"podvirt.dev/test/cluster/internal/layout"
)

// Supervisor is the name of the supervisor's own record.
const Supervisor = "supervisor"

// Record names a process for ever: a PID alone may be given to another process later.
type Record struct {
	PID   int
	Start string // clock ticks between the host's boot and the start of the process: proc(5), stat field 22
}

func newRecord(pid int) (Record, error) {
	start, err := startTime(pid)
	return Record{PID: pid, Start: start}, err
}

func (r Record) save(path string) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(path, data, 0o644)
}

// Alive reads a machine's record and says whether its process runs.
func Alive(l layout.Layout, name string) (Record, bool, error) {
	var r Record
	data, err := os.ReadFile(l.Record(name))
	if errors.Is(err, fs.ErrNotExist) {
		return r, false, nil
	}
	if err != nil {
		return r, false, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, false, fmt.Errorf("%s: %w", l.Record(name), err)
	}
	return r, r.alive(), nil
}

func (r Record) alive() bool {
	start, err := startTime(r.PID)
	return err == nil && start == r.Start
}

// kill is exact: the start time is compared after the process was pinned by a descriptor.
func (r Record) kill(signal unix.Signal) error {
	fd, err := unix.PidfdOpen(r.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd) // a descriptor of nothing that could be lost
	if !r.alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// startTime reads proc(5) stat field 22; the second field may hold blanks and brackets. A zombie counts as gone.
func startTime(pid int) (string, error) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", err
	}
	rest := string(data[strings.LastIndexByte(string(data), ')')+1:])
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return "", fs.ErrNotExist
	}
	return fields[19], nil
}
