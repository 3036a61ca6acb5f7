package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"podvirt.dev/test/kernel/internal/job"
)

// errNoModule says that no module of the archive has a name or alias.
var errNoModule = errors.New("no such module")

// index finds modules by name.
type index map[string]job.Module

func readIndex() (index, error) {
	data, err := os.ReadFile("/" + job.ModuleIndex)
	if err != nil {
		return nil, err
	}
	var modules []job.Module
	if err := json.Unmarshal(data, &modules); err != nil {
		return nil, err
	}
	byName := index{}
	for _, module := range modules {
		byName[module.Name] = module
	}
	return byName, nil
}

// modprobe takes the arguments that the kernel gives: "-q -- NAME".
func modprobe(args []string) error {
	index, err := readIndex()
	if err != nil {
		return err
	}
	for _, arg := range args {
		if strings.HasPrefix(arg, "-") {
			continue
		}
		if err := index.load(arg); err != nil {
			return err
		}
	}
	return nil
}

// load inserts the modules that a name or an alias stands for.
func (x index) load(alias string) error {
	found := false
	for name, module := range x {
		if name != strings.ReplaceAll(alias, "-", "_") && !matches(module.Aliases, alias) {
			continue
		}
		found = true
		if err := x.insert(name); err != nil {
			return err
		}
	}
	if !found {
		return errNoModule
	}
	return nil
}

func matches(patterns []string, alias string) bool {
	for _, pattern := range patterns {
		if ok, err := path.Match(pattern, alias); ok && err == nil {
			return true
		}
	}
	return false
}

// insert inserts a module after those it needs. One that is there already is no error.
func (x index) insert(name string) error {
	module, ok := x[name]
	if !ok {
		return nil // built in: only modules that are files are in the index
	}
	for _, need := range module.Needs {
		if err := x.insert(need); err != nil {
			return err
		}
	}
	f, err := os.Open(path.Join("/", job.ModuleDir, name+".ko"))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("inserting %s: %w", name, err)
	}
	return nil
}

// staticNodes makes the device nodes by which modules are asked for, such as /dev/net/tun: opening one loads its module.
// A module names its node by the aliases devname:PATH and char-major-MAJOR-MINOR.
func (x index) staticNodes() error {
	for _, module := range x {
		var name string
		var major, minor uint32
		for _, alias := range module.Aliases {
			if file, ok := strings.CutPrefix(alias, "devname:"); ok {
				name = file
			}
			_, _ = fmt.Sscanf(alias, "char-major-%d-%d", &major, &minor) // what does not match leaves them as they are
		}
		if name == "" || major == 0 {
			continue
		}
		node := path.Join("/dev", name)
		if err := os.MkdirAll(path.Dir(node), 0o755); err != nil {
			return err
		}
		err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(major, minor)))
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("making %s: %w", node, err)
		}
	}
	return nil
}
