package program

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/internal/nicalias"
	"podvirt.dev/launcher/internal/control"
	"podvirt.dev/launcher/internal/nics"
	"podvirt.dev/launcher/internal/virt"
	"podvirt.dev/launcher/internal/virt/virttest"
)

// TestCablesFollowAnnotations: an edit moves the cable once, a mistake moves nothing, and what fails is tried again.
func TestCablesFollowAnnotations(t *testing.T) {
	dom, _ := virttest.New()
	dom.Description = `<domain><devices><interface type="ethernet"><alias name="ua-nic_default"/></interface></devices></domain>`
	network := newNetwork()
	network.found = []nics.NIC{{NIC: nicalias.NIC{Name: "default"}}}
	network.links["default"] = linkUp
	var (
		written  = time.Unix(1, 0)
		state    = "up"
		mistaken error
		loads    int
	)
	file := filepath.Join(t.TempDir(), "annotations")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := &cables{
		network: network, domain: func() (virt.Domain, error) { return dom, nil },
		stat: func() (fs.FileInfo, error) { return os.Stat(file) },
		load: func() (api.Machine, error) {
			loads++
			return api.Machine{VM: api.VM{NICs: []api.NIC{{Name: "default", Link: state}}}}, mistaken
		},
	}
	moved := func(what string, want ...string) {
		t.Helper()
		var got []string
		for _, call := range dom.Calls() {
			if xml, ok := strings.CutPrefix(call, "update "); ok {
				got = append(got, map[bool]string{true: "up", false: "down"}[strings.Contains(xml, `state="up"`)])
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: cables were moved %q; want %q", what, got, want)
		}
	}
	edit := func(to string, err error) {
		written, state, mistaken = written.Add(time.Second), to, err
		if err := os.Chtimes(file, written, written); err != nil {
			t.Fatal(err)
		}
		c.look(klog.FromContext(t.Context()))
	}
	c.look(klog.FromContext(t.Context()))
	moved("nothing was edited")
	edit("down", nil)
	moved("while the VM is off", "down") // refused
	if got := network.said("default"); got != linkUp {
		t.Errorf("the annotation counts as followed: %s", got)
	}
	if err := dom.Start(); err != nil {
		t.Fatal(err)
	}
	c.look(klog.FromContext(t.Context()))
	moved("tried again", "down", "down")
	c.look(klog.FromContext(t.Context()))
	edit("up", errors.New("a mistake elsewhere"))
	edit("down", nil)
	moved("the same again", "down", "down")
	edit("", nil)
	moved("the option is gone", "down", "down", "up")
	if loads != 6 {
		t.Errorf("the annotations were read %d times; want 6", loads)
	}
}

func TestUpdateWords(t *testing.T) {
	for words, want := range map[string]string{
		"nic link=up":        "default true",
		"nic net1 link=down": "net1 false",
		"":                   "want nic [NAME]",
		"disk root":          "want nic [NAME]",
		"nic":                "want [NAME] link=up or link=down",
		"nic net1":           "net1: not one of link=up, link=down",
		"nic net1 link=half": "link=half: not one of link=up, link=down",
	} {
		nic, up, err := updateOf(strings.Fields(words))
		got := nic + map[bool]string{true: " true", false: " false"}[up]
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) || err != nil && !errors.Is(err, control.ErrUsage) {
			t.Errorf("update %s: %q; want %q", words, got, want)
		}
	}
}
