package launcher

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"podvirt.dev/internal/require"
	"podvirt.dev/internal/transcript"
)

// TestMain becomes a container where it is asked to.
func TestMain(m *testing.M) {
	if spec := os.Getenv(containerEnv); spec != "" {
		fmt.Fprintln(os.Stderr, "container:", enter(spec))
		syscall.Exit(125)
	}
	inRoot(m)
}

// rootEnv names the directory of this run that becomes the root of its containers.
const rootEnv = "PODVIRT_TEST_ROOT"

func inRoot(m *testing.M) {
	root, err := ownRoot(cache())
	if err != nil { // not root, or no cache: the tests say what they need
		m.Run()
		return
	}
	defer func() {
		_ = os.RemoveAll(root.Name())
		_ = root.Close()
	}()
	if err := os.Setenv(rootEnv, root.Name()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	m.Run()
}

// ownRoot makes the directory of this run and removes those of runs that were killed: nobody holds their lock.
func ownRoot(dir string) (*os.File, error) {
	all, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = all.Close() }()
	if err := syscall.Flock(int(all.Fd()), syscall.LOCK_EX); err != nil {
		return nil, err
	}
	left, err := filepath.Glob(filepath.Join(dir, "test-launcher-*"))
	if err != nil {
		return nil, err
	}
	for _, name := range left {
		if f, err := locked(name); err == nil {
			_ = os.RemoveAll(name)
			_ = f.Close()
		}
	}
	root, err := os.MkdirTemp(dir, "test-launcher-")
	if err != nil {
		return nil, err
	}
	return locked(root)
}

// locked opens a directory that nobody else has locked; the lock lasts as long as the file is open.
func locked(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// patience bounds every wait: emulation on a busy machine is slow.
const patience = 180 * time.Second

// world is what all tests share: the built programs over the root file system of the launcher's image.
type world struct {
	root string // of the container
	tiny string // disk of the tiny guest
}

var theWorld = sync.OnceValues(func() (world, error) {
	if inGuest() {
		return guestWorld()
	}
	return makeWorld()
})

func cache() string {
	if dir := os.Getenv("PODVIRT_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/podvirt"
}

// errNotBuilt: images builds what is missing.
var errNotBuilt = errors.New("run images first: make images")

func makeWorld() (world, error) {
	parts := filepath.Join(cache(), "images", "parts")
	w := world{tiny: filepath.Join(parts, "guest-tiny.qcow2")}
	rootfs, err := filepath.EvalSymlinks(filepath.Join(parts, "launcher-rootfs"))
	if err != nil {
		return w, errNotBuilt
	}
	if _, err := os.Stat(w.tiny); err != nil {
		return w, errNotBuilt
	}
	w.root = os.Getenv(rootEnv)
	if out, err := exec.Command("cp", "-a", "--reflink=auto", rootfs+"/.", w.root).CombinedOutput(); err != nil {
		return w, fmt.Errorf("copying the root file system: %w: %s", err, out)
	}
	for _, dir := range []string{"vm", "run/podvirt", "proc", "sys", "dev", "tmp", "usr/share/podvirt/qemu-capabilities"} {
		if err := os.MkdirAll(filepath.Join(w.root, dir), 0o755); err != nil {
			return w, err
		}
	}
	return w, buildPrograms(w.root)
}

func buildPrograms(root string) error {
	for _, b := range []struct{ target, pkg, cgo string }{{"launcher", "./launcher", "1"}, {"reaper", "./launcher/reaper", "0"}} {
		cmd := exec.Command("go", "build", "-tags=libvirt_dlopen", "-trimpath", "-ldflags=-s -w",
			"-o", filepath.Join(root, "usr/bin", b.target), b.pkg)
		cmd.Dir = "../.."
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+b.cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w: %s", b.target, err, out)
		}
	}
	return nil
}

// pod is a Pod made of files.
type pod struct {
	t     *testing.T
	world world
	dir   string
	spec  containerSpec
}

// newPod returns a Pod with the tiny guest as disk root, an image under an overlay. The annotations come on top of
// those that every test wants.
func newPod(t *testing.T, annotations map[string]string) *pod {
	t.Helper()
	require.Root(t)
	w, err := theWorld()
	require.Feature(t, !errors.Is(err, errNotBuilt), errNotBuilt.Error())
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{t: t, world: w, dir: t.TempDir()}
	chmod(t, p.dir) // the temporary directory of a test is root's alone
	p.spec = containerSpec{Root: w.root, Mounts: map[string]string{}, Argv: []string{"/usr/bin/reaper", "/usr/bin/launcher", "run"}}
	p.volume("/run/podvirt")
	p.volume("/vm/scratch")
	p.volume("/vm/pod")
	p.writePod(annotations)
	image := p.volume("/vm/disks/root")
	if err := os.Mkdir(filepath.Join(image, "disk"), 0o755); err != nil {
		t.Fatal(err)
	}
	copyFile(t, w.tiny, filepath.Join(image, "disk", "tiny.qcow2"))
	message := p.file("termination-log", "")
	if err := os.Chmod(message, 0o666); err != nil {
		t.Fatal(err)
	}
	p.spec.Mounts["/dev/termination-log"] = message
	return p
}

func chmod(t *testing.T, dir string) {
	t.Helper()
	for ; strings.HasPrefix(filepath.Base(filepath.Dir(dir)), "Test") || strings.HasPrefix(filepath.Base(dir), "0"); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	raw, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, raw, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// writePod writes the downward API volume.
func (p *pod) writePod(annotations map[string]string) {
	p.t.Helper()
	all := map[string]string{
		"podvirt.dev/vm": "db1", "podvirt.dev/memory": "128Mi", "podvirt.dev/accelerator": "tcg", "podvirt.dev/video": "none",
		"podvirt.dev/console": "log", "podvirt.dev/nic.default": "binding=none",
	}
	for key, value := range annotations {
		all["podvirt.dev/"+key] = value
	}
	var text strings.Builder
	for key, value := range all {
		if value != "-" {
			fmt.Fprintf(&text, "%s=%q\n", key, value)
		}
	}
	dir := p.spec.Mounts["/vm/pod"]
	for name, content := range map[string]string{
		"annotations": text.String(), "labels": `podvirt.dev/vm="db1"`, "name": "db1-0", "namespace": "shop",
		"uid": "c0ffee00-0000-4000-8000-000000000000", "limits.cpu": "1000", "limits.memory": "0",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			p.t.Fatal(err)
		}
	}
}

// volume mounts a new empty directory of the launcher's user.
func (p *pod) volume(path string) string {
	p.t.Helper()
	dir := filepath.Join(p.dir, strings.ReplaceAll(strings.Trim(path, "/"), "/", "_"))
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, userID, userID)); err != nil {
		p.t.Fatal(err)
	}
	p.spec.Mounts[path] = dir
	return dir
}

func (p *pod) file(name, content string) string {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	if err := errors.Join(os.WriteFile(path, []byte(content), 0o644), os.Chown(path, userID, userID)); err != nil {
		p.t.Fatal(err)
	}
	return path
}

// vm is a running container.
type vm struct {
	*pod
	cmd   *exec.Cmd
	out   *record // stdout: the guest
	log   *record // stderr: the launcher
	ended chan struct{}
}

// start runs the container.
func (p *pod) start() *vm {
	p.t.Helper()
	v := &vm{pod: p}
	v.run()
	p.t.Cleanup(v.cleanup)
	return v
}

// run runs the container, once more where it has ended.
func (v *vm) run() {
	v.t.Helper()
	spec, err := json.Marshal(v.spec)
	if err != nil {
		v.t.Fatal(err)
	}
	cmd, ended := exec.Command(os.Args[0]), make(chan struct{})
	v.cmd, v.out, v.log, v.ended = cmd, &record{}, &record{}, ended
	cmd.Env = []string{containerEnv + "=" + string(spec)}
	cmd.Stdout, cmd.Stderr = v.out, v.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if !v.spec.Host {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNET
	}
	if err := cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait() // the exit code is in the process's state
		close(ended)
	}()
}

// cleanup kills the container's first process, and with it all others.
func (v *vm) cleanup() {
	_ = v.cmd.Process.Kill()
	<-v.ended
	if v.t.Failed() {
		v.t.Logf("guest:\n%s\nlauncher:\n%s", v.out, v.log)
	}
}

// wait waits for the end of the container and returns its exit code and termination message.
func (v *vm) wait() (int, string) {
	v.t.Helper()
	select {
	case <-v.ended:
	case <-time.After(patience):
		v.t.Fatal("the container does not end")
	}
	message, err := os.ReadFile(v.spec.Mounts["/dev/termination-log"])
	if err != nil {
		v.t.Fatal(err)
	}
	return v.cmd.ProcessState.ExitCode(), string(message)
}

// wantEnd fails the test unless the container ends with the code and a message that matches.
func (v *vm) wantEnd(code int, message string) {
	v.t.Helper()
	got, text := v.wait()
	if got != code || !regexp.MustCompile(message).MatchString(text) {
		v.t.Errorf("the container ended with %d and %q; want %d and %q", got, text, code, message)
	}
	if len(text) > 512 && code != 10 {
		v.t.Errorf("the message has %d bytes", len(text))
	}
	const panicked = 70 // whose last words are the reaper's
	if got != panicked && !v.logged(text) {
		v.t.Errorf("the log does not say %q:\n%s", text, v.log)
	}
}

// logged says whether the launcher's log ends with what the termination message begins with (VM-214).
func (v *vm) logged(message string) bool {
	for line := range strings.Lines(v.log.String()) {
		var l struct{ Level, Msg, Reason, Message string }
		if err := json.Unmarshal([]byte(line), &l); err != nil || l.Msg != "the VM has ended" {
			continue
		}
		begin := strings.TrimSuffix(message, "…")
		return strings.HasPrefix(l.Message, begin) || strings.HasPrefix(l.Reason+": "+l.Message, begin)
	}
	return false
}

// inside runs a program in the container, as kubectl exec does, and returns its output and exit code.
func (v *vm) inside(stdin io.Reader, argv ...string) (stdout, stderr string, code int) {
	v.t.Helper()
	args := append([]string{
		"-t", strconv.Itoa(v.cmd.Process.Pid), "-m", "-p", "-n", "-r", "-S", "107", "-G", "107", "--", argv[0],
	}, argv[1:]...)
	cmd := exec.Command("nsenter", args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		v.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// ctl runs launcher ctl and fails the test unless it succeeds.
func (v *vm) ctl(args ...string) string {
	v.t.Helper()
	out, errs, code := v.inside(nil, append([]string{"/usr/bin/launcher", "ctl"}, args...)...)
	if code != 0 {
		v.t.Fatalf("launcher ctl %s: exit %d: %s", strings.Join(args, " "), code, errs)
	}
	return out
}

// state is launcher ctl status -o json.
func (v *vm) state() map[string]any {
	v.t.Helper()
	var s map[string]any
	if err := json.Unmarshal([]byte(v.ctl("status", "-o", "json")), &s); err != nil {
		v.t.Fatal(err)
	}
	return s
}

// eventually tries until the condition holds.
func (v *vm) eventually(what string, holds func() bool) {
	v.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline.C:
			v.t.Fatalf("it did not happen: %s", what)
		case <-tick.C:
		}
	}
}

// booted waits for the tiny guest to be up, n times since the start of the container. A container whose QEMU fell over
// its own fault while the guest came up is run again, as the kubelet does it.
func (v *vm) booted(n int) {
	v.t.Helper()
	for try := 0; n == 1 && try < 3 && v.fellOver(); try++ {
		v.t.Log("QEMU's emulation of several vCPUs failed; once more")
		v.run()
	}
	v.says(`podvirt-tiny: ready after`, n)
	v.says(`login:`, n)
}

// fellOver waits until the guest is up or the container has ended, and says whether it was QEMU's known fault: while one
// vCPU maps PCI devices, another that QEMU 10 emulates looks a device up in the memory map of before, and QEMU aborts
// (system/physmem.c: iotlb_to_section; QEMU 11 keeps the device itself).
func (v *vm) fellOver() bool {
	select {
	case <-v.ended:
		return strings.Contains(v.log.String(), "iotlb_to_section: Assertion")
	case <-v.out.seen(`login:`, 1):
	case <-time.After(patience):
	}
	return false
}

// says waits until the guest has said something n times; a container that has ended says nothing more.
func (v *vm) says(pattern string, n int) {
	v.t.Helper()
	select {
	case <-v.out.seen(pattern, n):
	case <-v.ended:
		v.t.Fatalf("the container ended before the guest said %q", pattern)
	case <-time.After(patience):
		v.t.Fatalf("the guest did not say %q %d times", pattern, n)
	}
}

// record is what a process wrote.
type record struct{ transcript.Transcript }

// seen returns a channel that is closed when a pattern has come n times.
func (r *record) seen(pattern string, n int) <-chan struct{} {
	re, done := regexp.MustCompile(pattern), make(chan struct{})
	go func() {
		for {
			text, more := r.Follow()
			if len(re.FindAllStringIndex(text, n)) >= n {
				close(done)
				return
			}
			<-more
		}
	}()
	return done
}

// wait waits until a pattern has come n times.
func (r *record) wait(t *testing.T, pattern string, n int) {
	t.Helper()
	select {
	case <-r.seen(pattern, n):
	case <-time.After(patience):
		t.Fatalf("%q did not come %d times; there is: %.2000s", pattern, n, r)
	}
}

// session is a console session that types.
type session struct {
	v    *vm
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *record
	errs *record
	done chan struct{}
}

// console opens the serial console.
func (v *vm) console(flags ...string) *session {
	v.t.Helper()
	args := append([]string{
		"-t", strconv.Itoa(v.cmd.Process.Pid), "-m", "-p", "-n", "-r", "-S", "107", "-G", "107", "--",
		"/usr/bin/launcher", "ctl", "console",
	}, flags...)
	s := &session{v: v, cmd: exec.Command("nsenter", args...), out: &record{}, errs: &record{}, done: make(chan struct{})}
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.errs
	s.cmd.WaitDelay = time.Second // nsenter's child lives as long as the container
	in, err := s.cmd.StdinPipe()
	if err == nil {
		s.in = in
		err = s.cmd.Start()
	}
	if err != nil {
		v.t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.done)
	}()
	v.t.Cleanup(s.end)
	return s
}

func (s *session) end() {
	_ = s.cmd.Process.Kill()
	<-s.done
}

// quit leaves by Ctrl+], so that the next one may write.
func (s *session) quit() {
	s.v.t.Helper()
	if _, err := s.in.Write([]byte{0x1d}); err != nil {
		s.v.t.Fatal(err)
	}
	select {
	case <-s.done:
	case <-time.After(patience):
		s.v.t.Fatal("Ctrl+] does not end the session")
	}
}

func (s *session) typeLine(line string) {
	s.v.t.Helper()
	if _, err := io.WriteString(s.in, line+"\n"); err != nil {
		s.v.t.Fatal(err)
	}
}

// login logs in as root, who has no password in the tiny guest. What a session shows first may be the prompt of an
// earlier boot, and login drops what was typed before it was ready, so that the shell is asked for a word of its own.
func (v *vm) login() *session {
	v.t.Helper()
	s := v.console()
	s.typeLine("root")
	word := strconv.FormatInt(time.Now().UnixNano(), 36)
	answered := s.out.seen("shell-"+word, 1)
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-answered:
			return s
		case <-tick.C:
			s.typeLine("echo shell''-" + word)
		case <-deadline.C:
			v.t.Fatalf("no shell; there is: %.2000s %s", s.out, s.errs)
		}
	}
}
