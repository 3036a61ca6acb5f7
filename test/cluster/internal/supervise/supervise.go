// Package supervise runs the machines of the local cluster and removes every trace of them.
//
// One supervisor process is the parent of all machines: they die with it (PR_SET_PDEATHSIG), and with them everything that
// runs in them. Records of the supervisor and of the machines let a later call find, reuse or end them.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"podvirt.dev/test/cluster/internal/cgroup"
	"podvirt.dev/test/cluster/internal/layout"
	"podvirt.dev/test/cluster/internal/machine"
)

const (
	restartPause = time.Second
	attempts     = 3 // to make the machines, before the supervisor gives up
)

// ErrRunning says that another supervisor holds the state directory.
var ErrRunning = errors.New("another supervisor runs this cluster")

type supervisor struct {
	layout   layout.Layout
	tree     cgroup.Tree
	log      io.Writer
	machines map[string]*machine.Process
	exited   chan exit
}

type exit struct {
	name    string
	process *machine.Process
	err     error
}

// Run starts the machines, starts them again when they end, and removes them when ctx does.
// It locks its goroutine to a thread for ever, since machines die with the thread that started them.
func Run(ctx context.Context, l layout.Layout, delegated bool, log io.Writer) (err error) {
	runtime.LockOSThread()
	lock, err := lockState(l)
	if err != nil {
		return err
	}
	defer lock.Close() // releases the lock, in any case at the end of the process
	tree, err := newTree(l, delegated)
	if err != nil {
		return err
	}
	own, err := newRecord(os.Getpid())
	if err != nil {
		return err
	}
	if err := own.save(l.Record(Supervisor)); err != nil {
		return err
	}
	s := &supervisor{layout: l, tree: tree, log: log, exited: make(chan exit, 16)}
	for failed := 0; ctx.Err() == nil && failed < attempts; pause(ctx, restartPause) {
		if err = s.round(ctx); err == nil {
			failed = 0
			continue
		}
		failed++
		klog.FromContext(ctx).Error(err, "the machines could not be made", "attempt", failed, "of", attempts)
	}
	return errors.Join(err, tree.Remove(names(l)), tree.RemoveBase())
}

// newTree returns the place of the cluster's cgroups.
func newTree(l layout.Layout, delegated bool) (cgroup.Tree, error) {
	if delegated {
		return cgroup.Delegated()
	}
	return cgroup.AtRoot(l.Name())
}

func lockState(l layout.Layout) (*os.File, error) {
	path := filepath.Join(l.State, "run", "lock")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(ErrRunning, err, f.Close())
	}
	return f, nil
}

// round is the life of one control machine; nodes come and go in it. Only a machine that cannot be made is an error.
func (s *supervisor) round(ctx context.Context) error {
	s.machines = map[string]*machine.Process{}
	defer s.killAll(ctx)
	for _, m := range s.layout.Machines() {
		if err := s.start(ctx, m); err != nil && ctx.Err() == nil {
			return fmt.Errorf("machine %s: %w", m.Name, err)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-s.exited:
			if s.machines[e.name] != e.process {
				continue
			}
			delete(s.machines, e.name)
			if e.name == layout.Control {
				klog.FromContext(ctx).Info("the control machine ended, everything is started again", "reason", e.err)
				return nil
			}
			klog.FromContext(ctx).Info("node ended and is started again", "node", e.name, "reason", e.err)
			pause(ctx, restartPause)
			if err := s.startByName(ctx, e.name); err != nil && ctx.Err() == nil {
				return fmt.Errorf("machine %s: %w", e.name, err)
			}
		}
	}
}

func (s *supervisor) startByName(ctx context.Context, name string) error {
	for _, m := range s.layout.Machines() {
		if m.Name == name && ctx.Err() == nil {
			return s.start(ctx, m)
		}
	}
	return ctx.Err()
}

func (s *supervisor) start(ctx context.Context, m layout.Machine) error {
	// Groups of an earlier life hold nothing but would confuse accounting.
	if err := errors.Join(s.tree.Remove([]string{m.Name}), s.tree.Make([]string{m.Name})); err != nil {
		return err
	}
	if err := machine.TurnLogs(s.layout.Logs(m.Name)); err != nil {
		return err
	}
	process, err := machine.Start(s.layout.Spec(m.Name), s.log)
	if err != nil {
		return err
	}
	s.machines[m.Name] = process
	go func() { s.exited <- exit{name: m.Name, process: process, err: process.Wait()} }()
	record, err := newRecord(process.PID())
	if err != nil {
		return err
	}
	if err := errors.Join(record.save(s.layout.Record(m.Name)), s.tree.Enter(m.Name, process.PID())); err != nil {
		return err
	}
	if m.Name == layout.Control {
		err = plumbControl(ctx, s.layout, process.PID())
	} else {
		err = plumbNode(ctx, s.layout, m, process.PID(), s.machines[layout.Control].PID())
	}
	if err != nil {
		return err
	}
	return process.Release()
}

// killAll ends the machines and waits for them; the context that ended must not end this.
func (s *supervisor) killAll(ctx context.Context) {
	logger := klog.FromContext(ctx)
	for name, process := range s.machines {
		if err := process.Kill(); err != nil {
			logger.Error(err, "kill failed", "machine", name)
		}
	}
	for len(s.machines) > 0 {
		e := <-s.exited
		logger.Info("ended", "machine", e.name, "reason", e.err)
		if s.machines[e.name] == e.process {
			delete(s.machines, e.name)
		}
	}
	if err := dropHostLink(context.WithoutCancel(ctx), s.layout); err != nil {
		logger.Error(err, "host link is left")
	}
}

func names(l layout.Layout) []string {
	var all []string
	for _, m := range l.Machines() {
		all = append(all, m.Name)
	}
	return all
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
