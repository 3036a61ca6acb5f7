package suite

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

// wrong are annotations with one mistake each, and what is said of it. The nearest word is the launcher's alone: a
// policy written in CEL leaves it out.
var wrong = map[string]struct{ value, says, nearest string }{
	"firmware":    {"efi", `podvirt.dev/firmware: "efi": not one of bios, uefi, none`, "; nearest: uefi"},
	"cpu-toplogy": {"cores=2", `podvirt.dev/cpu-toplogy: unknown annotation`, "; nearest: podvirt.dev/cpu-topology"},
	"cpu-model":   {"Haswel", `podvirt.dev/cpu-model: "Haswel": no such model`, "; nearest: Haswell"},
	"on-poweroff": {"hodl", `podvirt.dev/on-poweroff: "hodl": not one of exit, restart, hold`, "; nearest: hold"},
	"video":       {"vag", `podvirt.dev/video: "vag": not one of `, "; nearest: vga"},
}

// TestWrongManifests shows that mistakes are refused where the user types them, all at once, on Pods and on templates
// (VM-002, VM-005).
func TestWrongManifests(t *testing.T) {
	ns := harness.Installed(t).Namespace(t, harness.Restricted)
	bad := newVM("bad", "guest-tiny")
	for key, mistake := range wrong {
		bad.annotate(map[string]string{key: mistake.value})
	}
	for kind, text := range map[string]string{"Pod": bad.manifest(t), "Deployment": bad.deployment(t, 1)} {
		t.Run(kind, func(t *testing.T) {
			err := ns.TryApply(t.Context(), text)
			for _, mistake := range wrong {
				if err == nil || !strings.Contains(err.Error(), mistake.says) {
					t.Errorf("message lacks %q:\n%v", mistake.says, err)
				}
			}
		})
	}
	for key, mistake := range wrong {
		t.Run(key, func(t *testing.T) {
			err := ns.TryApply(t.Context(), newVM("bad", "guest-tiny").annotate(map[string]string{key: mistake.value}).manifest(t))
			if err == nil || !strings.Contains(err.Error(), mistake.says) {
				t.Errorf("got %v; want %q", err, mistake.says)
			}
		})
	}
}

// TestWithoutPolicies shows that policies are a comfort: a complete manifest runs without them, and mistakes are then
// told by the launcher in the same words (VM-003).
func TestWithoutPolicies(t *testing.T) {
	ns := setUp(t, "guest-tiny")
	good := newVM("complete", "guest-tiny").httpReady(8080)
	ns.Apply(t, good.manifest(t)) // the policies complete it
	pods := ns.Client.CoreV1().Pods(ns.Name)
	completed, err := pods.Get(t.Context(), "complete", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	deletePod(t, ns, "complete")
	ns.WithoutPolicies(t)

	completed.ObjectMeta = metav1.ObjectMeta{Name: completed.Name, Labels: completed.Labels, Annotations: completed.Annotations}
	completed.Spec.NodeName = ""
	completed.Status.Reset()
	completed.APIVersion, completed.Kind = "v1", "Pod"
	ns.Apply(t, manifest(t, completed))
	ns.WaitPod(t, "complete", harness.Medium, harness.Ready)

	bad := completed.DeepCopy()
	bad.Name = "bad"
	bad.Spec.SchedulerName = "default-scheduler" // ours would refuse it as well
	for key, mistake := range wrong {
		bad.Annotations[api.Prefix+key] = mistake.value
	}
	ns.Apply(t, manifest(t, bad))
	pod := ns.WaitPod(t, "bad", harness.Medium, ended)
	end := terminated(pod)
	if end.ExitCode != 10 || !strings.HasPrefix(end.Message, "BadConfig: ") {
		t.Errorf("code %d, %q; want 10 and BadConfig", end.ExitCode, end.Message)
	}
	for _, mistake := range wrong {
		if !strings.Contains(end.Message, mistake.says) || !strings.Contains(end.Message, mistake.nearest) {
			want := mistake.says + mistake.nearest
			t.Errorf("message lacks %q:\n%s", want, end.Message)
		}
	}
	if lines := strings.Count(end.Message, "\n") + 1; lines != len(wrong) {
		t.Errorf("%d lines for %d mistakes:\n%s", lines, len(wrong), end.Message)
	}
	t.Run("owners", func(t *testing.T) {
		long(t, "test-life")
		checkBadConfigOwners(t, ns, bad)
	})
}

// TestPlacement shows that a VM lands on the one node that offers its CPU, and stays Pending with the reason where none
// does. Both nodes are one machine, so an administrator's own facts on one of them make the difference
// (podvirt.dev/skip-node, scheduling.md 2.2).
func TestPlacement(t *testing.T) {
	ns := setUp(t, "guest-tiny")
	special := ns.Nodes[1]
	ns.EditFacts(t, special, func(facts *api.CPUFacts) {
		facts.Models = append(facts.Models, "Opteron_G1-v9")
		facts.Features = append(facts.Features, "avx10-512")
	})
	tests := map[string]struct {
		annotations map[string]string
		reason      string
	}{
		"model":   {map[string]string{"cpu-model": "KnightsMill"}, "CPU model KnightsMill not usable"},
		"feature": {map[string]string{"cpu-features": "sgx-kss"}, "CPU feature sgx-kss missing"},
		"kvm":     {map[string]string{"accelerator": "kvm"}, "accelerator kvm not usable"},
	}
	for name, tt := range tests {
		t.Run("no node has the "+name, func(t *testing.T) {
			ns.Apply(t, newVM("none-"+name, "guest-tiny").annotate(tt.annotations).manifest(t))
			pod := ns.WaitPod(t, "none-"+name, harness.Short, harness.Unschedulable)
			want := fmt.Sprintf("0/2 nodes are available: 2 %s", tt.reason)
			if got := harness.SchedulingMessage(pod); !strings.Contains(got, want) {
				t.Errorf("reason = %q; want %q", got, want)
			}
		})
	}
	t.Run("one node has the feature", func(t *testing.T) {
		for i := range 3 {
			name := fmt.Sprintf("one-%d", i)
			ns.Apply(t, newVM(name, "guest-tiny").annotate(map[string]string{"cpu-features": "avx10-512"}).manifest(t))
			pod := ns.WaitPod(t, name, harness.Short, harness.Scheduled)
			if pod.Spec.NodeName != special {
				t.Errorf("%s is on %s; only %s has the feature", name, pod.Spec.NodeName, special)
			}
		}
	})
}
