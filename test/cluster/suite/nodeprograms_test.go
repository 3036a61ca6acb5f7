package suite

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

// gapScript looks at the guest's clock without a pause, for ten seconds twice, and says by how many hundredths of a second
// it jumped at most.
const gapScript = `for when in before during; do max=0; read now x </proc/uptime; last=${now%.*}${now#*.}; end=$((last+1000)); ` +
	`while [ $last -lt $end ]; do read now x </proc/uptime; new=${now%.*}${now#*.}; ` +
	`[ $((new-last)) -gt $max ] && max=$((new-last)); last=$new; done; echo "gap-$when $max" >/dev/console; done`

// TestNodeProgramsKilled kills kubelet and containerd under a running guest, whose clock does not jump (VM-125). The bound
// is that of the row, or what the machine does to the guest anyway.
func TestNodeProgramsKilled(t *testing.T) {
	long(t, "test-life")
	ns := setUp(t, "guest-tiny")
	ns.Apply(t, newVM("steady", "guest-tiny").httpReady(8080).manifest(t))
	pod := ns.WaitPod(t, "steady", harness.Medium, harness.Ready)
	before := vmProcesses(t, ns, pod)
	term := ns.Shell(t, "steady", api.ContainerName, "launcher", "ctl", "console")
	logIn(t, term)
	term.Send(t, "("+gapScript+") &\n")
	ns.WaitLog(t, "steady", api.ContainerName, "gap-before ", harness.Medium)

	for _, program := range []string{"kubelet", "containerd"} {
		killProgram(t, ns, pod.Spec.NodeName, program)
	}
	begin := time.Now()
	harness.Eventually(t, harness.Medium, "a kubelet that serves again", func(ctx context.Context) error {
		result, err := ns.TryExec(ctx, "steady", api.ContainerName, nil, "launcher", "ctl", "status")
		if err == nil && !strings.Contains(result.Stdout, "running") {
			err = fmt.Errorf("%+v", result)
		}
		return err
	})
	t.Logf("kubelet and containerd served again after %s", time.Since(begin).Round(time.Millisecond))
	ns.WaitLog(t, "steady", api.ContainerName, "gap-during ", harness.Medium)
	log := ns.Log(t, "steady", api.ContainerName)
	gap := func(when string) time.Duration {
		found := regexp.MustCompile("gap-" + when + ` (\d+)`).FindStringSubmatch(log)
		if found == nil {
			t.Fatalf("no gap-%s in %s", when, log)
		}
		n, err := strconv.Atoi(found[1])
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(n) * 10 * time.Millisecond
	}
	const most = 100 * time.Millisecond
	t.Logf("the guest's clock jumped by at most %s before and %s meanwhile", gap("before"), gap("during"))
	if gap("during") > max(most, gap("before")) {
		t.Errorf("the guest's clock jumped by %s; want at most %s", gap("during"), most)
	}
	now := ns.WaitPod(t, "steady", harness.Medium, harness.Ready)
	after := vmProcesses(t, ns, pod)
	if now.UID != pod.UID || now.Status.ContainerStatuses[0].RestartCount != 0 || after["qemu-system-x86"] != before["qemu-system-x86"] ||
		after["launcher"] != before["launcher"] {
		t.Errorf("processes were %v and are %v", before, after)
	}
}

// killProgram kills a program of a node, whose file name may end with its version.
func killProgram(t *testing.T, ns *harness.Namespace, node, program string) {
	t.Helper()
	out := ns.OnNode(t, node, "sh", "-c",
		`for p in /proc/[0-9]*; do case "$(readlink $p/exe)" in */`+program+`|*/`+program+`-v[0-9]*) kill -9 ${p#/proc/} && echo killed;; esac; done; true`)
	if !strings.Contains(out, "killed") {
		t.Errorf("%s does not run on %s", program, node)
	}
}
