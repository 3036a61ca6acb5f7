// Package counters keeps what the plugin did on a node (network.md 2.10). The plugin lives for milliseconds, so it adds to
// a file of the state directory, and the installer, which stays, shows the sums.
package counters

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// file is below the state directory.
const file = "counters"

// Operation is one kind of call and how it ended.
type Operation struct {
	Verb string // ADD, DEL, …
	Mode string // of the configuration; "" where that could not be read
	Code uint   // of network.md 2.9; 0: success
}

// Duration is a histogram of calls: Below[i] took at most Bounds()[i].
type Duration struct {
	Below [bounds]uint64
	Count uint64
	Sum   float64 // seconds
}

const bounds = 10

// Bounds are the upper bounds of the buckets in seconds, up to the time after which a runtime gives up a lock.
func Bounds() [bounds]float64 {
	return [bounds]float64{.005, .01, .025, .05, .1, .25, .5, 1, 5, 20}
}

// Counts are the sums since the node's boot.
type Counts struct {
	Operations []Count
	Seconds    map[string]Duration // by verb
	Leaks      uint64              // attachments removed whose container was gone without DEL
}

// Count is how often an operation happened.
type Count struct {
	Operation
	N uint64
}

// Add notes one call that took so long.
func Add(stateDir string, what Operation, took time.Duration) error {
	return update(stateDir, func(c *Counts) {
		c.operation(what).N++
		if c.Seconds == nil {
			c.Seconds = map[string]Duration{}
		}
		d := c.Seconds[what.Verb]
		d.Count++
		d.Sum += took.Seconds()
		for i, bound := range Bounds() {
			if took.Seconds() <= bound {
				d.Below[i]++
			}
		}
		c.Seconds[what.Verb] = d
	})
}

// AddLeaks notes attachments that were removed without a DEL of theirs.
func AddLeaks(stateDir string, n int) error {
	return update(stateDir, func(c *Counts) { c.Leaks += uint64(n) })
}

// Read returns the sums; none where nothing was counted.
func Read(stateDir string) (Counts, error) {
	var c Counts
	data, err := os.ReadFile(filepath.Join(stateDir, file))
	if errors.Is(err, os.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("reading the counters: %w", err)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return Counts{}, fmt.Errorf("reading the counters: %w", err)
	}
	return c, nil
}

func (c *Counts) operation(what Operation) *Count {
	for i := range c.Operations {
		if c.Operations[i].Operation == what {
			return &c.Operations[i]
		}
	}
	c.Operations = append(c.Operations, Count{Operation: what})
	return &c.Operations[len(c.Operations)-1]
}

// update changes the file under its own lock, which ends with the process. What a killed process left half written counts
// from zero again, as counters may.
func update(stateDir string, change func(*Counts)) (err error) {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return fmt.Errorf("counting: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(stateDir, file), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("counting: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return fmt.Errorf("counting: %w", err)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return fmt.Errorf("counting: %w", err)
	}
	var c Counts
	if json.Unmarshal(data, &c) != nil {
		c = Counts{}
	}
	change(&c)
	if data, err = json.Marshal(c); err != nil {
		return fmt.Errorf("counting: %w", err)
	}
	if _, err = f.WriteAt(data, 0); err == nil {
		err = f.Truncate(int64(len(data)))
	}
	if err != nil {
		return fmt.Errorf("counting: %w", err)
	}
	return nil
}
