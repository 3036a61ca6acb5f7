// Package cluster brings the local cluster up and down and does with it what its users do.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"podvirt.dev/test/cluster/internal/layout"
	"podvirt.dev/test/cluster/internal/plan"
	"podvirt.dev/test/cluster/internal/programs"
	"podvirt.dev/test/cluster/internal/supervise"
)

// VerbSupervise is the word by which this program runs the supervisor; FlagDelegated says that systemd started it.
const (
	VerbSupervise = "supervise"
	FlagDelegated = "--delegated"
)

const upTimeout = 5 * time.Minute

// Cluster is the local cluster, running or not.
type Cluster struct {
	Layout layout.Layout
	Log    io.Writer // progress for people
}

// New makes a handle; it starts nothing.
func New(l layout.Layout, log io.Writer) *Cluster { return &Cluster{Layout: l, Log: log} }

// Build builds the programs and returns their paths.
func (c *Cluster) Build(ctx context.Context) (map[string]string, error) {
	if c.Layout.Prebuilt != "" {
		return prebuilt(c.Layout.Prebuilt)
	}
	return c.BuildOthers(ctx, programs.All())
}

// BuildOthers is Build for programs of the caller's choice.
func (c *Cluster) BuildOthers(ctx context.Context, all []programs.Program) (map[string]string, error) {
	root, err := sourceRoot(ctx)
	if err != nil {
		return nil, err
	}
	b := programs.Builder{Modules: filepath.Join(root, "test/programs"), Bin: c.Layout.Bin(), Log: c.Log}
	return b.Build(ctx, all)
}

func prebuilt(dir string) (map[string]string, error) {
	paths := map[string]string{}
	for _, p := range programs.All() {
		paths[p.Name] = filepath.Join(dir, p.Name)
		if _, err := os.Stat(paths[p.Name]); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// sourceRoot is the directory of the Go module.
func sourceRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	mod := strings.TrimSpace(string(out))
	if err != nil || mod == "" || mod == os.DevNull {
		return "", errors.Join(errors.New("must be run inside the source tree"), err)
	}
	return filepath.Dir(mod), nil
}

// Up starts what does not run and waits until every node is Ready. A running cluster of the same shape is reused.
func (c *Cluster) Up(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, upTimeout+30*time.Minute)
	defer cancel()
	paths, err := c.Build(ctx)
	if err != nil {
		return err
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	planner := plan.Planner{Layout: c.Layout, Programs: paths}
	changed, err := planner.Write(ctx)
	if err != nil {
		return err
	}
	_, alive, err := supervise.Alive(c.Layout, supervise.Supervisor)
	if err != nil {
		return err
	}
	if !alive || changed {
		if err := supervise.Stop(ctx, c.Layout); err != nil {
			return err
		}
		fmt.Fprintln(c.Log, "starting the machines")
		if err := c.startSupervisor(ctx); err != nil {
			return err
		}
	}
	wait, cancelWait := context.WithTimeout(ctx, upTimeout)
	defer cancelWait()
	err = c.waitNodes(wait)
	if err == nil {
		err = c.applyAddons(wait, paths["kubectl"])
	}
	if err != nil {
		return fmt.Errorf("%w; logs: %s", err, filepath.Join(c.Layout.State, "machines/*/var/log/podvirt"))
	}
	return nil
}

// Down stops the cluster and forgets its state; unpacked images stay unless purge is set.
func (c *Cluster) Down(ctx context.Context, purge bool) error {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := supervise.Stop(ctx, c.Layout); err != nil {
		return err
	}
	return supervise.Forget(c.Layout, !purge)
}

// lock makes calls that change the cluster wait for each other. The holder may remove the lock file with the state, so
// what was locked counts only while it is the file of that name.
func (c *Cluster) lock() (unlock func(), err error) {
	path := filepath.Join(c.Layout.State, "lock")
	for {
		if err := os.MkdirAll(c.Layout.State, 0o755); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		locked, errLocked := f.Stat()
		named, errNamed := os.Stat(path)
		if errLocked == nil && errNamed == nil && os.SameFile(locked, named) {
			return func() { _ = f.Close() }, nil // closing is what releases the lock
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

// startSupervisor starts the supervisor, which outlives this process. It is built, since this process may be a test, or a
// program that "go run" removes when it ends.
func (c *Cluster) startSupervisor(ctx context.Context) error {
	run := filepath.Join(c.Layout.State, "run")
	if err := os.MkdirAll(run, 0o755); err != nil {
		return err
	}
	self, err := c.buildSelf(ctx, run)
	if err != nil {
		return fmt.Errorf("building the supervisor: %w", err)
	}
	if supervise.HasSystemd() {
		return c.startUnit(ctx, self)
	}
	log, err := os.OpenFile(filepath.Join(run, "supervisor.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() // nothing was written on this side
	cmd := exec.CommandContext(context.WithoutCancel(ctx), self, VerbSupervise)
	cmd.Env = c.env()
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return c.waitRecord(ctx, ended)
}

// buildSelf builds this program into dir and returns its path.
func (c *Cluster) buildSelf(ctx context.Context, dir string) (string, error) {
	if c.Layout.Prebuilt != "" {
		return filepath.Join(c.Layout.Prebuilt, "podvirt-local"), nil
	}
	root, err := sourceRoot(ctx)
	if err != nil {
		return "", err
	}
	self := filepath.Join(dir, "podvirt-local")
	build := exec.CommandContext(ctx, "go", "build", "-o", self, "./test/cluster/local")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return self, nil
}

// waitRecord waits until the supervisor has said who it is.
func (c *Cluster) waitRecord(ctx context.Context, ended <-chan error) error {
	ticker := time.NewTicker(pollPause)
	defer ticker.Stop()
	for !c.supervised() {
		select {
		case err := <-ended:
			return fmt.Errorf("the supervisor ended: %w: %s", err, c.supervisorLog())
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
	return nil
}

// startUnit lets systemd delegate a control group and keep the supervisor.
func (c *Cluster) startUnit(ctx context.Context, self string) error {
	args := []string{
		"--unit=" + supervise.Unit(c.Layout), "--collect", "--property=Delegate=yes", "--property=KillMode=mixed", "--property=TasksMax=infinity",
		"--property=LimitNOFILE=1048576", "--property=Description=podvirt local cluster",
	}
	for _, e := range c.env() {
		args = append(args, "--setenv="+e)
	}
	out, err := exec.CommandContext(ctx, "systemd-run", append(args, self, VerbSupervise, FlagDelegated)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemd-run: %w: %s", err, out)
	}
	wait, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	return c.waitRecord(wait, nil)
}

func (c *Cluster) env() []string {
	return append(c.Layout.Env(), "PATH="+os.Getenv("PATH"))
}
