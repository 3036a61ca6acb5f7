package nics

import (
	"context"
	"fmt"
	"os"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"podvirt.dev/api"
	"podvirt.dev/internal/nl"
)

// TestAwaitFree holds taps as a QEMU does that is slow to die. Other tests have taps too, whose processes are in the same /proc.
func TestAwaitFree(t *testing.T) {
	h := inNamespace(t)
	for name, flags := range map[string]uint16{"tap931": 0, "tap932": unix.IFF_MULTI_QUEUE} {
		makeTap(t, h, name, text(t, alias("default", "eth0")), nl.Tap{MultiQueue: flags != 0})
		found := []NIC{{Tap: name}}
		if err := AwaitFree(t.Context(), h, found, os.DirFS("/proc")); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		queue, err := nl.OpenTap(name, flags)
		if err != nil {
			t.Fatal(err)
		}
		ended, end := context.WithCancel(t.Context())
		end()
		wantError(t, AwaitFree(ended, h, found, os.DirFS("/proc")), api.ReasonNodeLacks, fmt.Sprintf("%s is held by pid %d", name, os.Getpid()))
		wantError(t, AwaitFree(ended, h, found, fstest.MapFS{}), api.ReasonNodeLacks, name+" is held by a process outside this container")
		closed := time.AfterFunc(2*heldRetry, func() { _ = queue.Close() })
		if err := AwaitFree(t.Context(), h, found, os.DirFS("/proc")); err != nil || closed.Stop() {
			t.Errorf("%s was let go: %v", name, err)
		}
	}
}
