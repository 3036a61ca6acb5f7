package registration

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// kubelet asks a plugin who it is and tells it the outcome, as kubelet's plugin watcher does.
func kubelet(t *testing.T, socket string, status *registerapi.RegistrationStatus) *registerapi.PluginInfo {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := registerapi.NewRegistrationClient(conn)
	info, err := client.GetInfo(ctx, &registerapi.InfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.NotifyRegistrationStatus(ctx, status); err != nil {
		t.Fatal(err)
	}
	return info
}

// TestRegistersAgain: after a refusal, and after somebody emptied the directory, the driver is offered anew.
func TestRegistersAgain(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "hostpath.csi.podvirt.dev-reg.sock")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{Name: "hostpath.csi.podvirt.dev", Endpoint: "/plugins/csi.sock", Dir: dir})
	}()
	appears(t, socket)
	first := inode(t, socket)
	info := kubelet(t, socket, &registerapi.RegistrationStatus{Error: "not now"})
	got := []string{info.GetType(), info.GetName(), info.GetEndpoint(), info.GetSupportedVersions()[0]}
	if diff := cmp.Diff([]string{"CSIPlugin", "hostpath.csi.podvirt.dev", "/plugins/csi.sock", "1.0.0"}, got); diff != "" {
		t.Errorf("what kubelet hears (-want,+got):\n%s", diff)
	}

	await(t, func() bool { now, err := os.Stat(socket); return err == nil && !os.SameFile(first, now) })
	kubelet(t, socket, &registerapi.RegistrationStatus{PluginRegistered: true})
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	appears(t, socket)
	kubelet(t, socket, &registerapi.RegistrationStatus{PluginRegistered: true})

	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket after the end: %v", err)
	}
}

func inode(t *testing.T, path string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func appears(t *testing.T, path string) {
	t.Helper()
	await(t, func() bool { _, err := os.Stat(path); return err == nil })
}

func await(t *testing.T, done func() bool) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(20 * time.Second)
	for !done() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatal("nothing happened for 20 s")
		}
	}
}
