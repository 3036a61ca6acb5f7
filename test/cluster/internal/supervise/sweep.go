package supervise

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"podvirt.dev/test/cluster/internal/cgroup"
	"podvirt.dev/test/cluster/internal/layout"
)

const (
	stopTimeout = 30 * time.Second
	pollPause   = 20 * time.Millisecond
)

// Unit is the transient systemd unit of the supervisor, on hosts with systemd.
func Unit(l layout.Layout) string { return l.Name() + ".service" }

// HasSystemd says whether systemd is the host's init.
func HasSystemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

// Stop ends the supervisor and its machines and removes what a killed one left behind: processes, control groups, the
// host's link, loop devices. It succeeds when there is nothing.
func Stop(ctx context.Context, l layout.Layout) error {
	if HasSystemd() {
		// Failure means that there is no such unit; what counts is checked below.
		_ = exec.CommandContext(ctx, "systemctl", "stop", Unit(l)).Run()
	}
	if err := endProcess(ctx, l, Supervisor); err != nil {
		return err
	}
	for _, name := range names(l) {
		if err := endProcess(ctx, l, name); err != nil {
			return err
		}
	}
	return errors.Join(sweepGroups(ctx, l), dropHostLink(ctx, l), sweepLoops(ctx, l), removeRecords(l))
}

// endProcess asks a supervisor to end, kills a machine, and waits until the process is gone.
func endProcess(ctx context.Context, l layout.Layout, name string) error {
	record, alive, err := Alive(l, name)
	if err != nil || !alive {
		return err
	}
	signal := unix.SIGKILL
	if name == Supervisor {
		signal = unix.SIGTERM
	}
	if err := record.kill(signal); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if poll(wait, func() bool { return !record.alive() }) == nil {
		return nil
	}
	if err := record.kill(unix.SIGKILL); err != nil {
		return err
	}
	last, cancelLast := context.WithTimeout(ctx, stopTimeout)
	defer cancelLast()
	if err := poll(last, func() bool { return !record.alive() }); err != nil {
		return fmt.Errorf("%s (pid %d) does not end: %w", name, record.PID, err)
	}
	return nil
}

// sweepGroups kills what is still in the cluster's groups. A delegated tree is systemd's to sweep.
func sweepGroups(ctx context.Context, l layout.Layout) error {
	tree, err := cgroup.AtRoot(l.Name())
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	var last error
	err = poll(wait, func() bool {
		for _, name := range names(l) {
			pids, err := tree.Processes(name)
			if err != nil {
				last = err
				return false
			}
			for _, pid := range pids {
				_ = unix.Kill(pid, unix.SIGKILL) // it may have ended meanwhile; whether it did is seen by the removal
			}
		}
		last = errors.Join(tree.Remove(names(l)), tree.RemoveBase())
		return last == nil
	})
	if err != nil {
		return fmt.Errorf("control groups are left: %w", last)
	}
	return nil
}

// loop is what sysfs and the kernel say about a loop device.
type loop struct {
	path   string
	device uint64 // of the file system that holds the backing file
	inode  uint64
	file   string // path of the backing file as the kernel shows it here
	rdev   uint64
}

// sweepLoops frees the loop devices whose backing file lies in the state directory or in a pool.
// A driver in a machine makes them in a mount namespace that is gone, so paths say little: files are known by device and inode.
func sweepLoops(ctx context.Context, l layout.Layout) error {
	loops, err := listLoops()
	if err != nil {
		return err
	}
	pools := map[uint64]bool{}
	var ours []loop
	for _, lo := range loops {
		for _, m := range l.Machines() {
			var st unix.Stat_t
			if unix.Stat(l.Pool(m.Name), &st) == nil && st.Dev == lo.device && st.Ino == lo.inode {
				pools[lo.rdev] = true
			}
		}
	}
	for _, lo := range loops {
		if pools[lo.device] || pools[lo.rdev] || strings.HasPrefix(lo.file, l.State+"/") {
			ours = append(ours, lo)
		}
	}
	var errs []error
	for _, lo := range ours {
		if out, err := exec.CommandContext(ctx, "losetup", "--detach", lo.path).CombinedOutput(); err != nil && stillBacked(lo) {
			errs = append(errs, fmt.Errorf("losetup --detach %s: %w: %s", lo.path, err, out))
		}
	}
	return errors.Join(errs...)
}

func stillBacked(lo loop) bool {
	_, err := os.Stat("/sys/block/" + filepath.Base(lo.path) + "/loop/backing_file")
	return err == nil
}

func listLoops() ([]loop, error) {
	dirs, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, err
	}
	var loops []loop
	for _, dir := range dirs {
		path := "/dev/" + filepath.Base(filepath.Dir(dir))
		lo, err := inspectLoop(path)
		if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) {
			continue // freed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if data, err := os.ReadFile(filepath.Join(dir, "backing_file")); err == nil {
			lo.file = strings.TrimSpace(string(data))
		}
		loops = append(loops, lo)
	}
	return loops, nil
}

func inspectLoop(path string) (loop, error) {
	f, err := os.Open(path)
	if err != nil {
		return loop{}, err
	}
	defer f.Close() // only read
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return loop{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return loop{}, err
	}
	return loop{path: path, device: info.Device, inode: info.Inode, rdev: st.Rdev}, nil
}

func removeRecords(l layout.Layout) error {
	var errs []error
	for _, name := range append(names(l), Supervisor) {
		if err := os.Remove(l.Record(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Forget removes the cluster's state. With keepImages the unpacked images of the nodes stay, which makes the next start fast.
func Forget(l layout.Layout, keepImages bool) error {
	if !keepImages {
		return os.RemoveAll(l.State)
	}
	kept := map[string]bool{filepath.Join(l.State, "lock"): true}
	for _, m := range l.Machines() {
		kept[filepath.Join(l.Machine(m.Name), "var", "lib", "containerd")] = true
	}
	return removeBut(l.State, kept)
}

// removeBut removes everything below dir except the kept directories and what leads to them.
func removeBut(dir string, kept map[string]bool) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case kept[path]:
		case leadsToKept(path, kept):
			err = removeBut(path, kept)
		default:
			err = os.RemoveAll(path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func leadsToKept(path string, kept map[string]bool) bool {
	for k := range kept {
		if strings.HasPrefix(k, path+"/") {
			return true
		}
	}
	return false
}

func poll(ctx context.Context, done func() bool) error {
	ticker := time.NewTicker(pollPause)
	defer ticker.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
	return nil
}

// ProcessDir is the /proc directory of a machine's first process: root/ below it is the machine's root file system.
func ProcessDir(r Record) string { return filepath.Join("/proc", strconv.Itoa(r.PID)) }
