package harness

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
)

// Terminal is an interactive session with a container, as "kubectl attach -it" and "kubectl exec -it" give it, or with a
// command of this machine.
type Terminal struct {
	input io.WriteCloser
	ended chan struct{} // closed when the other side has ended the session

	mu   sync.Mutex
	seen []byte // everything that was printed
	read int    // how much of it Expect has consumed
}

// Attach opens a terminal to the main process of a container with stdin and tty.
func (n *Namespace) Attach(t testing.TB, pod, container string) *Terminal {
	t.Helper()
	return n.terminal(t, pod, "attach", &corev1.PodAttachOptions{Container: container, Stdin: true, Stdout: true, TTY: true})
}

// Shell opens a terminal to a new process in a container.
func (n *Namespace) Shell(t testing.TB, pod, container string, argv ...string) *Terminal {
	t.Helper()
	return n.terminal(t, pod, "exec", &corev1.PodExecOptions{Container: container, Command: argv, Stdin: true, Stdout: true, TTY: true})
}

func (n *Namespace) terminal(t testing.TB, pod, verb string, options any) *Terminal {
	t.Helper()
	request := n.Client.CoreV1().RESTClient().Post().Namespace(n.Name).Resource("pods").Name(pod).SubResource(verb)
	switch o := options.(type) {
	case *corev1.PodAttachOptions:
		request = request.VersionedParams(o, scheme.ParameterCodec)
	case *corev1.PodExecOptions:
		request = request.VersionedParams(o, scheme.ParameterCodec)
	}
	executor, err := remotecommand.NewSPDYExecutor(n.Config, "POST", request.URL())
	if err != nil {
		t.Fatal(err)
	}
	reader, writer := io.Pipe()
	term := &Terminal{input: writer, ended: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(term.ended)
		_ = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: reader, Stdout: term, Tty: true}) // Expect says what did not come
	}()
	t.Cleanup(func() {
		cancel()
		_ = writer.Close() // never fails: io.Pipe
		term.tell(t, pod)
	})
	return term
}

// Command runs a shell command of this machine on a terminal of its own, as a user's is.
func Command(t testing.TB, command string) *Terminal {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, "script", "--quiet", "--return", "--command", command, os.DevNull)
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	term := &Terminal{input: input, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = term, term
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(term.ended)
		_ = cmd.Wait() // it is killed, or Expect says what did not come
	}()
	t.Cleanup(func() {
		cancel()
		<-term.ended
		term.tell(t, command)
	})
	return term
}

// tell logs what was on the terminal of a test that failed.
func (term *Terminal) tell(t testing.TB, whose string) {
	if t.Failed() {
		term.mu.Lock()
		defer term.mu.Unlock()
		t.Logf("terminal of %s:\n%s", whose, term.seen)
	}
}

// Write takes what the container prints.
func (term *Terminal) Write(data []byte) (int, error) {
	term.mu.Lock()
	defer term.mu.Unlock()
	term.seen = append(term.seen, data...)
	return len(data), nil
}

// Send types a text; "\n" is the return key.
func (term *Terminal) Send(t testing.TB, text string) {
	t.Helper()
	if _, err := io.WriteString(term.input, text); err != nil {
		t.Fatalf("typing %q: %v", text, err)
	}
}

// ExpectEnd waits until the session is over.
func (term *Terminal) ExpectEnd(t testing.TB, timeout time.Duration) {
	t.Helper()
	select {
	case <-term.ended:
	case <-time.After(timeout):
		t.Fatal("the session does not end")
	}
}

// Expect waits until something matches that was printed after the last match, and returns the match and its groups.
func (term *Terminal) Expect(t testing.TB, timeout time.Duration, pattern string) []string {
	t.Helper()
	expression := regexp.MustCompile(pattern)
	var groups []string
	Eventually(t, timeout, fmt.Sprintf("%q on the terminal", pattern), func(context.Context) error {
		term.mu.Lock()
		defer term.mu.Unlock()
		at := expression.FindSubmatchIndex(term.seen[term.read:])
		if at == nil {
			return fmt.Errorf("not seen yet; last: %q", term.seen[max(term.read, len(term.seen)-200):])
		}
		for i := 0; i < len(at); i += 2 {
			groups = append(groups, group(term.seen[term.read:], at[i], at[i+1]))
		}
		term.read += at[1]
		return nil
	})
	return groups
}

func group(text []byte, from, to int) string {
	if from < 0 {
		return ""
	}
	return string(text[from:to])
}
