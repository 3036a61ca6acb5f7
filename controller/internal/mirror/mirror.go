// Package mirror makes what is written to the Pod of a VM: the conditions and the annotation podvirt.dev/status (spec
// vm.md 2.8, network.md 2.3). It is pure. What a launcher says is not trusted: types and reasons are checked, texts are
// cut and cleaned.
package mirror

import (
	"encoding/json"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/api"
	"podvirt.dev/internal/vmstatus"
)

// Limits of what is copied.
const (
	maxAnnotation = 4 << 10 // network.md 2.3
	maxMessage    = 1 << 10
	maxWord       = 128
)

// Document is the annotation podvirt.dev/status. It holds nothing that changes all the time.
type Document struct {
	State        api.State          `json:"state,omitempty"`
	Reason       string             `json:"reason,omitempty"`
	Ended        *Ended             `json:"ended,omitempty"`
	Accelerator  string             `json:"accelerator,omitempty"`
	VCPUs        int                `json:"vcpus,omitempty"`
	MemoryMiB    int64              `json:"memoryMiB,omitempty"`
	OverheadMiB  int64              `json:"overheadMiB,omitempty"`
	Started      *time.Time         `json:"started,omitempty"`
	StartSeconds map[string]float64 `json:"startSeconds,omitempty"`
	Boots        int                `json:"boots,omitempty"`
	GuestReboots int                `json:"guestReboots,omitempty"`
	Launcher     string             `json:"launcher,omitempty"`
	Agent        string             `json:"agent,omitempty"`
	GuestOS      string             `json:"guestOS,omitempty"`
	Interfaces   []vmstatus.NIC     `json:"interfaces,omitempty"`
	Told         Told               `json:"told,omitzero"`
}

// Told is the last piece of news of which there is an Event: the next leader goes on after it.
type Told struct {
	Run   string `json:"run,omitempty"`
	Seq   int64  `json:"seq,omitempty"`
	Count int    `json:"count,omitempty"`
}

// Fresh says whether a piece of news of that process was not told yet.
func (t Told) Fresh(n vmstatus.News) bool {
	return n.Seq > t.Seq || n.Seq == t.Seq && n.Count > t.Count
}

// Ended is how the container of the VM ended.
type Ended struct {
	Code   int32     `json:"code"`
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at,omitzero"`
}

// Read reads an annotation that Encode has written; anything else is an empty Document.
func Read(annotation string) Document {
	var d Document
	if json.Unmarshal([]byte(annotation), &d) != nil {
		return Document{}
	}
	return d
}

// Of takes what people look for out of the status.
func Of(s vmstatus.Status, told Told) Document {
	d := Document{
		State: api.State(word(string(s.State))), Reason: word(s.Reason), Accelerator: word(s.Accelerator), VCPUs: s.VCPUs,
		MemoryMiB: s.MemoryMiB, OverheadMiB: s.OverheadMiB, Started: s.Started, Boots: s.Boots, GuestReboots: s.GuestReboots,
		Launcher: word(s.Launcher), Agent: word(s.AgentVersion), GuestOS: word(s.GuestOS), Told: told,
	}
	if s.Started != nil {
		second := s.Started.UTC().Truncate(time.Second)
		d.Started = &second
	}
	for step, seconds := range s.StartSeconds {
		if d.StartSeconds == nil {
			d.StartSeconds = map[string]float64{}
		}
		d.StartSeconds[word(step)] = math.Round(seconds*1000) / 1000
	}
	for _, n := range s.NICs {
		nic := vmstatus.NIC{
			Name: word(n.Name), Pod: word(n.Pod), Guest: word(n.Guest), MAC: word(n.MAC), Binding: word(n.Binding), Source: word(n.Source),
			Link: word(n.Link), Queues: n.Queues,
		}
		for _, ip := range n.IPs {
			nic.IPs = append(nic.IPs, word(ip))
		}
		d.Interfaces = append(d.Interfaces, nic)
	}
	return d
}

// OfEnded is the annotation of a VM whose container ended: what it was stays, but for what only a guest that runs has.
func OfEnded(before Document, end *corev1.ContainerStateTerminated) Document {
	before.State, before.Reason, before.Interfaces, before.Agent = "", "", nil, ""
	reason, _ := Termination(end)
	before.Ended = &Ended{Code: end.ExitCode, Reason: reason, At: end.FinishedAt.UTC()}
	return before
}

// Encode writes the annotation, with as many interfaces as have room.
func (d Document) Encode() string {
	for {
		text, err := json.Marshal(d)
		switch {
		case err != nil: // a number that JSON cannot hold
			d = Document{Told: d.Told}
		case len(text) <= maxAnnotation:
			return string(text)
		case len(d.Interfaces) > 0:
			d.Interfaces = d.Interfaces[:len(d.Interfaces)-1]
		case d.StartSeconds != nil:
			d.StartSeconds = nil
		default:
			d = Document{State: d.State, Told: d.Told}
		}
	}
}

// Types returns the conditions that are copied.
func Types() []string {
	return []string{
		api.ConditionAgentConnected, api.ConditionDiskError, api.ConditionGuestRunning, api.ConditionLiveMigratable, api.ConditionMigrating,
		api.ConditionPaused, api.ConditionResizeFollowed, api.ConditionRestartRequired, api.ConditionStateEphemeral,
	}
}

// Conditions are those of the Pod, each type once, in the order of their types.
func Conditions(list []vmstatus.Condition) []corev1.PodCondition {
	var out []corev1.PodCondition
	for _, kind := range Types() {
		at := slices.IndexFunc(list, func(c vmstatus.Condition) bool { return c.Type == kind })
		if at < 0 {
			continue
		}
		status := corev1.ConditionStatus(list[at].Status)
		if status != corev1.ConditionTrue && status != corev1.ConditionFalse {
			status = corev1.ConditionUnknown
		}
		out = append(out, corev1.PodCondition{
			Type: corev1.PodConditionType(kind), Status: status, Reason: reason(list[at].Reason), Message: Clean(list[at].Message, maxMessage),
		})
	}
	return out
}

// EndedConditions are those of a VM whose container ended: nothing runs, and what else was said stays.
func EndedConditions(pod *corev1.Pod, end *corev1.ContainerStateTerminated) []corev1.PodCondition {
	why, message := Termination(end)
	no := func(kind, reason, message string) corev1.PodCondition {
		return corev1.PodCondition{Type: corev1.PodConditionType(kind), Status: corev1.ConditionFalse, Reason: reason, Message: message}
	}
	return replace(Ours(pod),
		no(api.ConditionGuestRunning, why, message), no(api.ConditionPaused, "", ""), no(api.ConditionAgentConnected, "", ""))
}

// SilentConditions are those of a VM whose launcher does not answer.
func SilentConditions(pod *corev1.Pod, err error) []corev1.PodCondition {
	return replace(Ours(pod), corev1.PodCondition{
		Type: corev1.PodConditionType(api.ConditionGuestRunning), Status: corev1.ConditionUnknown, Reason: "LauncherSilent",
		Message: Clean(err.Error(), maxMessage),
	})
}

// Ours returns the conditions of the Pod that are copies, without times.
func Ours(pod *corev1.Pod) []corev1.PodCondition {
	var out []corev1.PodCondition
	for _, kind := range Types() {
		for _, c := range pod.Status.Conditions {
			if string(c.Type) == kind {
				out = append(out, corev1.PodCondition{Type: c.Type, Status: c.Status, Reason: c.Reason, Message: c.Message})
			}
		}
	}
	return out
}

// replace puts conditions in the place of those of their types.
func replace(list []corev1.PodCondition, by ...corev1.PodCondition) []corev1.PodCondition {
	list = slices.DeleteFunc(list, func(c corev1.PodCondition) bool {
		return slices.ContainsFunc(by, func(n corev1.PodCondition) bool { return n.Type == c.Type })
	})
	list = append(list, by...)
	slices.SortFunc(list, func(a, b corev1.PodCondition) int { return strings.Compare(string(a.Type), string(b.Type)) })
	return list
}

// Termination takes a launcher's termination message apart: "PoweredOff: the guest shut down after 3h12m".
func Termination(end *corev1.ContainerStateTerminated) (why, message string) {
	first, rest, found := strings.Cut(end.Message, ": ")
	if why = reason(first); found && why != "" {
		return why, Clean(rest, maxMessage)
	}
	return "Ended", Clean(end.Message, maxMessage)
}

// Apply is the body of a server-side apply to the Pod's status that makes exactly these conditions and this annotation
// ours. A condition whose status stays keeps its time.
func Apply(pod *corev1.Pod, annotation string, conditions []corev1.PodCondition, now time.Time) ([]byte, error) {
	list := slices.Clone(conditions)
	for n := range list {
		list[n].LastTransitionTime = metav1.NewTime(now)
		for _, was := range pod.Status.Conditions {
			if was.Type == list[n].Type && was.Status == list[n].Status && !was.LastTransitionTime.IsZero() {
				list[n].LastTransitionTime = was.LastTransitionTime
			}
		}
	}
	metadata := map[string]any{"name": pod.Name, "namespace": pod.Namespace, "uid": pod.UID}
	if annotation != "" {
		metadata["annotations"] = map[string]string{api.KeyStatus: annotation}
	}
	type condition struct { // corev1.PodCondition would say lastProbeTime: null
		Type               corev1.PodConditionType `json:"type"`
		Status             corev1.ConditionStatus  `json:"status"`
		Reason             string                  `json:"reason,omitempty"`
		Message            string                  `json:"message,omitempty"`
		LastTransitionTime metav1.Time             `json:"lastTransitionTime"`
	}
	body := make([]condition, 0, len(list))
	for _, c := range list {
		body = append(body, condition{c.Type, c.Status, c.Reason, c.Message, c.LastTransitionTime})
	}
	return json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": map[string]any{"conditions": body},
	})
}

// reasonForm is how Kubernetes writes reasons of conditions.
var reasonForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9]{0,62}$`)

func reason(text string) string {
	if reasonForm.MatchString(text) {
		return text
	}
	return ""
}

func word(text string) string { return Clean(text, maxWord) }

// Clean makes one line of printable text of at most so many bytes.
func Clean(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r), r == unicode.ReplacementChar:
			return -1
		default:
			return r
		}
	}, strings.ToValidUTF8(text, ""))
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most-len("…")], "") + "…"
}
