package vms

import (
	"context"
	"fmt"
	"hash/fnv"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/controller/internal/events"
	"podvirt.dev/controller/internal/mirror"
	"podvirt.dev/controller/internal/pace"
	"podvirt.dev/internal/vmstatus"
)

// action is the field of that name in Events that only tell.
const action = "FollowVM"

// maxNote is how much of a message is told, in bytes.
const maxNote = 512

// reasons are those a launcher may give, and whether people should worry.
func reasons() map[string]bool {
	return map[string]bool{
		vmstatus.Started: false, vmstatus.Paused: false, vmstatus.Resumed: false, vmstatus.GuestReboot: false, vmstatus.AgentConnected: false,
		vmstatus.Resized: false, vmstatus.RebootLoop: true, vmstatus.GuestPanic: true, vmstatus.WatchdogFired: true, vmstatus.IOError: true,
	}
}

// runForm is what a launcher calls its process.
var runForm = regexp.MustCompile(`^[a-z0-9]{1,16}$`)

// remember reads how far an earlier leader came. What it told within the last minute counts for the limit of Events.
func remember(pod *corev1.Pod, status vmstatus.Status, window *pace.Window) *mirror.Told {
	before := mirror.Read(pod.Annotations[api.KeyStatus]).Told
	if before.Run != status.Run {
		return &before
	}
	for _, n := range status.News {
		if !before.Fresh(n) && time.Since(n.Last) < window.Span {
			window.Done(n.Last)
		}
	}
	return &before
}

// tell tells what is new. It returns how long to wait where there was too much of it.
func (f *Follower) tell(ctx context.Context, pod *corev1.Pod, r *record, status vmstatus.Status) (time.Duration, error) {
	if !runForm.MatchString(status.Run) {
		return 0, nil // a launcher that keeps no news
	}
	if r.told.Run != status.Run {
		*r.told = mirror.Told{Run: status.Run}
	}
	list := status.News[:min(len(status.News), vmstatus.MaxNews)]
	for _, n := range list {
		warning, known := reasons()[n.Reason]
		if !known || !r.told.Fresh(n) || time.Since(n.Last) > maxAge || n.Seq < 0 || n.Count < 1 {
			continue
		}
		now := time.Now()
		if wait := r.events.Wait(now); wait > 0 {
			f.opt.Observer.Held()
			return wait, nil
		}
		message := mirror.Clean(n.Message, maxNote)
		event := events.Event{
			Name: fmt.Sprintf("%s.%s-%d", short(pod.UID), status.Run, n.Seq), About: about(pod), Action: action, Reason: n.Reason, Note: message,
			Warning: warning || n.Reason == vmstatus.Paused && (strings.HasSuffix(message, "io-error") || strings.HasSuffix(message, "no-space")),
			First:   past(n.First, now), Last: past(n.Last, now), Count: n.Count,
		}
		if err := f.opt.Recorder.Write(ctx, event); err != nil {
			return 0, err
		}
		r.events.Done(now)
		r.told.Seq, r.told.Count = n.Seq, n.Count
		f.opt.Observer.Event(n.Reason)
	}
	return 0, nil
}

// past is a time that a launcher gave, if it can be true.
func past(t, now time.Time) time.Time {
	if t.After(now) || now.Sub(t) > maxAge {
		return now
	}
	return t
}

// over deals with a VM whose container ended, whether or not it will be started again.
func (f *Follower) over(ctx context.Context, pod *corev1.Pod, r *record, c *corev1.ContainerStatus) (time.Duration, error) {
	end := c.State.Terminated
	if end == nil {
		end = c.LastTerminationState.Terminated
	}
	if end == nil || end.ContainerID == "" { // not started yet, or a Pod whose node is lost
		return 0, nil
	}
	r.silentSince = time.Time{}
	if r.finished != end.ContainerID {
		if wait, err := f.finish(ctx, pod, r, end); err != nil || wait > 0 {
			return wait, err
		}
		r.finished = end.ContainerID
	}
	before := mirror.Read(pod.Annotations[api.KeyStatus])
	if r.told != nil {
		before.Told = *r.told
	}
	return f.write(ctx, pod, r, mirror.OfEnded(before, end).Encode(), mirror.EndedConditions(pod, end))
}

// finish acts on the end of a container, once.
func (f *Follower) finish(ctx context.Context, pod *corev1.Pod, r *record, end *corev1.ContainerStateTerminated) (time.Duration, error) {
	why, message := mirror.Termination(end)
	if missedNetworkStage(end) {
		return 0, f.replace(ctx, pod)
	}
	reason := map[string]string{
		string(api.ReasonGuestPanic): vmstatus.GuestPanic, string(api.ReasonWatchdog): vmstatus.WatchdogFired,
	}[why]
	now := time.Now()
	if reason == "" || now.Sub(end.FinishedAt.Time) > maxAge {
		return 0, nil
	}
	if wait := r.events.Wait(now); wait > 0 {
		f.opt.Observer.Held()
		return wait, nil
	}
	id := fnv.New64a()
	_, _ = id.Write([]byte(end.ContainerID)) // cannot fail
	err := f.opt.Recorder.Write(ctx, events.Event{
		Name: fmt.Sprintf("%s.end-%x", short(pod.UID), id.Sum64()), About: about(pod), Warning: true, Action: action, Reason: reason,
		Note: mirror.Clean(message, maxNote), First: past(end.FinishedAt.Add(time.Second), now), // it is told in whole seconds
	})
	if err != nil {
		return 0, err
	}
	r.events.Done(now)
	f.opt.Observer.Event(reason)
	return 0, nil
}

// missedNetworkStage says whether the launcher found its network made by nobody of ours (NW-010).
func missedNetworkStage(end *corev1.ContainerStateTerminated) bool {
	return strings.HasPrefix(end.Message, string(api.ReasonNodeLacks)+": "+api.MissedNetworkStage)
}

// makesAgain are the kinds of owners that make a Pod again which was deleted. A static Pod's owner is its Node.
func makesAgain(kind string) bool {
	return slices.Contains([]string{"ReplicaSet", "StatefulSet", "DaemonSet", "ReplicationController", "Job"}, kind)
}

// replace deletes a Pod whose network was made before our plugin was there, so that its owner makes it again. Where that
// happened to a Pod that was made after one of the same owner had been deleted for this reason, a new one would fare no
// better: it keeps its message. The Event is the memory of that, for as long as the cluster keeps Events.
func (f *Follower) replace(ctx context.Context, pod *corev1.Pod) error {
	if len(pod.OwnerReferences) == 0 || !makesAgain(pod.OwnerReferences[0].Kind) || pod.DeletionTimestamp != nil {
		return nil
	}
	owner := pod.OwnerReferences[0]
	name := short(owner.UID) + ".network-stage"
	at, found, err := f.opt.Recorder.Find(ctx, pod.Namespace, owner.Name, name)
	if err != nil || found && !pod.CreationTimestamp.Time.Before(at) {
		return err
	}
	if !found {
		event := events.Event{
			Name: name, Action: "Delete", Reason: "PodReplaced", Warning: true,
			First: time.Now().Truncate(time.Second), // as exact as the time at which a Pod was made
			About: corev1.ObjectReference{
				APIVersion: owner.APIVersion, Kind: owner.Kind, Namespace: pod.Namespace, Name: owner.Name, UID: owner.UID,
			},
			Note: fmt.Sprintf("Pod %s is deleted, to be made again: %s", pod.Name, api.MissedNetworkStage),
		}
		related := about(pod)
		event.Related = &related
		if err := f.opt.Recorder.Write(ctx, event); err != nil {
			return err
		}
	}
	klog.FromContext(ctx).Info("Pod deleted, to be made again by its owner", "why", api.MissedNetworkStage, "owner", owner.Name)
	err = f.opt.Client.Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("deleting the Pod: %w", err)
	}
	f.opt.Observer.Replaced()
	return nil
}
