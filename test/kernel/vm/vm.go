package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
)

// Machine is a QEMU machine. It is used once: New, Start, Wait.
type Machine struct {
	qemu, kernel, initramfs, accel, cpu string
	cmdline                             []string
	memory, cpus, nodes                 int
	early, devices                      []string
	serial                              []io.Writer
	ids                                 map[string]int

	cmd     *exec.Cmd
	stderr  strings.Builder
	copying sync.WaitGroup
	copied  []error
	waited  bool
}

// New builds a machine and checks its description. It starts nothing.
func New(options ...Option) (*Machine, error) {
	m := &Machine{qemu: "qemu-system-x86_64", accel: "tcg", cpu: "max", memory: 512, cpus: 1, ids: map[string]int{}}
	for _, option := range options {
		if err := option(m); err != nil {
			return nil, err
		}
	}
	if m.kernel == "" {
		return nil, ErrNoKernel
	}
	if m.nodes > 0 && (m.memory%m.nodes != 0 || m.cpus%m.nodes != 0) {
		return nil, fmt.Errorf("%w: %d MiB, %d processors, %d nodes", ErrNUMA, m.memory, m.cpus, m.nodes)
	}
	return m, nil
}

// id hands out identifiers of QEMU objects that are unique in the machine.
func (m *Machine) id(kind string) string {
	m.ids[kind]++
	return fmt.Sprintf("%s%d", kind, m.ids[kind])
}

// Args is the machine's command line without the program. Serial port n writes to file descriptor 3+n.
func (m *Machine) Args() []string {
	accel := m.accel
	if accel == "tcg" {
		// With a thread for each processor QEMU 7.2 loses races with a kernel that patches its own code (netfilter's
		// static keys): the guest panics in NF_HOOK, once in a few minutes.
		accel = "tcg,thread=single"
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35", "-accel", accel, "-cpu", m.cpu,
		"-m", fmt.Sprintf("%dM", m.memory), "-smp", fmt.Sprint(m.cpus), "-kernel", m.kernel,
	}
	if m.initramfs != "" {
		args = append(args, "-initrd", m.initramfs)
	}
	if len(m.cmdline) > 0 {
		args = append(args, "-append", strings.Join(m.cmdline, " "))
	}
	args = append(args, m.early...) // an IOMMU comes before the devices behind it
	args = append(args, m.numaArgs()...)
	args = append(args, m.devices...)
	for i := range m.serial {
		args = append(args, "-chardev", fmt.Sprintf("file,id=serial%d,path=/dev/fd/%d", i, 3+i),
			"-serial", fmt.Sprintf("chardev:serial%d", i))
	}
	return args
}

func (m *Machine) numaArgs() []string {
	var args []string
	for node := range m.nodes {
		cpus := m.cpus / m.nodes
		args = append(args,
			"-object", fmt.Sprintf("memory-backend-ram,id=cell%d,size=%dM", node, m.memory/m.nodes),
			"-numa", fmt.Sprintf("node,nodeid=%d,memdev=cell%d,cpus=%d-%d", node, node, node*cpus, (node+1)*cpus-1))
	}
	return args
}

// CommandLine is a command for a shell that runs the same machine by hand, with the first serial port on the terminal.
func (m *Machine) CommandLine() string {
	words := []string{m.qemu}
	for _, arg := range m.Args() {
		words = append(words, "'"+strings.ReplaceAll(arg, "'", `'\''`)+"'")
	}
	for i := range m.serial {
		words = append(words, fmt.Sprintf("%d>&1", 3+i))
	}
	return strings.Join(words, " ")
}

// Start starts QEMU. It is killed when the context ends. Wait must be called after it.
func (m *Machine) Start(ctx context.Context) error {
	m.cmd = exec.CommandContext(ctx, m.qemu, m.Args()...)
	m.cmd.Stderr = &m.stderr
	m.copied = make([]error, len(m.serial))
	var ends []*os.File
	defer func() {
		for _, end := range ends {
			_ = end.Close() // QEMU has its own copies
		}
	}()
	for i, w := range m.serial {
		r, end, err := os.Pipe()
		if err != nil {
			return fmt.Errorf("starting QEMU: %w", err)
		}
		ends = append(ends, end)
		m.cmd.ExtraFiles = append(m.cmd.ExtraFiles, end)
		m.copying.Go(func() {
			_, err := io.Copy(w, r)
			m.copied[i] = errors.Join(err, r.Close())
		})
	}
	if err := m.cmd.Start(); err != nil {
		return fmt.Errorf("starting QEMU: %w", err)
	}
	return nil
}

// Wait waits until the guest has powered off or QEMU has ended otherwise, and until all that the guest wrote to its serial
// ports is copied. A guest that powers off is no error, whatever it did before.
func (m *Machine) Wait() error {
	m.waited = true
	err := m.cmd.Wait()
	m.copying.Wait()
	if err != nil {
		err = fmt.Errorf("QEMU: %w: %s", err, strings.TrimSpace(m.stderr.String()))
	}
	return errors.Join(append(m.copied, err)...)
}
