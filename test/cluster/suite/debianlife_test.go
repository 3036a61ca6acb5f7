package suite

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

// inGuest runs a command in the Debian guest at an address.
type inGuest func(command string) string

// checkAgentData: what the guest agent tells is what the guest's own programs say (VM-170). Debian 13 keeps no utmp any
// more, which is where the agent looks for users.
func checkAgentData(t *testing.T, ns *harness.Namespace, pod string, guest inGuest) {
	t.Helper()
	ctl(t, ns, pod, "agent", "users")
	for what, command := range map[string]string{
		"os":   `. /etc/os-release; echo "$PRETTY_NAME"; uname -r; uname -m`,
		"fs":   `findmnt -no FSTYPE /; findmnt -no SOURCE / | sed "s#/dev/##"`,
		"nics": `cat /sys/class/net/e*/address; ip -o addr show scope global | grep -o "inet6* [^/]*" | cut -d" " -f2`,
		"time": `date +%Z`,
	} {
		told := ctl(t, ns, pod, "agent", what)
		for word := range strings.SplitSeq(strings.TrimSpace(guest(command)), "\n") {
			if !strings.Contains(told, word) {
				t.Errorf("agent %s lacks %q:\n%s", what, word, told)
			}
		}
	}
}

// checkPause: the guest's clock is right after a pause, and a session goes on (VM-115).
func checkPause(t *testing.T, ns *harness.Namespace, pod string, guest inGuest) {
	t.Helper()
	const pause = 8 * time.Second
	behind := func() float64 {
		now := float64(time.Now().UnixNano()) / 1e9
		at, err := strconv.ParseFloat(strings.TrimSpace(guest("date +%s.%N")), 64)
		if err != nil {
			t.Fatal(err)
		}
		return now - at
	}
	before := behind()
	ctl(t, ns, pod, "pause")
	<-time.After(pause)
	ctl(t, ns, pod, "resume")
	if after := behind(); math.Abs(after-before) > pause.Seconds()/2 {
		t.Errorf("the guest's clock was %.1f s behind and is %.1f s behind after a pause of %s", before, after, pause)
	}
}

// checkProbes: each probe both ways, and the condition of an agent that is stopped (VM-170, VM-176).
func checkProbes(t *testing.T, ns *harness.Namespace, pod string, guest inGuest) {
	t.Helper()
	probe := func(want int, args ...string) {
		t.Helper()
		result, err := ns.TryExec(t.Context(), pod, api.ContainerName, nil, append([]string{"launcher", "probe"}, args...)...)
		if err != nil || result.Code != want {
			t.Errorf("launcher probe %v: %+v, %v; want exit %d", args, result, err, want)
		}
	}
	probe(0, "agent")
	probe(0, "exec", "--", "true")
	probe(1, "exec", "--", "false")
	probe(0, "fs", "/", "--min-free", "1%")
	probe(1, "fs", "/", "--min-free", "99%")
	guest("sudo systemctl stop qemu-guest-agent")
	begin := time.Now()
	waitCondition(t, ns, pod, api.ConditionAgentConnected, "False")
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("the loss of the agent was told after %s; want 30 s", took)
	}
	probe(1, "agent")
	guest("sudo systemctl start qemu-guest-agent")
	waitCondition(t, ns, pod, api.ConditionAgentConnected, "True")
	probe(0, "agent")
}

func waitCondition(t *testing.T, ns *harness.Namespace, pod, kind, want string) {
	t.Helper()
	harness.Eventually(t, harness.Medium, kind+" "+want, func(context.Context) error {
		var status struct {
			Conditions []struct{ Type, Status string }
		}
		if err := json.Unmarshal([]byte(ctl(t, ns, pod, "status", "-o", "json")), &status); err != nil {
			return err
		}
		for _, c := range status.Conditions {
			if c.Type == kind && c.Status == want {
				return nil
			}
		}
		return fmt.Errorf("conditions %v", status.Conditions)
	})
}

// checkReadiness: endpoints drop a guest whose web server stands still, and take it back (VM-175).
func checkReadiness(t *testing.T, ns *harness.Namespace, name string, guest inGuest) {
	t.Helper()
	for _, step := range []struct {
		signal string
		ready  bool
	}{{"STOP", false}, {"CONT", true}} {
		guest("sudo systemctl kill --signal=" + step.signal + " page")
		harness.Eventually(t, harness.Medium, "endpoints after "+step.signal, func(ctx context.Context) error {
			if n := len(endpoints(ctx, t, ns, name)); (n > 0) != step.ready {
				return fmt.Errorf("%d endpoints", n)
			}
			return nil
		})
	}
}

// checkSeenOff: the agent shuts the guest down when its Pod is deleted (VM-112).
func checkSeenOff(t *testing.T, ns *harness.Namespace, pod string) {
	t.Helper()
	if end := seenOff(t, ns, pod); end.ExitCode != 0 || !regexp.MustCompile(`^Stopped: shutdown by agent took \S+$`).MatchString(end.Message) {
		t.Errorf("end of the container: code %d, %q; want 0 and a shutdown by the agent", end.ExitCode, end.Message)
	}
}

// keysSecret holds a public key under a name that means nothing.
func keysSecret(name, publicKey string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: %s}
stringData: {"any.name-at_all": %q}
`, name, publicKey)
}

// checkAgentReadiness: a Pod whose readiness is the agent's is not ready after three periods without it (VM-176).
func checkAgentReadiness(t *testing.T, ns *harness.Namespace, pod *corev1.Pod) {
	t.Helper()
	for _, step := range []struct {
		verb  string
		ready bool
	}{{"stop", false}, {"start", true}} {
		_, err := guestSSHAs(t.Context(), ns, "debian", pod.Status.PodIP, "sudo systemctl "+step.verb+" qemu-guest-agent")
		if err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, harness.Medium, "readiness after "+step.verb, func(ctx context.Context) error {
			if n := len(endpoints(ctx, t, ns, pod.Labels[api.LabelVM])); (n > 0) != step.ready {
				return fmt.Errorf("%d endpoints", n)
			}
			return nil
		})
	}
}
