package vms

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/controller/internal/mirror"
)

// justWritten is for how long the Pod as it is known here may be older than what was written.
const justWritten = 5 * time.Second

// look asks the launcher of a VM whose container runs.
func (f *Follower) look(ctx context.Context, pod *corev1.Pod, r *record) (time.Duration, error) {
	if pod.Status.PodIP == "" {
		return 0, nil
	}
	r.finished = ""
	status, err := f.opt.Asker.Ask(ctx, pod.Status.PodIP, f.opt.Port())
	f.opt.Observer.Asked(err)
	if err != nil {
		return f.silent(ctx, pod, r, err)
	}
	r.silentSince = time.Time{}
	if r.told == nil {
		r.told = remember(pod, status, &r.events)
	}
	more, err := f.tell(ctx, pod, r, status)
	if err != nil {
		return 0, err
	}
	wait, err := f.write(ctx, pod, r, mirror.Of(status, *r.told).Encode(), mirror.Conditions(status.Conditions))
	if err != nil {
		return 0, err
	}
	again := f.pause()
	for _, sooner := range []time.Duration{more, wait} {
		if sooner > 0 {
			again = min(again, sooner)
		}
	}
	return again, nil
}

// silent deals with a launcher that does not answer: it may be about to start, or its node may be gone.
func (f *Follower) silent(ctx context.Context, pod *corev1.Pod, r *record, why error) (time.Duration, error) {
	now := time.Now()
	if r.silentSince.IsZero() {
		r.silentSince = now
		klog.FromContext(ctx).V(2).Info("the launcher does not answer", "err", why)
	}
	since := now.Sub(r.silentSince)
	if since >= f.opt.Silence && ctx.Err() == nil {
		wait, err := f.write(ctx, pod, r, pod.Annotations[api.KeyStatus], mirror.SilentConditions(pod, why))
		if err != nil || wait > 0 {
			return wait, err
		}
	}
	return max(f.pause(), min(since/4, slowest)), nil
}

// write makes annotation and conditions those of the Pod, if they are not, in one request. It returns how long to wait
// where it was done too often.
func (f *Follower) write(
	ctx context.Context, pod *corev1.Pod, r *record, annotation string, conditions []corev1.PodCondition,
) (time.Duration, error) {
	now := time.Now()
	wanted, err := json.Marshal([]any{annotation, conditions})
	if err != nil {
		return 0, err
	}
	if bytes.Equal(wanted, r.applied) && now.Sub(r.appliedAt) < justWritten {
		return 0, nil
	}
	present, err := json.Marshal([]any{pod.Annotations[api.KeyStatus], mirror.Ours(pod)})
	if err != nil || bytes.Equal(wanted, present) {
		return 0, err
	}
	if wait := r.writes.Wait(now); wait > 0 {
		return wait, nil
	}
	body, err := mirror.Apply(pod, annotation, conditions, now)
	if err != nil {
		return 0, err
	}
	r.writes.Done(now)
	force := true // nobody else writes conditions of ours
	_, err = f.opt.Client.Pods(pod.Namespace).Patch(ctx, pod.Name, types.ApplyPatchType, body,
		metav1.PatchOptions{FieldManager: FieldManager, Force: &force}, "status")
	if apierrors.IsNotFound(err) {
		return 0, nil
	}
	f.opt.Observer.Written(err)
	if err != nil {
		return 0, fmt.Errorf("status of the Pod: %w", err)
	}
	r.applied, r.appliedAt = wanted, now
	return 0, nil
}
