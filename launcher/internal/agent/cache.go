package agent

import (
	"context"
	"sync"
	"time"
)

// Snapshot is what the agent said last. Parts that it does not answer are empty; Version is empty where no agent
// answers.
type Snapshot struct {
	Version     string
	OS          OS
	Hostname    string
	FileSystems []FileSystem
	Interfaces  []Interface
	Taken       time.Time
}

// PollPeriod is how often the agent is asked of its own accord (spec VM-170).
const PollPeriod = 30 * time.Second

// Cache asks an agent every [PollPeriod] and keeps the answers, so that metrics and status never wait for a guest.
type Cache struct {
	client func() (*Client, error)
	now    func() time.Time
	wake   chan struct{}

	mu   sync.Mutex
	last Snapshot
}

// NewCache returns a cache that asks nothing yet. client is called for each round and may fail while the VM is off.
func NewCache(client func() (*Client, error), now func() time.Time) *Cache {
	return &Cache{client: client, now: now, wake: make(chan struct{}, 1)}
}

// Last returns what the agent said last.
func (c *Cache) Last() Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// Wake asks soon instead of at the end of the period: an agent has connected or gone.
func (c *Cache) Wake() {
	select {
	case c.wake <- struct{}{}:
	default: // somebody has asked already
	}
}

// Run asks until ctx ends.
func (c *Cache) Run(ctx context.Context) {
	ticker := time.NewTicker(PollPeriod)
	defer ticker.Stop()
	for {
		snapshot := c.ask(ctx)
		c.mu.Lock()
		c.last = snapshot
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-c.wake:
		}
	}
}

// ask takes one snapshot. The first command tells whether an agent is there at all: a guest without one costs a single
// timeout per round.
func (c *Cache) ask(ctx context.Context) Snapshot {
	s := Snapshot{Taken: c.now()}
	client, err := c.client()
	if err != nil {
		return s
	}
	info, err := client.Info(ctx)
	if err != nil {
		return s
	}
	s.Version = info.Version
	// An agent may have each of these disabled: then the part stays empty.
	s.OS, _ = client.OS(ctx)
	s.Hostname, _ = client.Hostname(ctx)
	s.FileSystems, _ = client.FileSystems(ctx)
	s.Interfaces, _ = client.Interfaces(ctx)
	return s
}
