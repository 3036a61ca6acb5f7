package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
)

// WaitPod waits until a Pod is as check wants it and returns it.
func (n *Namespace) WaitPod(t testing.TB, name string, timeout time.Duration, check func(*corev1.Pod) error) *corev1.Pod {
	t.Helper()
	var found *corev1.Pod
	Eventually(t, timeout, "pod "+name, func(ctx context.Context) error {
		pod, err := n.Client.CoreV1().Pods(n.Name).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		found = pod
		return check(pod)
	})
	return found
}

// Ready wants a Pod whose condition Ready is true.
func Ready(pod *corev1.Pod) error {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return nil
		}
	}
	if pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
		return fmt.Errorf("%w: the Pod has ended: %s", ErrNever, describe(pod))
	}
	return fmt.Errorf("not ready: %s", describe(pod))
}

// Running wants a Pod all of whose containers run.
func Running(pod *corev1.Pod) error {
	for _, s := range pod.Status.ContainerStatuses {
		if s.State.Running == nil {
			return fmt.Errorf("not running: %s", describe(pod))
		}
	}
	if pod.Status.Phase != corev1.PodRunning {
		return fmt.Errorf("not running: %s", describe(pod))
	}
	return nil
}

// Phase wants a Pod in one phase.
func Phase(want corev1.PodPhase) func(*corev1.Pod) error {
	return func(pod *corev1.Pod) error {
		switch pod.Status.Phase {
		case want:
			return nil
		case corev1.PodFailed, corev1.PodSucceeded:
			return fmt.Errorf("%w: phase is %s, want %s: %s", ErrNever, pod.Status.Phase, want, describe(pod))
		default:
			return fmt.Errorf("phase is %s, want %s: %s", pod.Status.Phase, want, describe(pod))
		}
	}
}

// describe says in one line what kubectl describe would show about a Pod's troubles.
func describe(pod *corev1.Pod) string {
	parts := []string{string(pod.Status.Phase)}
	for _, c := range pod.Status.Conditions {
		if c.Status != corev1.ConditionTrue && c.Message != "" {
			parts = append(parts, fmt.Sprintf("%s: %s", c.Type, c.Message))
		}
	}
	for _, s := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		switch {
		case s.State.Waiting != nil:
			parts = append(parts, fmt.Sprintf("%s waits: %s %s", s.Name, s.State.Waiting.Reason, s.State.Waiting.Message))
		case s.State.Terminated != nil:
			parts = append(parts, fmt.Sprintf("%s ended with %d: %s", s.Name, s.State.Terminated.ExitCode, s.State.Terminated.Message))
		}
	}
	return strings.Join(parts, "; ")
}

// Result is what a command in a container gave.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Exec runs a command in a container and fails the test when it could not run or ended with anything but 0.
func (n *Namespace) Exec(t testing.TB, pod, container string, argv ...string) string {
	t.Helper()
	result, err := n.TryExec(t.Context(), pod, container, nil, argv...)
	if err != nil || result.Code != 0 {
		t.Fatalf("%s: %v: exit %d, stdout %q, stderr %q", strings.Join(argv, " "), err, result.Code, result.Stdout, result.Stderr)
	}
	return result.Stdout
}

// TryExec runs a command in a container; an exit code is no error.
func (n *Namespace) TryExec(ctx context.Context, pod, container string, stdin io.Reader, argv ...string) (Result, error) {
	request := n.Client.CoreV1().RESTClient().Post().Namespace(n.Name).Resource("pods").Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: container, Command: argv, Stdin: stdin != nil, Stdout: true, Stderr: true,
		}, scheme.ParameterCodec)
	executor, err := remotecommand.NewSPDYExecutor(n.Config, "POST", request.URL())
	if err != nil {
		return Result{}, err
	}
	var stdout, stderr bytes.Buffer
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: &stdout, Stderr: &stderr})
	result := Result{Stdout: stdout.String(), Stderr: stderr.String()}
	if exit, ok := errors.AsType[exec.CodeExitError](err); ok {
		result.Code = exit.Code
		return result, nil
	}
	return result, err
}

// Log returns a container's log so far.
func (n *Namespace) Log(t testing.TB, pod, container string) string {
	t.Helper()
	log, err := n.podLog(t.Context(), pod, &corev1.PodLogOptions{Container: container})
	if err != nil {
		t.Fatalf("log of %s/%s: %v", pod, container, err)
	}
	return log
}

// WaitLog waits until a container's log contains a text.
func (n *Namespace) WaitLog(t testing.TB, pod, container, text string, timeout time.Duration) {
	t.Helper()
	Eventually(t, timeout, fmt.Sprintf("%q in the log of %s", text, pod), func(ctx context.Context) error {
		log, err := n.podLog(ctx, pod, &corev1.PodLogOptions{Container: container})
		if err != nil {
			return err
		}
		if !strings.Contains(log, text) {
			return fmt.Errorf("not seen yet; last: %q", log[max(0, len(log)-200):])
		}
		return nil
	})
}

func (n *Namespace) podLog(ctx context.Context, pod string, options *corev1.PodLogOptions) (string, error) {
	data, err := n.Client.CoreV1().Pods(n.Name).GetLogs(pod, options).DoRaw(ctx)
	return string(data), err
}

func wait(ctx context.Context, check func() error) error {
	ticker := time.NewTicker(pollPause)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-ticker.C:
		}
	}
}
