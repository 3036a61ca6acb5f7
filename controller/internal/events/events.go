// Package events writes Events of events.k8s.io/v1. Each Event has a name that follows from what it tells, so that
// telling twice, by this leader or the next, makes one Event.
package events

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	client "k8s.io/client-go/kubernetes/typed/events/v1"
)

// ReportingController is the field of that name in all Events of the controller.
const ReportingController = "podvirt.dev/controller"

// Limits of the API (k8s.io/kubernetes/pkg/apis/core/validation/events.go).
const (
	maxNote = 1024
	maxName = 253
)

// Event is what is told.
type Event struct {
	// Name follows the name of the object it is about: OBJECT.NAME.
	Name    string
	About   corev1.ObjectReference
	Related *corev1.ObjectReference
	Warning bool
	Reason  string
	Note    string
	Action  string
	First   time.Time
	Last    time.Time
	Count   int // how often it happened; 0 means once
}

// Recorder writes Events.
type Recorder struct {
	Client   client.EventsV1Interface
	Instance string // who reports
}

// Write makes the Event, or counts on where it exists.
func (r *Recorder) Write(ctx context.Context, e Event) error {
	name := objectName(e.About.Name, e.Name)
	_, err := r.Client.Events(e.About.Namespace).Create(ctx, r.object(name, e), metav1.CreateOptions{FieldManager: r.Instance})
	switch {
	case err == nil, apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause): // nobody reads Events there any more
		return nil
	case apierrors.IsAlreadyExists(err):
		return r.count(ctx, name, e)
	}
	return fmt.Errorf("event %s: %w", e.Reason, err)
}

// Find returns when the Event of that name was made; false where there is none.
func (r *Recorder) Find(ctx context.Context, namespace, about, name string) (time.Time, bool, error) {
	event, err := r.Client.Events(namespace).Get(ctx, objectName(about, name), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return time.Time{}, false, nil
	case err != nil:
		return time.Time{}, false, fmt.Errorf("event: %w", err)
	}
	return event.EventTime.Time, true, nil
}

// count writes how often something has happened by now.
func (r *Recorder) count(ctx context.Context, name string, e Event) error {
	if e.Count < 2 {
		return nil // told already
	}
	patch, err := json.Marshal(map[string]any{"series": series(e)})
	if err == nil {
		_, err = r.Client.Events(e.About.Namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: r.Instance})
	}
	if err != nil {
		return fmt.Errorf("event %s: %w", e.Reason, err)
	}
	return nil
}

func (r *Recorder) object(name string, e Event) *eventsv1.Event {
	kind := corev1.EventTypeNormal
	if e.Warning {
		kind = corev1.EventTypeWarning
	}
	note := e.Note
	if len(note) > maxNote {
		note = strings.ToValidUTF8(note[:maxNote], "")
	}
	event := &eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{Name: name, Namespace: e.About.Namespace},
		EventTime:           metav1.NewMicroTime(e.First),
		ReportingController: ReportingController, ReportingInstance: r.Instance,
		Regarding: e.About, Related: e.Related, Type: kind, Reason: e.Reason, Note: note, Action: e.Action,
	}
	if e.Count > 1 {
		event.Series = series(e)
	}
	return event
}

func series(e Event) *eventsv1.EventSeries {
	return &eventsv1.EventSeries{Count: int32(min(e.Count, 1<<30)), LastObservedTime: metav1.NewMicroTime(e.Last)}
}

// objectName is a DNS subdomain as long as one may be.
func objectName(about, name string) string {
	if over := len(about) + 1 + len(name) - maxName; over > 0 {
		about = strings.TrimRight(about[:len(about)-over], ".-")
	}
	return about + "." + name
}
