package program

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestNotes: what QEMU and libvirt say is carried over, the command that starts QEMU is not.
func TestNotes(t *testing.T) {
	const log = `2026-11-20 11:00:00.123+0000: starting up libvirt version: 11.3.0, qemu version: 10.0.3
LC_ALL=C \
PATH=/usr/bin \
/usr/bin/qemu-system-x86_64 \
-name guest=db1 \
-msg timestamp=on
2026-11-20T11:00:01.123456Z qemu-system-x86_64: terminating on signal 15
2026-11-20 11:00:02.123+0000: 17: warning : something is odd

`
	got, left := notes(log + strings.Repeat("again\n", foreignLines))
	want := append([]string{
		"starting up libvirt version: 11.3.0, qemu version: 10.0.3", "qemu-system-x86_64: terminating on signal 15",
		"warning : something is odd",
	}, strings.Fields(strings.Repeat("again ", foreignLines-3))...)
	if diff := cmp.Diff(want, got); diff != "" || left != 3 {
		t.Errorf("%d left out (-want,+got):\n%s", left, diff)
	}
}
