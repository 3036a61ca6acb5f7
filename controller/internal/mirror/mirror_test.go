package mirror

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/api"
	"podvirt.dev/internal/vmstatus"
)

func TestOf(t *testing.T) {
	started := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	got := Of(vmstatus.Status{
		State: api.StatePaused, Reason: "user", Accelerator: "tcg", VCPUs: 2, MemoryMiB: 256, OverheadMiB: 90, Started: &started, Boots: 1, GuestReboots: 3,
		StartSeconds: map[string]float64{"define": 0.01234567}, Launcher: "v1", AgentVersion: "10.0", GuestOS: "Debian\n13",
		NICs: []vmstatus.NIC{{Name: "default", Pod: "eth0", MAC: "02:00:00:00:00:01", IPs: []string{"10.0.2.2/24"}, Binding: "masquerade", Source: "dhcp"}},
		News: []vmstatus.News{{Seq: 1}}, ConsoleDropped: 7,
	}, Told{Run: "r", Seq: 4, Count: 1}).Encode()
	want := `{"state":"paused","reason":"user","accelerator":"tcg","vcpus":2,"memoryMiB":256,"overheadMiB":90,"started":"2026-01-02T03:04:05Z",` +
		`"startSeconds":{"define":0.012},"boots":1,"guestReboots":3,"launcher":"v1","agent":"10.0","guestOS":"Debian 13",` +
		`"interfaces":[{"name":"default","pod":"eth0","mac":"02:00:00:00:00:01","ips":["10.0.2.2/24"],"binding":"masquerade","source":"dhcp"}],` +
		`"told":{"run":"r","seq":4,"count":1}}`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want,+got)\n%s", diff)
	}
	if told := Read(got).Told; told != (Told{Run: "r", Seq: 4, Count: 1}) {
		t.Errorf("read back: %+v", told)
	}
	if d := Read(`{"told":7`); d.Told != (Told{}) || d.State != "" {
		t.Errorf("rubbish reads as %+v", d)
	}
}

// TestEncodeHasRoom: whatever a launcher says, the annotation stays within its limit and keeps how far news were told.
func TestEncodeHasRoom(t *testing.T) {
	long := strings.Repeat("é", 500)
	rows := map[string]vmstatus.Status{"long words": {
		State: api.State(long), Reason: long, Accelerator: long, Launcher: long, AgentVersion: long, GuestOS: long,
	}, "many NICs": {}, "many steps": {StartSeconds: map[string]float64{}}, "endless": {StartSeconds: map[string]float64{"a": math.Inf(1)}}}
	many := rows["many NICs"]
	for n := range 200 {
		many.NICs = append(many.NICs, vmstatus.NIC{Name: fmt.Sprint("nic", n), IPs: []string{long}})
		rows["many steps"].StartSeconds[fmt.Sprint(long[:100], n)] = 1
	}
	rows["many NICs"] = many
	for name, status := range rows {
		t.Run(name, func(t *testing.T) {
			text := Of(status, Told{Run: "r", Seq: 9}).Encode()
			if d := Read(text); len(text) > maxAnnotation || d.Told.Seq != 9 {
				t.Errorf("%d bytes, %+v", len(text), d)
			}
			if name == "many NICs" && len(Read(text).Interfaces) < 5 {
				t.Errorf("only %d interfaces", len(Read(text).Interfaces))
			}
		})
	}
}

func TestConditions(t *testing.T) {
	got := Conditions([]vmstatus.Condition{
		{Type: api.ConditionPaused, Status: "True", Reason: "User"}, {Type: "Ready", Status: "True"},
		{Type: api.ConditionGuestRunning, Status: "perhaps", Reason: "not a reason", Message: "a\nb\x00" + strings.Repeat("x", 2000)},
		{Type: api.ConditionPaused, Status: "False"},
	})
	want := []corev1.PodCondition{
		{Type: api.ConditionGuestRunning, Status: "Unknown", Message: "a b" + strings.Repeat("x", maxMessage-6) + "…"},
		{Type: api.ConditionPaused, Status: "True", Reason: "User"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want,+got)\n%s", diff)
	}
}

func TestEnded(t *testing.T) {
	pod := &corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{
		{Type: "Ready", Status: "True"}, {Type: api.ConditionGuestRunning, Status: "True", Reason: "Running"},
		{Type: api.ConditionDiskError, Status: "True", Reason: "IOError", Message: "root"},
	}}}
	rows := []struct{ message, reason, text string }{
		{"PoweredOff: the guest shut down after 3h12m", "PoweredOff", "the guest shut down after 3h12m"},
		{"panic: runtime error", "panic", "runtime error"},
		{"no reason at all", "Ended", "no reason at all"},
		{"two words: and more", "Ended", "two words: and more"},
		{"", "Ended", ""},
	}
	for _, row := range rows {
		t.Run(row.message, func(t *testing.T) {
			end := &corev1.ContainerStateTerminated{Message: row.message, ExitCode: 3, FinishedAt: metav1.Unix(1000, 0)}
			want := []corev1.PodCondition{
				{Type: api.ConditionAgentConnected, Status: "False"},
				{Type: api.ConditionDiskError, Status: "True", Reason: "IOError", Message: "root"},
				{Type: api.ConditionGuestRunning, Status: "False", Reason: row.reason, Message: row.text},
				{Type: api.ConditionPaused, Status: "False"},
			}
			if diff := cmp.Diff(want, EndedConditions(pod, end)); diff != "" {
				t.Errorf("(-want,+got)\n%s", diff)
			}
			d := OfEnded(Document{State: api.StateRunning, VCPUs: 2, Told: Told{Seq: 3}}, end)
			if d.State != "" || d.VCPUs != 2 || d.Told.Seq != 3 || d.Ended.Code != 3 || d.Ended.Reason != row.reason {
				t.Errorf("%+v", d)
			}
		})
	}
}

// TestApply: a condition keeps the time of its last change.
func TestApply(t *testing.T) {
	long, now := metav1.Unix(1000, 0), time.Unix(2000, 0)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "b", UID: "c"},
		Status: corev1.PodStatus{Conditions: []corev1.PodCondition{
			{Type: api.ConditionPaused, Status: "True", LastTransitionTime: long}, {Type: api.ConditionGuestRunning, Status: "True", LastTransitionTime: long},
		}},
	}
	body, err := Apply(pod, "{}", []corev1.PodCondition{
		{Type: api.ConditionGuestRunning, Status: "False", Reason: "Paused"}, {Type: api.ConditionPaused, Status: "True", Reason: "User"},
	}, now)
	if err != nil {
		t.Fatal(err)
	}
	var got corev1.Pod
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatal(err)
	}
	c := got.Status.Conditions
	if !c[0].LastTransitionTime.Time.Equal(now) || !c[1].LastTransitionTime.Equal(&long) || got.UID != "c" || got.Annotations[api.KeyStatus] != "{}" {
		t.Errorf("%s", body)
	}
}
