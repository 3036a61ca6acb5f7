// Package cgroup gives every machine of the local cluster a control group of its own, on cgroup v1 and v2.
//
// Without systemd the groups are children of one group at the root of every hierarchy. With systemd on
// cgroup v2 the supervisor runs as a transient unit with delegation, and the groups are children of the unit's group.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const mountPoint = "/sys/fs/cgroup"

// Hierarchy is one mounted cgroup hierarchy.
type Hierarchy struct {
	Dir     string // where it is mounted
	Options string // mount options that name it: "cpu,cpuacct" or "name=systemd"; empty for v2
}

// V2 says whether the hierarchy is the unified one.
func (h Hierarchy) V2() bool { return h.Options == "" }

// Hierarchies returns what is mounted below /sys/fs/cgroup: the v1 hierarchies, or the single one of v2.
// The v2 hierarchy that a hybrid setup mounts beside v1 has no controllers and is left out.
func Hierarchies() ([]Hierarchy, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parse(string(data))
}

func parse(mountinfo string) ([]Hierarchy, error) {
	var v1 []Hierarchy
	for line := range strings.Lines(mountinfo) {
		mount, kind, ok := strings.Cut(strings.TrimSpace(line), " - ")
		before, after := strings.Fields(mount), strings.Fields(kind)
		if !ok || len(before) < 5 || len(after) < 3 {
			continue
		}
		dir := before[4]
		switch {
		case after[0] == "cgroup2" && dir == mountPoint:
			return []Hierarchy{{Dir: dir}}, nil
		case after[0] == "cgroup" && filepath.Dir(dir) == mountPoint:
			v1 = append(v1, Hierarchy{Dir: dir, Options: naming(after[2])})
		}
	}
	if len(v1) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted at " + mountPoint)
	}
	return v1, nil
}

// naming keeps the options that say which hierarchy it is.
func naming(options string) string {
	var kept []string
	for option := range strings.SplitSeq(options, ",") {
		if option != "rw" && option != "xattr" && option != "clone_children" && !strings.HasPrefix(option, "release_agent=") {
			kept = append(kept, option)
		}
	}
	return strings.Join(kept, ",")
}

// Tree is the place of all groups of the cluster.
type Tree struct {
	bases []string // one per hierarchy
	own   bool     // the bases were made here, not by systemd
	v2    bool
}

// Delegated returns the tree below the caller's own group, which must have been delegated (cgroup v2 only).
func Delegated() (Tree, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return Tree{}, err
	}
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return Tree{bases: []string{filepath.Join(mountPoint, strings.TrimSuffix(path, "/supervisor"))}, v2: true}, nil
		}
	}
	return Tree{}, errors.New("the process is in no cgroup v2 group")
}

// AtRoot returns the tree below a group of this name at the root of every hierarchy.
func AtRoot(name string) (Tree, error) {
	all, err := Hierarchies()
	if err != nil {
		return Tree{}, err
	}
	t := Tree{v2: all[0].V2(), own: true}
	for _, h := range all {
		t.bases = append(t.bases, filepath.Join(h.Dir, name))
	}
	return t, nil
}

// Make creates the groups of the machines. The calling process of a delegated tree moves into a group of its own, since
// a group with controllers for its children may hold no process.
func (t Tree) Make(machines []string) error {
	for _, base := range t.bases {
		if err := makeGroup(base); err != nil {
			return err
		}
		if !t.own {
			own := filepath.Join(base, "supervisor")
			if err := errors.Join(makeGroup(own), enter(own, os.Getpid())); err != nil {
				return err
			}
		}
		if t.v2 {
			if t.own {
				if err := EnableAll(filepath.Dir(base)); err != nil {
					return err
				}
			}
			if err := EnableAll(base); err != nil {
				return err
			}
		}
		for _, name := range machines {
			if err := makeGroup(filepath.Join(base, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Enter moves a process into a machine's groups.
func (t Tree) Enter(machine string, pid int) error {
	for _, base := range t.bases {
		if err := enter(filepath.Join(base, machine), pid); err != nil {
			return err
		}
	}
	return nil
}

// Remove removes groups of machines, which must be empty of processes; groups that are not there are no error.
func (t Tree) Remove(machines []string) error {
	var errs []error
	for _, base := range t.bases {
		for _, name := range machines {
			errs = append(errs, removeAll(filepath.Join(base, name)))
		}
	}
	return errors.Join(errs...)
}

// RemoveBase removes what held the machines' groups, unless systemd made it.
func (t Tree) RemoveBase() error {
	var errs []error
	for _, base := range t.bases {
		if t.own {
			errs = append(errs, removeAll(base))
		}
	}
	return errors.Join(errs...)
}

// Processes returns the processes in a machine's groups, also in groups below, in the numbering of this PID namespace.
func (t Tree) Processes(machine string) ([]int, error) {
	var pids []int
	for _, base := range t.bases {
		err := filepath.WalkDir(filepath.Join(base, machine), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || filepath.Base(path) != "cgroup.procs" {
				return ignoreAbsent(err)
			}
			data, err := os.ReadFile(path)
			for field := range strings.FieldsSeq(string(data)) {
				if pid, err := strconv.Atoi(field); err == nil && !slices.Contains(pids, pid) && pid != 0 {
					pids = append(pids, pid)
				}
			}
			return ignoreAbsent(err)
		})
		if err != nil {
			return nil, err
		}
	}
	return pids, nil
}

// EnableAll gives the children of a v2 group every controller that it has itself.
func EnableAll(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for controller := range strings.FieldsSeq(string(data)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
			return fmt.Errorf("controller %s in %s: %w", controller, dir, err)
		}
	}
	return nil
}

// makeGroup creates a group; in the v1 cpuset hierarchy a new one has no CPU and no memory and would take no process.
func makeGroup(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err == nil {
		return nil // v2 inherits
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(dir, file))
		if errors.Is(err, fs.ErrNotExist) || len(strings.TrimSpace(string(own))) > 0 {
			continue
		}
		parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), parent, 0); err != nil {
			return err
		}
	}
	return nil
}

func enter(dir string, pid int) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}

// removeAll removes a group and its children, deepest first.
func removeAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreAbsent(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return ignoreAbsent(unix.Rmdir(dir))
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
