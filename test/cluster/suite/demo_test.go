package suite

import (
	"bytes"
	"context"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/test/cluster/harness"
)

// TestDemo does what a newcomer does: make demo, and then each way to log in, word for word as it is printed. The second
// demo finds the VM and leaves it as it is.
func TestDemo(t *testing.T) {
	c := harness.Installed(t)
	c.RequireImage(t, "guest-debian")
	const namespace, vm = "podvirt-demo", "debian"
	if _, err := c.Client.CoreV1().Namespaces().Get(t.Context(), namespace, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		t.Cleanup(func() {
			if err := c.Client.CoreV1().Namespaces().Delete(context.WithoutCancel(t.Context()), namespace, metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	printed := runDemo(t)
	first, err := c.Client.CoreV1().Pods(namespace).Get(t.Context(), vm, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("ssh", func(t *testing.T) {
		command := "exec " + wayIn(t, printed, "ssh") + " -o BatchMode=yes -o ConnectTimeout=5 'id -un; hostname; sudo -n id -u'"
		harness.Eventually(t, harness.Medium, command, func(ctx context.Context) error {
			out, err := exec.CommandContext(ctx, "sh", "-c", command).Output()
			if err != nil {
				return err
			}
			if got, want := strings.Fields(string(out)), "debian debian 0"; strings.Join(got, " ") != want {
				t.Errorf("user, host and sudo: %q; want %q", got, want)
			}
			return nil
		})
	})
	// In this order: whoever typed by attach keeps the console for ten seconds more.
	t.Run("or", func(t *testing.T) {
		term := logInAsPrinted(t, wayIn(t, printed, "or"))
		term.Send(t, "\x1d") // ctrl-]
		term.ExpectEnd(t, harness.Short)
	})
	t.Run("serial console", func(t *testing.T) { logInAsPrinted(t, wayIn(t, printed, "serial console")) })
	t.Run("again", func(t *testing.T) {
		if again := runDemo(t); again != printed {
			t.Errorf("the second demo printed\n%s\nthe first\n%s", again, printed)
		}
		pod, err := c.Client.CoreV1().Pods(namespace).Get(t.Context(), vm, metav1.GetOptions{})
		if err != nil || pod.UID != first.UID || pod.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("not the VM of the first demo: %v", err)
		}
	})
}

// runDemo runs the command behind make demo in the root of the repository and returns what it prints for the user.
func runDemo(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "run", "./test/cluster/local", "demo")
	cmd.Dir = "../../.."
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("demo: %v\n%s", err, log.Bytes())
	}
	return string(out)
}

// wayIn is the command that the demo prints behind a name.
func wayIn(t *testing.T, printed, name string) string {
	t.Helper()
	match := regexp.MustCompile(`(?m)^ +` + name + `  +(\S.*?)(?:  +\(.*\))?$`).FindStringSubmatch(printed)
	if match == nil {
		t.Fatalf("no line %q in\n%s", name, printed)
	}
	return match[1]
}

// logInAsPrinted runs a command that shows the serial console, on a terminal, and logs in with the demo's user and
// password, and out again.
func logInAsPrinted(t *testing.T, command string) *harness.Terminal {
	t.Helper()
	term := harness.Command(t, command)
	term.Send(t, "\n") // whoever comes later sees no prompt before that
	term.Expect(t, harness.Medium, `debian login: `)
	term.Send(t, "debian\n")
	term.Expect(t, harness.Medium, `Password: `)
	term.Send(t, "podvirt\n")
	term.Expect(t, harness.Medium, `debian@debian:~\$ `)
	term.Send(t, "echo $((40+2))-seen; exit\n")
	term.Expect(t, harness.Medium, `42-seen`)
	term.Expect(t, harness.Medium, `debian login: `)
	return term
}
