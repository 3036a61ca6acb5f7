// Package host changes a node for pass-through: it binds PCI functions to drivers, makes virtual functions and mediated
// devices, and undoes all of it. What it is about to do is in a file first, so that a plugin that was killed at any point
// knows what is to be undone (devices.md 2.6, DP-014).
package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"podvirt.dev/internal/atomicfile"
)

// journalMode: nobody but root needs to know.
const journalMode = 0o600

// Journal is what we changed on this node, written before the act.
type Journal struct {
	path string

	mu    sync.Mutex
	state state
}

type state struct {
	// Bound are functions that we bound to another driver, with the one they had ("": none).
	Bound map[string]string `json:"bound,omitempty"`
	// VFs are physical functions whose number of virtual ones we set, with the number before.
	VFs map[string]int `json:"vfs,omitempty"`
	// Mdevs are mediated devices that we made, with the name of their parent.
	Mdevs map[string]string `json:"mdevs,omitempty"`
}

// OpenJournal reads the file. One that is not there is empty.
func OpenJournal(path string) (*Journal, error) {
	j := &Journal{path: path}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("journal of devices: %w", err)
	}
	return j, j.read()
}

// read takes what the file says. One that is not whole is moved aside and an error: what we bound before is then taken as
// the administrator's.
func (j *Journal) read() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	var next state
	data, err := os.ReadFile(j.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("journal of devices: %w", err)
	default:
		if err := json.Unmarshal(data, &next); err != nil {
			j.state = state{}.whole()
			return errors.Join(fmt.Errorf("%w %s: %w", ErrJournal, j.path, err), os.Rename(j.path, j.path+".broken"))
		}
	}
	j.state = next.whole()
	return nil
}

// ErrJournal says that the file was not whole and is begun anew.
var ErrJournal = errors.New("broken journal of devices, begun anew")

func (s state) whole() state {
	if s.Bound == nil {
		s.Bound = map[string]string{}
	}
	if s.VFs == nil {
		s.VFs = map[string]int{}
	}
	if s.Mdevs == nil {
		s.Mdevs = map[string]string{}
	}
	return s
}

// Exclusive lets no other plugin of this node change anything until release is called: during an upgrade there are two.
func (j *Journal) Exclusive() (release func(), err error) {
	f, err := os.OpenFile(j.path+".lock", os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, journalMode)
	if err != nil {
		return nil, fmt.Errorf("journal of devices: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("journal of devices: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, j.read()
}

// Bound returns the functions that we bound, with the driver each had before.
func (j *Journal) Bound() map[string]string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return maps.Clone(j.state.Bound)
}

// VFs returns the physical functions whose number of virtual ones we set, with the number before.
func (j *Journal) VFs() map[string]int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return maps.Clone(j.state.VFs)
}

// Made says whether a mediated device is one of ours.
func (j *Journal) Made(uuid string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	_, ours := j.state.Mdevs[uuid]
	return ours
}

// Mdevs returns the mediated devices that we made, with the names of their parents.
func (j *Journal) Mdevs() map[string]string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return maps.Clone(j.state.Mdevs)
}

// change applies a change and writes the file; without the file the change does not hold.
func (j *Journal) change(apply func(*state)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	next := state{Bound: maps.Clone(j.state.Bound), VFs: maps.Clone(j.state.VFs), Mdevs: maps.Clone(j.state.Mdevs)}
	apply(&next)
	data, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("journal of devices: %w", err)
	}
	if err := atomicfile.Write(j.path, append(data, '\n'), journalMode); err != nil {
		return err
	}
	j.state = next
	return nil
}
