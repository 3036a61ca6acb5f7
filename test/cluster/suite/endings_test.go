package suite

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

// alive takes a guest that serves no more out of its Services and lets the kubelet restart it, once it has served.
func (v *vm) alive(port int32) *vm {
	get := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(port)}}
	v.container().StartupProbe = &corev1.Probe{ProbeHandler: get, PeriodSeconds: 1, FailureThreshold: 300, TimeoutSeconds: 3}
	v.container().ReadinessProbe = &corev1.Probe{ProbeHandler: get, PeriodSeconds: 1, FailureThreshold: 1, TimeoutSeconds: 1}
	v.container().LivenessProbe = &corev1.Probe{ProbeHandler: get, PeriodSeconds: 2, FailureThreshold: 3, TimeoutSeconds: 1}
	return v
}

// TestLiveness: the kubelet restarts a guest that does not answer any more, gracefully and in the same Pod; a guest that
// is deaf to that as well is forced off (VM-175, VM-112). The log of the guest before stays to be read (VM-141).
func TestLiveness(t *testing.T) {
	ns := setUp(t, "guest-tiny")
	guests := map[string]struct {
		deafen, message string
		code            int32
	}{
		"mute": {"", "Stopped: shutdown by ACPI took ", 0},
		"deaf": {"while ! killall acpid; do sleep 1; done; ", "ForcedOff: guest ignored ACPI for 2.0s", 24},
	}
	for name := range guests {
		ns.Apply(t, newVM(name, "guest-tiny").alive(8080).annotate(map[string]string{
			"shutdown": "acpi,timeout=" + map[string]string{"mute": "28s", "deaf": "2s"}[name],
		}).manifest(t))
		ns.Apply(t, service(name, 8080))
	}
	before := map[string]*corev1.Pod{}
	for name, guest := range guests {
		before[name] = ns.WaitPod(t, name, harness.Medium, harness.Ready)
		term := ns.Shell(t, name, api.ContainerName, "launcher", "ctl", "console")
		logIn(t, term)
		term.Send(t, guest.deafen+"sleep 2; ifconfig eth0 down\n")
	}
	for name, want := range guests {
		t.Run(name, func(t *testing.T) {
			harness.Eventually(t, harness.Short, "no endpoint", func(ctx context.Context) error {
				if left := endpoints(ctx, t, ns, name); len(left) > 0 {
					return fmt.Errorf("endpoints %v", left)
				}
				return nil
			})
			now := ns.WaitPod(t, name, harness.Medium, func(pod *corev1.Pod) error {
				if pod.Status.ContainerStatuses[0].RestartCount == 0 {
					return errors.New("not restarted")
				}
				return nil
			})
			if end := terminated(now); end.ExitCode != want.code || !strings.HasPrefix(end.Message, want.message) {
				t.Errorf("end of the container: code %d, %q; want %d and %q", end.ExitCode, end.Message, want.code, want.message)
			}
			if now.UID != before[name].UID || now.Status.PodIP != before[name].Status.PodIP {
				t.Error("it is another Pod")
			}
			previous := previousLog(t, ns, name)
			if !strings.Contains(previous, "podvirt-tiny: ready after") || strings.Contains(previous, "podvirt-tiny: down") != (want.code == 0) {
				t.Errorf("the log of the container before:\n%s", previous)
			}
		})
	}
	t.Run("hard power-off", func(t *testing.T) { checkHardOff(t, ns, ns.WaitPod(t, "mute", harness.Medium, harness.Ready)) })
}

// checkHardOff: the verb returns when QEMU is gone, and the Pod is still there: a second writer cannot have started (VM-113).
func checkHardOff(t *testing.T, ns *harness.Namespace, pod *corev1.Pod) {
	t.Helper()
	qemu := vmProcesses(t, ns, pod)["qemu-system-x86"]
	before := terminated(pod).FinishedAt // of the container before this one
	result, err := ns.TryExec(t.Context(), pod.Name, api.ContainerName, nil, "launcher", "ctl", "poweroff")
	left := ns.OnNode(t, pod.Spec.NodeName, "sh", "-c", fmt.Sprintf("cat /proc/%d/comm 2>/dev/null || true", qemu))
	if err != nil || result.Code != 0 { // the container may end before exec has brought the answer
		t.Logf("launcher ctl poweroff: %+v, %v", result, err)
	} else if qemu == 0 || strings.Contains(left, "qemu-system") {
		t.Errorf("QEMU %d runs after the power-off: %q", qemu, left)
	}
	now := ns.WaitPod(t, pod.Name, harness.Medium, func(pod *corev1.Pod) error {
		if end := terminated(pod); end.FinishedAt.Equal(&before) {
			return errors.New("not ended")
		}
		return nil
	})
	if end := terminated(now); end.ExitCode != int32(api.ReasonDestroyed.ExitCode()) || !strings.HasPrefix(end.Message, "Destroyed: ") {
		t.Errorf("end of the container: code %d, %q; want 25", end.ExitCode, end.Message)
	} else {
		t.Log(end.Message)
	}
	if now.UID != pod.UID || now.DeletionTimestamp != nil {
		t.Error("the Pod went before QEMU")
	}
}

// previousLog is the log of the container that ran before.
func previousLog(t *testing.T, ns *harness.Namespace, pod string) string {
	t.Helper()
	log, err := ns.Client.CoreV1().Pods(ns.Name).GetLogs(pod, &corev1.PodLogOptions{Container: api.ContainerName, Previous: true}).DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return string(log)
}

// seenOff deletes a Pod as its owner would and returns how its container ended: a finalizer keeps the object for as long
// as it takes to read that.
func seenOff(t *testing.T, ns *harness.Namespace, name string) *corev1.ContainerStateTerminated {
	t.Helper()
	pods := ns.Client.CoreV1().Pods(ns.Name)
	patchPod(t, ns, name, `{"metadata":{"finalizers":["example.org/see"]}}`)
	defer patchPod(t, ns, name, `{"metadata":{"finalizers":null}}`)
	if err := pods.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	return ns.WaitPod(t, name, harness.Medium, func(pod *corev1.Pod) error {
		if pod.Status.ContainerStatuses[0].State.Terminated == nil {
			return errors.New("the container runs")
		}
		return nil
	}).Status.ContainerStatuses[0].State.Terminated
}

// job is a Job that owns the VM (vm.md 2.10).
func (v *vm) job(retries int32, change func(*batchv1.JobSpec)) *batchv1.Job {
	spec := batchv1.JobSpec{
		BackoffLimit: &retries,
		Template:     corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: v.Labels, Annotations: v.Annotations}, Spec: v.Spec},
	}
	spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	if change != nil {
		change(&spec)
	}
	return &batchv1.Job{
		TypeMeta: metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"}, ObjectMeta: metav1.ObjectMeta{Name: v.Name}, Spec: spec,
	}
}

// failAtOnce gives up on a manifest that cannot be right the next time either.
func failAtOnce(spec *batchv1.JobSpec) {
	spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{
		Action: batchv1.PodFailurePolicyActionFailJob,
		OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{
			Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{int32(api.ExitBadConfig)},
		},
	}}}
}

// TestRunPolicies walks through the run policies of vm.md 2.10: what follows a power-off by the guest and the loss of
// QEMU. The launcher's own share, on-poweroff=restart, is shown in test/launcher.
func TestRunPolicies(t *testing.T) {
	long(t, "test-life")
	ns := setUp(t, "guest-tiny")
	const forEver = 1<<31 - 1
	replace := batchv1.Failed
	ns.Apply(t, newVM("always", "guest-tiny").deployment(t, 1))
	ns.Apply(t, manifest(t, newVM("rerun", "guest-tiny").job(forEver, func(s *batchv1.JobSpec) {
		failAtOnce(s)
		s.PodReplacementPolicy = &replace
	})))
	ns.Apply(t, manifest(t, newVM("once", "guest-tiny").job(0, nil)))
	ns.Apply(t, newVM("manual", "guest-tiny").restart(corev1.RestartPolicyNever).
		annotate(map[string]string{"on-poweroff": "hold", "on-crash": "hold"}).manifest(t))

	t.Run("Once: a failure is the end", func(t *testing.T) {
		killQEMU(t, ns, vmPod(t, ns, "once", ""))
		waitJob(t, ns, "once", batchv1.JobFailed)
	})
	first := vmPod(t, ns, "rerun", "")
	t.Run("RerunOnFailure: a failure starts a new Pod", func(t *testing.T) {
		killQEMU(t, ns, first)
		ns.WaitPod(t, first.Name, harness.Medium, func(pod *corev1.Pod) error {
			if end := terminated(pod); end == nil || end.ExitCode != 21 {
				return fmt.Errorf("end: %+v", end)
			}
			return nil
		})
	})
	t.Run("Manual: off until told", func(t *testing.T) {
		pod := vmPod(t, ns, "manual", "")
		killQEMU(t, ns, pod)
		waitState(t, ns, "manual", "held")
		ctl(t, ns, "manual", "start")
		powerOff(t, ns, "manual", 1)
		waitState(t, ns, "manual", "held")
		if now := ns.WaitPod(t, "manual", harness.Short, harness.Running); now.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Error("the container was restarted")
		}
	})
	t.Run("Always: a power-off starts the container again", func(t *testing.T) {
		pod := vmPod(t, ns, "always", "")
		powerOff(t, ns, pod.Name, 1)
		now := ns.WaitPod(t, pod.Name, harness.Medium, func(pod *corev1.Pod) error {
			if s := pod.Status.ContainerStatuses[0]; s.RestartCount == 0 || s.State.Running == nil {
				return fmt.Errorf("not restarted: %+v", s.State)
			}
			return nil
		})
		if end := terminated(now); end.ExitCode != 0 || !strings.HasPrefix(end.Message, "PoweredOff: ") {
			t.Errorf("end of the container: %+v", end)
		}
	})
	t.Run("RerunOnFailure: a power-off completes it", func(t *testing.T) {
		again := vmPod(t, ns, "rerun", first.Name)
		suspend(t, ns, "rerun", true)
		waitGone(t, ns, again.Name)
		suspend(t, ns, "rerun", false)
		last := vmPod(t, ns, "rerun", first.Name)
		powerOff(t, ns, last.Name, 1)
		waitJob(t, ns, "rerun", batchv1.JobComplete)
	})
	t.Run("Halted", func(t *testing.T) {
		ns.Apply(t, newVM("always", "guest-tiny").deployment(t, 0))
		waitDeployment(t, ns, "always", 0)
	})
}

// vmPod is the Pod of a VM other than that of the name, with QEMU running.
func vmPod(t *testing.T, ns *harness.Namespace, vm, other string) *corev1.Pod {
	t.Helper()
	var found *corev1.Pod
	harness.Eventually(t, harness.Medium, "a Pod of "+vm, func(ctx context.Context) error {
		list, err := ns.Client.CoreV1().Pods(ns.Name).List(ctx, metav1.ListOptions{LabelSelector: api.LabelVM + "=" + vm})
		if err != nil {
			return err
		}
		for i := range list.Items {
			if pod := &list.Items[i]; pod.Name != other && harness.Running(pod) == nil && vmProcesses(t, ns, pod)["qemu-system-x86"] != 0 {
				found = pod
				return nil
			}
		}
		return errors.New("QEMU does not run")
	})
	return found
}

func waitGone(t *testing.T, ns *harness.Namespace, pod string) {
	t.Helper()
	harness.Eventually(t, harness.Medium, "end of pod "+pod, func(ctx context.Context) error {
		_, err := ns.Client.CoreV1().Pods(ns.Name).Get(ctx, pod, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(err, errors.New("still there"))
	})
}

func killQEMU(t *testing.T, ns *harness.Namespace, pod *corev1.Pod) {
	t.Helper()
	ns.WaitLog(t, pod.Name, api.ContainerName, `"step":"resume"`, harness.Medium)
	ns.OnNode(t, pod.Spec.NodeName, "kill", "-9", fmt.Sprint(vmProcesses(t, ns, pod)["qemu-system-x86"]))
}

// powerOff lets the guest switch itself off at its nth boot.
func powerOff(t *testing.T, ns *harness.Namespace, pod string, boot int) {
	t.Helper()
	harness.Eventually(t, harness.Medium, "the guest of "+pod, func(context.Context) error {
		if n := strings.Count(ns.Log(t, pod, api.ContainerName), "podvirt-tiny: ready after"); n < boot {
			return fmt.Errorf("%d boots", n)
		}
		return nil
	})
	term := ns.Shell(t, pod, api.ContainerName, "launcher", "ctl", "console")
	logIn(t, term)
	term.Send(t, "poweroff\n")
}

func waitState(t *testing.T, ns *harness.Namespace, pod, state string) {
	t.Helper()
	harness.Eventually(t, harness.Medium, pod+" "+state, func(ctx context.Context) error {
		result, err := ns.TryExec(ctx, pod, api.ContainerName, nil, "launcher", "ctl", "status")
		if err == nil && !strings.Contains(result.Stdout, ": "+state) {
			err = errors.New(result.Stdout + result.Stderr)
		}
		return err
	})
}

func waitJob(t *testing.T, ns *harness.Namespace, name string, kind batchv1.JobConditionType) {
	t.Helper()
	harness.Eventually(t, harness.Medium, fmt.Sprintf("Job %s %s", name, kind), func(ctx context.Context) error {
		job, err := ns.Client.BatchV1().Jobs(ns.Name).Get(ctx, name, metav1.GetOptions{})
		if err == nil && !slices.ContainsFunc(job.Status.Conditions, func(c batchv1.JobCondition) bool {
			return c.Type == kind && c.Status == corev1.ConditionTrue
		}) {
			err = fmt.Errorf("status: %+v", job.Status)
		}
		return err
	})
}

// checkBadConfigOwners: what owns a VM with mistakes in its manifest gives up at once, or waits longer from time to time,
// and shows why (VM-120). The policies are not in force here.
func checkBadConfigOwners(t *testing.T, ns *harness.Namespace, bad *corev1.Pod) {
	t.Helper()
	v := &vm{*bad.DeepCopy()}
	v.Name = "bad-job"
	ns.Apply(t, manifest(t, v.job(5, failAtOnce)))
	waitJob(t, ns, "bad-job", batchv1.JobFailed)
	list, err := ns.Client.CoreV1().Pods(ns.Name).List(t.Context(), metav1.ListOptions{LabelSelector: "job-name=bad-job"})
	if err != nil || len(list.Items) != 1 {
		t.Errorf("%d Pods of the Job, %v; want one", len(list.Items), err)
	}
	ns.WaitPod(t, bad.Name, harness.Medium, func(pod *corev1.Pod) error {
		s := pod.Status.ContainerStatuses[0]
		if s.State.Waiting == nil || s.State.Waiting.Reason != "CrashLoopBackOff" || s.LastTerminationState.Terminated == nil {
			return fmt.Errorf("state %+v", s.State)
		}
		if end := s.LastTerminationState.Terminated; !strings.HasPrefix(end.Message, "BadConfig: ") {
			return fmt.Errorf("message %q", end.Message)
		}
		return nil
	})
}

// suspend stops and starts a Job (vm.md 2.10).
func suspend(t *testing.T, ns *harness.Namespace, job string, yes bool) {
	t.Helper()
	patch := fmt.Sprintf(`{"spec":{"suspend":%v}}`, yes)
	if _, err := ns.Client.BatchV1().Jobs(ns.Name).Patch(t.Context(), job, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}
