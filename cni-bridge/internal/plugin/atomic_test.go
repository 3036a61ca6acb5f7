package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"podvirt.dev/cni-bridge/internal/world"
)

// envKill makes the test binary a plugin that is killed behind the step with this number.
const envKill = "PODVIRT_TEST_KILL_AFTER"

// TestChild is what the test binary does as another process.
func TestChild(t *testing.T) {
	switch {
	case os.Getenv(envKill) != "":
		addAndDie(t)
	case os.Getenv(envOpen) != "":
		must(t, errors.Join(becomeUser(os.Getenv(envUser)), openQueues(os.Getenv(envOpen))))
	case os.Getenv(envProxy) != "":
		runProxy(t)
	case os.Getenv(envWait) != "":
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
}

// child prepares a process that runs TestChild with this environment.
func child(t *testing.T, environment ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestChild$")
	cmd.Env = append(os.Environ(), environment...)
	return cmd
}

// addAndDie runs an ADD whose arguments come on stdin, and kills its own process behind a step.
func addAndDie(t *testing.T) {
	var call struct {
		Args  skel.CmdArgs
		After int
	}
	must(t, json.NewDecoder(os.Stdin).Decode(&call))
	step := 0
	p := Plugin{Out: io.Discard, AfterStep: func(string) error {
		if step++; step == call.After {
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	}}
	must(t, p.Funcs(t.Context()).Add(&call.Args))
}

// made is an attachment whose ADD has every step of some bindings.
type made struct {
	name  string
	least int // steps
	pod   func(t *testing.T) *attachment
}

func bindings() []made {
	all := []made{
		{"masquerade, and wire of a second interface", 14, func(t *testing.T) *attachment {
			return newAttachment(t, world.Options{Extra: []string{"net1"}}, vmPod("ports=80"))
		}},
		{"bridge", 9, func(t *testing.T) *attachment { return newAttachment(t, world.Options{}, vmPod("binding=bridge")) }},
	}
	if vlans() {
		return all[:1] // the guest is slow, and its kernel's bridges are no others
	}
	return all
}

// steps returns the names of all steps of its ADD.
func (m made) steps(t *testing.T) []string {
	t.Helper()
	var names []string
	a := m.pod(t)
	a.plugin.AfterStep = func(step string) error {
		names = append(names, step)
		return nil
	}
	must(t, a.add(t))
	if len(names) < m.least {
		t.Fatalf("ADD has the steps %v; want at least %d", names, m.least)
	}
	return names
}

func TestAddIsUndoneBehindEachStep(t *testing.T) {
	for _, m := range bindings() {
		t.Run(m.name, func(t *testing.T) { addIsUndone(t, m) })
	}
}

func addIsUndone(t *testing.T, m made) {
	for i, name := range m.steps(t) {
		t.Run(name, func(t *testing.T) {
			a := m.pod(t)
			before := world.Snapshot(t, a.Pod)
			step, failure := 0, errors.New("injected")
			a.plugin.AfterStep = func(string) error {
				if step++; step == i+1 {
					return failure
				}
				return nil
			}
			if err := a.add(t); err == nil || !strings.Contains(err.Error(), "injected") {
				t.Errorf("ADD = %v; want the injected failure", err)
			}
			if a.out.Len() > 0 {
				t.Errorf("a failed ADD printed %q", a.out)
			}
			if diff := cmp.Diff(before, world.Snapshot(t, a.Pod)); diff != "" {
				t.Errorf("namespace after a failed ADD (-before,+after)\n%s", diff)
			}
			noJournal(t, a)
			a.plugin.AfterStep = nil
			must(t, a.add(t))
			must(t, a.check(t))
		})
	}
}

func TestKilledBehindEachStep(t *testing.T) {
	for _, m := range bindings() {
		t.Run(m.name, func(t *testing.T) { killedBehindEachStep(t, m) })
	}
}

func killedBehindEachStep(t *testing.T, m made) {
	for i, name := range m.steps(t) {
		t.Run(name, func(t *testing.T) {
			a := m.pod(t)
			before := world.Snapshot(t, a.Pod)
			killed := func() {
				input, err := json.Marshal(map[string]any{"Args": a.args(t, previousResult(a.Pod.Path())), "After": i + 1})
				must(t, err)
				cmd := child(t, envKill+"=1")
				cmd.Stdin = bytes.NewReader(input)
				out, err := cmd.CombinedOutput()
				exit, ok := errors.AsType[*exec.ExitError](err)
				if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("the plugin ended with %v, %q; want SIGKILL", err, out)
				}
			}
			killed()
			must(t, a.del(t))
			if diff := cmp.Diff(before, world.Snapshot(t, a.Pod)); diff != "" {
				t.Errorf("namespace after kill and DEL (-before,+after)\n%s", diff)
			}
			noJournal(t, a)

			killed() // and without a DEL between, the next ADD takes over
			must(t, a.add(t))
			must(t, a.check(t))
			must(t, a.del(t))
			if diff := cmp.Diff(before, world.Snapshot(t, a.Pod)); diff != "" {
				t.Errorf("namespace after kill, ADD and DEL (-before,+after)\n%s", diff)
			}
		})
	}
}

func noJournal(t *testing.T, a *attachment) {
	t.Helper()
	for _, dir := range []string{"attachments", "locks"} {
		if left, err := filepath.Glob(filepath.Join(a.stateDir, dir, "*")); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
}

func TestDelAlwaysSucceeds(t *testing.T) {
	for name, act := range map[string]func(t *testing.T, a *attachment){
		"twice": func(t *testing.T, a *attachment) {
			must(t, a.add(t))
			must(t, a.del(t))
			must(t, a.del(t))
		},
		"before ADD": func(t *testing.T, a *attachment) { must(t, a.del(t)) },
		"without journal": func(t *testing.T, a *attachment) {
			must(t, a.add(t))
			must(t, os.RemoveAll(a.stateDir))
			a.annotations = nil
			must(t, a.del(t))
		},
		"with another configuration": func(t *testing.T, a *attachment) {
			must(t, a.add(t))
			a.extra = map[string]any{"nonsense": true, "v4CIDR": "10.9.0.0/24"}
			must(t, a.del(t))
		},
		"without annotations": func(t *testing.T, a *attachment) {
			must(t, a.add(t))
			a.annotations = nil
			must(t, a.del(t))
		},
		"without the namespace's path": func(t *testing.T, a *attachment) {
			must(t, a.add(t))
			args := a.args(t, nil)
			args.Netns = ""
			must(t, a.plugin.Funcs(t.Context()).Del(args))
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttachment(t, world.Options{}, vmPod(""))
			before := world.Snapshot(t, a.Pod)
			act(t, a)
			after := world.Snapshot(t, a.Pod)
			if name == "without journal" { // what only the journal knows: the sysctls, which end with the namespace
				before, after = withoutSysctls(before), withoutSysctls(after)
			}
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("namespace (-before,+after)\n%s", diff)
			}
			noJournal(t, a)
		})
	}
}

func withoutSysctls(snapshot string) string {
	var kept []string
	for line := range strings.Lines(snapshot) {
		if !strings.HasPrefix(line, "/proc/") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

func TestDelAfterTheNamespaceAndSweep(t *testing.T) {
	gone := newAttachment(t, world.Options{}, vmPod(""))
	must(t, gone.add(t))
	args := gone.args(t, nil)
	// The path may be another namespace by now: it must not be touched.
	args.Netns = gone.Guest.Path()
	journalled := filepath.Join(gone.stateDir, "attachments", "c1-eth0.json")
	data, err := os.ReadFile(journalled)
	must(t, err)
	data = bytes.ReplaceAll(data, []byte(gone.Pod.Path()), []byte(gone.Outside.Path()))
	must(t, os.WriteFile(journalled, data, 0o600))
	before := world.Snapshot(t, gone.Outside)

	other := newAttachment(t, world.Options{}, vmPod(""))
	other.stateDir, other.id = gone.stateDir, "c2"
	must(t, other.add(t))
	must(t, other.del(t)) // sweeps c1 as well
	noJournal(t, gone)
	if diff := cmp.Diff(before, world.Snapshot(t, gone.Outside)); diff != "" {
		t.Errorf("a namespace that took over the path was changed (-before,+after)\n%s", diff)
	}
	must(t, gone.plugin.Funcs(t.Context()).Del(args))
}

// TestUndoThatFails: a setting that cannot be put back is said with code 110, the journal stays, and the next GC or DEL
// finishes.
func TestUndoThatFails(t *testing.T) {
	a := newAttachment(t, world.Options{}, vmPod(""))
	before := world.Snapshot(t, a.Pod)
	must(t, a.add(t))
	path := filepath.Join(a.stateDir, "attachments", "c1-eth0.json")
	good, err := os.ReadFile(path)
	must(t, err)
	impossible := bytes.Replace(good, []byte(`"before":"0"`), []byte(`"before":"no number"`), 1)
	if bytes.Equal(good, impossible) {
		t.Fatalf("no setting was 0 before:\n%s", good)
	}
	must(t, os.WriteFile(path, impossible, 0o600))
	for name, verb := range map[string]func() error{
		"DEL": func() error { return a.del(t) },
		"GC":  func() error { return a.plugin.Funcs(t.Context()).GC(a.args(t, nil)) },
		"ADD": func() error { return a.add(t) },
	} {
		if err := verb(); code(err) != 110 || !strings.Contains(err.Error(), "undo incomplete") {
			t.Errorf("%s = %v; want code 110", name, err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%s took the journal away: %v", name, err)
		}
	}
	must(t, os.WriteFile(path, good, 0o600))
	must(t, a.plugin.Funcs(t.Context()).GC(a.args(t, nil)))
	if diff := cmp.Diff(before, world.Snapshot(t, a.Pod)); diff != "" {
		t.Errorf("namespace (-before,+after)\n%s", diff)
	}
	noJournal(t, a)
}

func TestNoVMPassesUntouched(t *testing.T) {
	for name, annotations := range map[string]map[string]string{
		"no annotations at all, as below Multus": nil,
		"other prefixes":                         {"example.com/vm": "x", "kubernetes.io/egress-bandwidth": "1M"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttachment(t, world.Options{}, annotations)
			before := world.Snapshot(t, a.Pod)
			must(t, a.add(t))
			if want := string(previousResult(a.Pod.Path())); a.out.String() != want {
				t.Errorf("result\n%q\nwant\n%q", a.out, want)
			}
			must(t, a.check(t))
			must(t, a.del(t))
			if diff := cmp.Diff(before, world.Snapshot(t, a.Pod)); diff != "" {
				t.Errorf("namespace (-before,+after)\n%s", diff)
			}
			noJournal(t, a)
		})
	}
}

func TestStampIsRenewed(t *testing.T) {
	a := newAttachment(t, world.Options{}, nil)
	must(t, a.add(t))
	stamp := filepath.Join(a.stateDir, "called")
	old := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(stamp, old, old))
	must(t, a.plugin.Funcs(t.Context()).Status(a.args(t, nil)))
	info, err := os.Stat(stamp)
	must(t, err)
	if time.Since(info.ModTime()) > time.Minute {
		t.Errorf("stamp of %s; want now", info.ModTime())
	}
}

func TestParallelAddAndDel(t *testing.T) {
	const pods, rounds = 8, 5
	stateDir := t.TempDir()
	all := make([]*attachment, pods)
	before := make([]string, pods)
	for i := range all {
		all[i] = newAttachment(t, world.Options{}, vmPod(""))
		all[i].stateDir, all[i].id = stateDir, "c"+string(rune('a'+i))
		before[i] = world.Snapshot(t, all[i].Pod)
	}
	done := make(chan error, 2*pods)
	for _, a := range all {
		args := a.args(t, previousResult(a.Pod.Path()))
		for range 2 { // two callers per Pod
			go func() {
				funcs := Plugin{Out: &bytes.Buffer{}}.Funcs(t.Context())
				var errs []error
				for range rounds {
					errs = append(errs, untilFree(t, args, funcs.Add), untilFree(t, args, funcs.Del))
				}
				done <- errors.Join(errs...)
			}()
		}
	}
	for range 2 * pods {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for i, a := range all {
		if diff := cmp.Diff(before[i], world.Snapshot(t, a.Pod)); diff != "" {
			t.Errorf("Pod %d (-before,+after)\n%s", i, diff)
		}
	}
	noJournal(t, all[0])
}

// untilFree calls again, as a runtime does, while the other caller has the container.
func untilFree(t *testing.T, args *skel.CmdArgs, call func(*skel.CmdArgs) error) error {
	for {
		if err := call(args); code(err) != types.ErrTryAgainLater || t.Context().Err() != nil {
			return err
		}
	}
}

func code(err error) uint {
	e, ok := errors.AsType[*types.Error](err)
	if !ok {
		return 0
	}
	return e.Code
}
