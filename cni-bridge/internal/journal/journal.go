// Package journal remembers on the node what each attachment changed, so that DEL and the next ADD undo it after a crash
// at any instruction. The directory is a tmpfs: a reboot empties it together with every network namespace.
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"podvirt.dev/internal/atomicfile"
)

// Version of the entries. A file of another version is kept and reported, never guessed at.
const Version = 1

// ErrNone says that there is no entry.
var ErrNone = errors.New("no journal entry")

// ErrBusy says that a lock was not free in time.
var ErrBusy = errors.New("another operation on this container is under way")

// Entry is all that undo and CHECK need. It is written before the first change, complete, and again when ADD is done.
type Entry struct {
	Version     int      `json:"version"`
	Network     string   `json:"network"`
	ContainerID string   `json:"container"`
	IfName      string   `json:"ifname"`
	Netns       string   `json:"netns"`
	NetnsInode  uint64   `json:"netnsInode"`
	Namespace   string   `json:"namespace"`
	Pod         string   `json:"pod"`
	PodUID      string   `json:"podUID,omitempty"`
	Done        bool     `json:"done"`
	NICs        []NIC    `json:"nics"`
	Sysctls     []Sysctl `json:"sysctls,omitempty"`
	LAN         *LAN     `json:"lan,omitempty"` // nil: the entry is the pod stage's
}

// LAN is what a network mode made.
type LAN struct {
	Mode   string          `json:"mode"`
	Port   string          `json:"port,omitempty"`   // the veth's end on the node
	Bridge string          `json:"bridge,omitempty"` // of the node
	MAC    string          `json:"mac,omitempty"`    // of the Pod interface; "": the kernel's choice
	MTU    int             `json:"mtu,omitempty"`
	VLAN   int             `json:"vlan,omitempty"`
	Holds  string          `json:"holds,omitempty"` // the MAC that is used on the network, a VM's for instance
	Guard  bool            `json:"guard,omitempty"` // one source MAC may leave
	IPAM   string          `json:"ipam,omitempty"`  // type of the plugin that gave addresses
	Path   string          `json:"path,omitempty"`  // where that plugin is: CNI_PATH
	Args   string          `json:"args,omitempty"`  // CNI_ARGS
	Config json.RawMessage `json:"config,omitempty"`
}

// Mode is the job that made the entry.
func (e Entry) Mode() string {
	if e.LAN != nil {
		return e.LAN.Mode
	}
	return "pod"
}

// NIC is one guest NIC as made.
type NIC struct {
	Alias     string   `json:"alias"`
	Tap       string   `json:"tap"`
	Service   string   `json:"service"`
	MAC       string   `json:"mac"` // of the tap: the gateway's
	MTU       int      `json:"mtu"`
	Addresses []string `json:"addresses"` // of the tap
	Rules     int      `json:"rules"`     // of table inet podvirt; 0: the NIC has no NAT
	Wire      *Wire    `json:"wire,omitempty"`
	Bridge    *Bridge  `json:"bridge,omitempty"`

	RateIn        uint64 `json:"rateIn,omitempty"`        // bit/s; 0: no limit
	RateOut       uint64 `json:"rateOut,omitempty"`       // bit/s; 0: no limit
	RateInterface string `json:"rateInterface,omitempty"` // of the Pod, with RateOut
}

// Bridge is what a NIC changes that is bridged with its Pod interface.
type Bridge struct {
	Name      string   `json:"name"`      // of the bridge in the Pod
	Interface string   `json:"interface"` // of the Pod
	MACBefore string   `json:"macBefore"` // of the Pod interface: the guest has it, or one that was asked for
	MACAfter  string   `json:"macAfter"`
	Addresses []string `json:"addresses"` // of the Pod interface before
	Routes    []Route  `json:"routes"`    // by it before
}

// Route is one of the main table.
type Route struct {
	Destination string `json:"destination"`
	Gateway     string `json:"gateway,omitempty"`
	Source      string `json:"source,omitempty"`
	Priority    int    `json:"priority,omitempty"`
	MTU         int    `json:"mtu,omitempty"`
}

// Wire is what a NIC changes that owns its Pod interface.
type Wire struct {
	Interface string   `json:"interface"`
	Clsact    bool     `json:"clsact"`            // was not there before
	MACBefore string   `json:"macBefore"`         // of the Pod interface
	MACAfter  string   `json:"macAfter"`          // the guest's
	Guarded   string   `json:"guarded,omitempty"` // port on the node from which only that MAC may come
	Service   []string `json:"service,omitempty"` // addresses of the service tap
}

// Sysctl is one kernel setting of the namespace: path below /proc/sys, value before and as ADD set it.
type Sysctl struct {
	Path   string `json:"path"`
	Before string `json:"before"`
	After  string `json:"after"`
}

// Store is the state directory of a node.
type Store struct {
	dir string
}

// New returns the store in dir; nothing is made yet.
func New(dir string) Store { return Store{dir: dir} }

// Networks is the store of the network modes, beside that of the pod stage: both can have an attachment of one name.
func Networks(dir string) Store { return Store{dir: filepath.Join(dir, "networks")} }

// LockName takes a lock that many attachments share, that of a bridge for instance, and waits in the kernel's queue for
// it: those who poll would starve each other. Its file stays. It waits at most timeout, then returns [ErrBusy].
func (s Store) LockName(name string, timeout time.Duration) (unlock func() error, err error) {
	dir := filepath.Join(s.dir, "shared")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of locks: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", name, err)
	}
	fd := int(f.Fd())
	got := make(chan error, 1)
	go func() {
		err := unix.Flock(fd, unix.LOCK_EX)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(fd, unix.LOCK_EX)
		}
		got <- err
	}()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case err := <-got:
		if err != nil {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", name, err), f.Close())
		}
		return f.Close, nil
	case <-timer.C:
		go func() { // the queue is left as soon as it can be
			if err := <-got; err == nil {
				_ = f.Close()
			}
		}()
		return nil, ErrBusy
	}
}

func (s Store) attachments() string { return filepath.Join(s.dir, "attachments") }

func (s Store) file(container, ifname string) string {
	return filepath.Join(s.attachments(), container+"-"+ifname+".json")
}

// Save writes the entry.
func (s Store) Save(e Entry) error {
	e.Version = Version
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encoding the journal entry: %w", err)
	}
	if err := os.MkdirAll(s.attachments(), 0o700); err != nil {
		return fmt.Errorf("making the journal: %w", err)
	}
	return atomicfile.Write(s.file(e.ContainerID, e.IfName), data, 0o600)
}

// Load returns the entry of one attachment, or [ErrNone].
func (s Store) Load(container, ifname string) (Entry, error) {
	return load(s.file(container, ifname))
}

func load(name string) (Entry, error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return Entry{}, ErrNone
	}
	if err != nil {
		return Entry{}, fmt.Errorf("reading the journal: %w", err)
	}
	var e Entry
	if err := json.Unmarshal(data, &e); err != nil {
		return Entry{}, fmt.Errorf("reading the journal: %s: %w", name, err)
	}
	if e.Version != Version {
		return Entry{}, fmt.Errorf("reading the journal: %s has version %d, this program knows %d", name, e.Version, Version)
	}
	return e, nil
}

// Remove deletes the entry of one attachment; it is no error when there is none.
func (s Store) Remove(container, ifname string) error {
	return gone(os.Remove(s.file(container, ifname)))
}

// All returns every readable entry; the error names those that are not.
func (s Store) All() ([]Entry, error) {
	names, err := filepath.Glob(filepath.Join(s.attachments(), "*.json"))
	if err != nil {
		return nil, fmt.Errorf("listing the journal: %w", err)
	}
	var (
		entries []Entry
		errs    []error
	)
	for _, name := range names {
		if strings.HasPrefix(filepath.Base(name), ".") {
			continue // a temporary file of a writer
		}
		e, err := load(name)
		switch {
		case errors.Is(err, ErrNone): // removed meanwhile
		case err != nil:
			errs = append(errs, err)
		default:
			entries = append(entries, e)
		}
	}
	return entries, errors.Join(errs...)
}

func (s Store) lockFile(container, ifname string) string {
	return filepath.Join(s.dir, "locks", container+"-"+ifname)
}

// lockPoll is how often a taken lock is tried again; flock has no timeout of its own.
const lockPoll = 20 * time.Millisecond

// Lock takes the attachment's lock, which ends with the process at the latest. It waits at most timeout, then returns
// [ErrBusy]. unlock must be called; it takes the lock's file away where the attachment has no entry.
func (s Store) Lock(container, ifname string, timeout time.Duration) (unlock func() error, err error) {
	if err := os.MkdirAll(filepath.Join(s.dir, "locks"), 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of locks: %w", err)
	}
	name := s.lockFile(container, ifname)
	ticker := time.NewTicker(lockPoll)
	defer ticker.Stop()
	for deadline := time.Now().Add(timeout); ; <-ticker.C {
		f, err := tryLock(name)
		if err != nil {
			return nil, fmt.Errorf("locking: %w", err)
		}
		if f != nil {
			return func() error { return s.unlock(f, container, ifname) }, nil
		}
		if time.Now().After(deadline) {
			return nil, ErrBusy
		}
	}
}

func (s Store) unlock(f *os.File, container, ifname string) error {
	var err error
	if _, statErr := os.Lstat(s.file(container, ifname)); errors.Is(statErr, fs.ErrNotExist) {
		err = gone(os.Remove(f.Name()))
	}
	return errors.Join(err, f.Close())
}

// tryLock returns nil, nil where the lock is taken, or where its holder removed the file, which makes the lock worthless.
func tryLock(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
		return nil, f.Close()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	var held, there unix.Stat_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &held), unix.Stat(name, &there)); err != nil || held.Ino != there.Ino {
		return nil, f.Close()
	}
	return f, nil
}

// Called is the file whose time says when the runtime called the plugin last; the device plugin offers no tun device
// before it exists (network.md 2.3).
const Called = "called"

// Stamp notes that the runtime called the plugin now.
func (s Store) Stamp(now time.Time) error {
	name := filepath.Join(s.dir, Called)
	if err := os.Chtimes(name, now, now); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("making the state directory: %w", err)
	}
	return atomicfile.Write(name, nil, 0o600)
}

func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// temporaryAge is when a temporary file is surely one of a writer that died.
const temporaryAge = time.Minute

// Tidy removes temporary files and locks that dead processes left.
func (s Store) Tidy(now time.Time) error {
	var errs []error
	temporary, err := filepath.Glob(filepath.Join(s.attachments(), ".*"))
	errs = append(errs, err)
	for _, name := range temporary {
		if info, err := os.Stat(name); err == nil && now.Sub(info.ModTime()) > temporaryAge {
			errs = append(errs, gone(os.Remove(name)))
		}
	}
	locks, err := filepath.Glob(filepath.Join(s.dir, "locks", "*"))
	errs = append(errs, err)
	for _, name := range locks {
		if _, err := os.Stat(filepath.Join(s.attachments(), filepath.Base(name)+".json")); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		f, err := tryLock(name)
		if f != nil {
			errs = append(errs, gone(os.Remove(name)), f.Close())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
