package launcher

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"podvirt.dev/internal/require"
)

// newHardwarePod is newPod with the guest that has a driver for every device.
func newHardwarePod(t *testing.T, annotations map[string]string) *pod {
	t.Helper()
	p := newPod(t, annotations)
	image := filepath.Join(p.spec.Mounts["/vm/disks/root"], "disk")
	if err := os.Remove(filepath.Join(image, "tiny.qcow2")); err != nil {
		t.Fatal(err)
	}
	copyFile(t, hardwareGuest(t), filepath.Join(image, "hardware.qcow2"))
	return p
}

func hardwareGuest(t *testing.T) string {
	t.Helper()
	path := filepath.Join(cache(), "images", "parts", "guest-hardware.qcow2")
	_, err := os.Stat(path)
	require.Feature(t, err == nil, errNotBuilt.Error())
	return path
}

// shell is a shell in the guest that a test asks.
type shell struct {
	*session
	asked int
}

// shell logs in. What is typed is not echoed; it is one line of at most 4095 bytes (linux: drivers/tty/n_tty.c).
func (v *vm) shell() *shell {
	v.t.Helper()
	s := &shell{session: v.login()}
	s.typeLine("dmesg -n 1; stty -echo; echo qui''et; while read -r line; do eval \"$line\"; done 2>&1")
	s.out.wait(v.t, `quiet\r?\n`, 1) // what is typed while the terminal changes is lost
	return s
}

// ask runs a command and returns what it printed, without blanks around it and without what the guest says by itself.
func (s *shell) ask(command string) string {
	s.v.t.Helper()
	s.asked++
	word := fmt.Sprintf("%d-%x", s.asked, time.Now().UnixNano())
	answer := regexp.MustCompile(`(?s)begin-` + word + `\r?\n(.*)end-` + word + `\r?\n`)
	s.typeLine("echo begin-" + word + "; " + command + "\necho end-" + word)
	s.out.wait(s.v.t, answer.String(), 1)
	text := strings.ReplaceAll(answer.FindStringSubmatch(s.out.String())[1], "\r", "")
	return strings.TrimSpace(regexp.MustCompile(`(?:podvirt-tiny|insmod): .*\n`).ReplaceAllString(text, ""))
}

// await asks until the answer matches.
func (s *shell) await(command, pattern string) string {
	s.v.t.Helper()
	re, answer := regexp.MustCompile(pattern), ""
	s.v.eventually(command+" says "+pattern, func() bool {
		answer = s.ask(command)
		return re.MatchString(answer)
	})
	return answer
}

// wants asks each command and compares the answer with a pattern.
func (s *shell) wants(table map[string]string) {
	s.v.t.Helper()
	for command, pattern := range table {
		if got := s.ask(command); !regexp.MustCompile(pattern).MatchString(got) {
			s.v.t.Errorf("%s: the guest says %q; want %q", command, got, pattern)
		}
	}
}
