package initramfs

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/ulikunitz/xz"
)

// ErrNoModule says that a kernel has no module of a name, neither as a file nor built in.
var ErrNoModule = errors.New("the kernel has no such module")

// Module is a kernel module, uncompressed.
type Module struct {
	Name string // with underscores
	Data []byte
}

// Modules are the modules of one kernel.
type Modules struct {
	tree    fs.FS
	files   map[string]string // by name
	builtin map[string]bool
}

// OpenModules reads the list of modules below a kernel's directory, /lib/modules/RELEASE. Of the files made by depmod(8)
// none is needed.
func OpenModules(tree fs.FS) (*Modules, error) {
	m := &Modules{tree: tree, files: map[string]string{}, builtin: map[string]bool{}}
	builtin, err := fs.ReadFile(tree, "modules.builtin")
	if err != nil {
		return nil, fmt.Errorf("reading the modules of a kernel: %w", err)
	}
	for line := range strings.Lines(string(builtin)) {
		m.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	err = fs.WalkDir(tree, "kernel", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(path.Base(name), ".ko") {
			m.files[moduleName(name)] = name
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the modules of a kernel: %w", err)
	}
	return m, nil
}

// moduleName turns kernel/drivers/block/virtio-blk.ko.xz into virtio_blk.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// Resolve returns the named modules and those they depend on, in an order in which they can be inserted.
// Modules that are built in are left out.
func (m *Modules) Resolve(names ...string) ([]Module, error) {
	r := resolver{modules: m, seen: map[string]bool{}}
	for _, name := range names {
		if err := r.add(name); err != nil {
			return nil, err
		}
	}
	return r.order, nil
}

type resolver struct {
	modules *Modules
	seen    map[string]bool
	order   []Module
}

func (r *resolver) add(name string) error {
	name = moduleName(name)
	if r.seen[name] || r.modules.builtin[name] {
		return nil
	}
	r.seen[name] = true
	file, ok := r.modules.files[name]
	if !ok {
		return fmt.Errorf("%s: %w", name, ErrNoModule)
	}
	data, err := readModule(r.modules.tree, file)
	if err != nil {
		return err
	}
	module := Module{Name: name, Data: data}
	info, err := module.Info()
	if err != nil {
		return err
	}
	for _, dependency := range info.Depends {
		if err := r.add(dependency); err != nil {
			return fmt.Errorf("needed by %s: %w", name, err)
		}
	}
	r.order = append(r.order, module)
	return nil
}

func readModule(tree fs.FS, file string) ([]byte, error) {
	f, err := tree.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var r io.Reader = f
	switch path.Ext(file) {
	case ".ko":
	case ".xz":
		if r, err = xz.NewReader(f); err != nil {
			return nil, fmt.Errorf("reading %s: %w", file, err)
		}
	default:
		return nil, fmt.Errorf("reading %s: unknown compression", file)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	return data, nil
}

// Info is what a module says about itself.
type Info struct {
	Depends []string // names of other modules
	Aliases []string // patterns by which the kernel asks for the module
}

// Info reads the section .modinfo: strings "depends=a,b" and "alias=pattern" (Linux, include/linux/module.h).
func (m Module) Info() (Info, error) {
	var info Info
	f, err := elf.NewFile(bytes.NewReader(m.Data))
	if err != nil {
		return info, fmt.Errorf("reading module %s: %w", m.Name, err)
	}
	section := f.Section(".modinfo")
	if section == nil {
		return info, fmt.Errorf("reading module %s: no section .modinfo", m.Name)
	}
	data, err := section.Data()
	if err != nil {
		return info, fmt.Errorf("reading module %s: %w", m.Name, err)
	}
	for field := range strings.SplitSeq(string(data), "\x00") {
		key, value, _ := strings.Cut(field, "=")
		switch {
		case key == "depends" && value != "":
			for name := range strings.SplitSeq(value, ",") {
				info.Depends = append(info.Depends, moduleName(name))
			}
		case key == "alias":
			info.Aliases = append(info.Aliases, value)
		}
	}
	return info, nil
}
