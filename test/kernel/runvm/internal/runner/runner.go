// Package runner is the program runvm: it packs a test binary, boots a machine with it, copies what the test prints and
// ends with the test's exit code.
//
// The machine is described by the file testdata/machine of the package under test, in the words of vm.Parse and of request;
// memory is 768 MiB and processors are two unless it says otherwise. PODVIRT_VM_ACCEL ("kvm", "tcg") overrides what was found
// to work, PODVIRT_QEMU names another emulator, PODVIRT_VM_CPU another CPU, and PODVIRT_VM_CONSOLE=1 shows the kernel's messages
// on standard error.
// Variables that begin with PODVIRT_ are passed on, and PODVIRT_REQUIRE=1 is set: in this guest nothing may be missing.
package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"podvirt.dev/internal/cli"
	"podvirt.dev/test/kernel/internal/job"
	"podvirt.dev/test/kernel/internal/pack"
	"podvirt.dev/test/kernel/vm"
)

// Exit codes of runvm itself, which a Go test never has.
const (
	exitUsage  = 124
	exitFailed = 125
)

// Run is the program: args are a test binary and its arguments.
func Run(ctx context.Context, args []string, std cli.Streams) int {
	if len(args) == 0 {
		fmt.Fprintln(std.Err, "usage: runvm PROGRAM [ARG...]")
		return exitUsage
	}
	r := runner{std: std, program: args[0], args: args[1:], cache: orElse(os.Getenv("PODVIRT_CACHE"), "/var/cache/podvirt")}
	code, err := r.run(ctx)
	if err != nil {
		fmt.Fprintf(std.Err, "runvm: %v\n", err)
	}
	return code
}

type runner struct {
	std     cli.Streams
	program string
	args    []string
	cache   string
	work    string
	console bytes.Buffer
	result  bytes.Buffer
}

// run boots the machine. Its directory is kept when the machine, not the test, has failed.
func (r *runner) run(ctx context.Context) (code int, err error) {
	if r.work, err = os.MkdirTemp("", "runvm-"); err != nil {
		return exitFailed, err
	}
	machine, err := r.machine(ctx)
	if err != nil {
		return exitFailed, errors.Join(err, os.RemoveAll(r.work))
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout())
	defer cancel()
	err = machine.Start(ctx)
	if err == nil {
		err = machine.Wait()
	}
	result, err := r.outcome(err)
	if err != nil {
		console := filepath.Join(r.work, "console.log")
		err = errors.Join(err, os.WriteFile(console, r.console.Bytes(), 0o600))
		return exitFailed, fmt.Errorf("%w\nthe end of its console (all of it: %s):\n%s\nto run it by hand:\n%s",
			err, console, tail(r.console.String(), 30), machine.CommandLine())
	}
	return result.ExitCode, os.RemoveAll(r.work)
}

// outcome reads what the guest reported.
func (r *runner) outcome(ended error) (job.Result, error) {
	var result job.Result
	if err := json.Unmarshal(r.result.Bytes(), &result); err != nil {
		return result, errors.Join(errors.New("the guest ended before its program did"), ended)
	}
	if result.Failure != "" {
		return result, fmt.Errorf("the guest could not run its program: %s", result.Failure)
	}
	return result, ended
}

func (r *runner) machine(ctx context.Context) (*vm.Machine, error) {
	parts := filepath.Join(r.cache, "images", "parts")
	kernel, release, err := pack.Kernel(filepath.Join(parts, "kernel-rootfs"))
	if err != nil {
		return nil, err
	}
	words, err := pack.Words(filepath.Join("testdata", "machine"))
	if err != nil {
		return nil, err
	}
	asked, rest := parseRequest(words)
	options, err := vm.Parse(rest)
	if err != nil {
		return nil, err
	}
	initramfs := filepath.Join(r.work, "initramfs")
	if err := r.pack(ctx, asked, pack.Contents{Root: filepath.Join(parts, "kernel-rootfs"), Release: release}, initramfs); err != nil {
		return nil, err
	}
	accel := os.Getenv("PODVIRT_VM_ACCEL")
	if accel == "" {
		if accel, err = vm.FindAccelerator(ctx, kernel, filepath.Join(r.cache, "images")); err != nil {
			return nil, err
		}
	}
	qemu, err := r.qemu(asked, parts)
	if err != nil {
		return nil, err
	}
	all := []vm.Option{
		vm.QEMU(qemu), vm.Accelerator(accel), vm.Kernel(kernel, initramfs), vm.Memory(768), vm.CPUs(2),
		vm.Append("console="+job.ConsolePort, "panic=-1", "loglevel=6", "mitigations=off", "no_timer_check"),
		vm.Serial(r.consoleWriter()), vm.Serial(r.std.Out), vm.Serial(&r.result),
	}
	for _, name := range asked.shares {
		if dir, err := filepath.EvalSymlinks(filepath.Join(parts, name)); err == nil {
			all = append(all, vm.Share(name, dir))
		}
	}
	all = append(all, options...)
	return vm.New(append(all, vm.CPU(os.Getenv("PODVIRT_VM_CPU")))...)
}

// consoleWriter keeps the kernel's messages for the case that the guest dies.
func (r *runner) consoleWriter() io.Writer {
	if os.Getenv("PODVIRT_VM_CONSOLE") == "1" {
		return io.MultiWriter(&r.console, r.std.Err)
	}
	return &r.console
}

func (r *runner) pack(ctx context.Context, asked request, contents pack.Contents, target string) error {
	repository, err := output(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "podvirt.dev")
	if err != nil {
		return err
	}
	modules, err := pack.Words(filepath.Join(repository, "test", "kernel", "modules"))
	if err != nil {
		return err
	}
	if contents.Init, err = r.build(ctx, "test/kernel/guestinit", "CGO_ENABLED=0"); err != nil {
		return err
	}
	contents.Extra = map[string]string{}
	for _, folder := range asked.programs {
		if contents.Extra[filepath.Base(folder)], err = r.build(ctx, folder, "CGO_ENABLED=0"); err != nil {
			return err
		}
	}
	for _, folder := range asked.dynamic {
		if contents.Extra[filepath.Base(folder)], err = r.build(ctx, folder, "CGO_ENABLED=1"); err != nil {
			return err
		}
	}
	for _, name := range asked.tools {
		if contents.Extra[name], err = r.tool(name); err != nil {
			return err
		}
	}
	contents.Modules, contents.Program, contents.Data = append(modules, asked.modules...), r.program, "testdata"
	contents.Job = job.Job{Args: testArgs(r.args), Env: append(passedOn(os.Environ()), "PODVIRT_REQUIRE=1", "PODVIRT_KERNEL_TEST=1")}
	return contents.Write(target)
}

// build builds a program of this module and returns its file. One with cgo opens libvirt when it runs, as in its image.
func (r *runner) build(ctx context.Context, folder, cgo string) (string, error) {
	file := filepath.Join(r.work, filepath.Base(folder))
	_, err := output(ctx, "env", cgo, "go", "build", "-tags=libvirt_dlopen", "-trimpath", "-ldflags=-s -w", "-o", file, "podvirt.dev/"+folder)
	return file, err
}

// testArgs drops the arguments by which go test asks for files on the host.
func testArgs(args []string) []string {
	var kept []string
	for _, arg := range args {
		name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		switch name {
		case "test.testlogfile", "test.coverprofile", "test.gocoverdir", "test.outputdir":
		default:
			kept = append(kept, arg)
		}
	}
	return kept
}

// timeout is that of the test, and two minutes for the machine: the test is to say itself what hung.
func (r *runner) timeout() time.Duration {
	limit := 10 * time.Minute
	for _, arg := range r.args {
		if value, ok := strings.CutPrefix(arg, "-test.timeout="); ok {
			if d, err := time.ParseDuration(value); err == nil && d > 0 {
				limit = d
			}
		}
	}
	return limit + 2*time.Minute
}

func passedOn(environment []string) []string {
	var kept []string
	for _, variable := range environment {
		if strings.HasPrefix(variable, "PODVIRT_") && !strings.HasPrefix(variable, "PODVIRT_REQUIRE=") {
			kept = append(kept, variable)
		}
	}
	return kept
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
