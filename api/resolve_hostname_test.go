package api

import (
	"strings"
	"testing"
)

func TestGivenHostname(t *testing.T) {
	long := strings.Repeat("a", 62) + "-bcd"
	for name, row := range map[string]struct{ own, pod, want string }{
		"none":                       {"web-7c9f5d-x2x", "web-7c9f5d-x2x", ""},
		"none, a Pod with dots":      {"a.b", "a.b", ""},
		"none, a long name":          {strings.Repeat("a", 62), long, ""},
		"none, with domain":          {"web-0.sub.shop.svc.cluster.local", "web-0", ""},
		"none, in a StatefulSet":     {"web-0", "web-0", ""},
		"one":                        {"mail", "web-7c9f5d-x2x", "mail"},
		"one, with domain":           {"mail.sub.shop.svc.cluster.local", "web-7c9f5d-x2x", "mail"},
		"one that begins as the Pod": {"web-7c9f5d-x2", "web-7c9f5d-x2x", "web-7c9f5d-x2"},
		"unknown":                    {"", "web", ""},
	} {
		if got := givenHostname(row.own, row.pod); got != row.want {
			t.Errorf("%s: %q; want %q", name, got, row.want)
		}
	}
	pod := Pod{Name: "web-7c9f5d-x2x", Hostname: "mail", Labels: map[string]string{LabelVM: "web"}, Limits: Resources{CPU: 1000, Memory: 1 << 30}}
	for annotation, want := range map[string]string{"": "mail", "web": "web", "db": "db"} {
		pod.Annotations = map[string]string{KeyVM: "web", KeyMemory: "512Mi"}
		if annotation != "" {
			pod.Annotations[KeyHostname] = annotation
		}
		if m, errs := Resolve(pod, Config{}); m.Hostname != want {
			t.Errorf("annotation %q: host name %s, %v; want %s", annotation, m.Hostname, errs, want)
		}
	}
	pod.Hostname, pod.Annotations = "", map[string]string{KeyVM: "web"}
	if m, _ := Resolve(pod, Config{}); m.Hostname != "web" {
		t.Errorf("unknown: host name %s; want web", m.Hostname)
	}
}
