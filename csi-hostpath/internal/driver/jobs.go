package driver

import (
	"context"
	"fmt"
	"sync"
)

// jobs are works that may last longer than the call that began them: the next call for the same name waits for the same
// work. The zero value is ready to use.
type jobs struct {
	mu      sync.Mutex
	running map[string]*job
	group   sync.WaitGroup
	stopped chan struct{} // made by the first job
	ended   bool
}

// job is one of them. result is there when done is closed.
type job struct {
	done   chan struct{}
	result any
	err    error
}

// do starts the work, unless it runs, and waits for its end. When ctx ends first the work goes on, and the error wraps
// errPending, which makes the caller come back.
func (j *jobs) do(ctx context.Context, key string, work func(context.Context) (any, error)) (any, error) {
	started, err := j.start(ctx, key, work)
	if err != nil {
		return nil, err
	}
	select {
	case <-started.done:
		return started.result, started.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %s is being copied", errPending, key)
	}
}

func (j *jobs) start(ctx context.Context, key string, work func(context.Context) (any, error)) (*job, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended {
		return nil, fmt.Errorf("%w: the driver ends", errPending)
	}
	if running := j.running[key]; running != nil {
		return running, nil
	}
	if j.running == nil {
		j.running, j.stopped = map[string]*job{}, make(chan struct{})
	}
	started := &job{done: make(chan struct{})}
	j.running[key] = started
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	finished := make(chan struct{})
	go func() {
		defer cancel()
		select {
		case <-j.stopped:
		case <-finished:
		}
	}()
	j.group.Go(func() {
		defer close(finished)
		started.result, started.err = work(ctx)
		j.mu.Lock()
		delete(j.running, key)
		j.mu.Unlock()
		close(started.done)
	})
	return started, nil
}

// has reports whether the work runs.
func (j *jobs) has(key string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.running[key] != nil
}

// end stops all works and waits for them.
func (j *jobs) end() {
	j.mu.Lock()
	j.ended = true
	if j.stopped != nil {
		close(j.stopped)
	}
	j.mu.Unlock()
	j.group.Wait()
}
