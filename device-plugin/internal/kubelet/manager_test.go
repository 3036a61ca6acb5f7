package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"podvirt.dev/device-plugin/internal/device"
	"podvirt.dev/internal/kubelettest"
)

const (
	kvm  = "podvirt.dev/kvm"
	tun  = "podvirt.dev/tun"
	uid1 = "0b7f5f3e-7d0c-4b3e-9a43-6a5a2f1f9b11"
	uid2 = "1b7f5f3e-7d0c-4b3e-9a43-6a5a2f1f9b11"
)

// recorder is an Observer that remembers.
type recorder struct {
	mu            sync.Mutex
	registrations map[string][]string
	allocations   []error
}

func (r *recorder) Registered(resource, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.registrations == nil {
		r.registrations = map[string][]string{}
	}
	r.registrations[resource] = append(r.registrations[resource], reason)
}

func (r *recorder) Allocated(_ string, _ time.Duration, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.allocations = append(r.allocations, err)
}

func (r *recorder) of(resource string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.registrations[resource], " ")
}

func units(kind string, n int) device.Resource {
	r := device.Resource{Name: "podvirt.dev/" + kind}
	for i := range n {
		r.Units = append(r.Units, device.Unit{
			ID:    fmt.Sprintf("%s-%d", kind, i),
			Grant: device.Grant{CDI: []string{r.Name + "=any"}},
		})
	}
	return r
}

// startPlugin runs a manager until the test ends or stop is called.
func startPlugin(t *testing.T, dir, instance string, board *device.Board) (m *Manager, r *recorder, stop func()) {
	t.Helper()
	r = &recorder{}
	m, err := NewManager(Options{Dir: dir, Instance: instance, Board: board, Observer: r})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	t.Cleanup(stop)
	return m, r, stop
}

func TestTheKubeletFindsEveryResource(t *testing.T) {
	dir := kubelettest.ShortDir(t)
	k, _ := kubelettest.Start(t, dir, "")
	board := device.NewBoard()
	board.Publish([]device.Resource{units("kvm", 1000), units("tun", 0)})
	m, r, stop := startPlugin(t, dir, uid1, board)

	kubelettest.Eventually(t, 30*time.Second, "both registered", func() bool { return k.Healthy(kvm) == 1000 && k.Healthy(tun) == 0 })
	kubelettest.Eventually(t, 30*time.Second, "the manager knows", func() bool { return len(m.Unregistered()) == 0 })
	if r.of(kvm) != "registered" {
		t.Errorf("registrations = %q; want one", r.of(kvm))
	}
	if sockets := ownSockets(t, dir); len(sockets) != 2 || !strings.HasSuffix(sockets[0], "-"+uid1+".sock") {
		t.Errorf("sockets = %q; want one per resource with the Pod's UID", sockets)
	}

	stop()
	if sockets := ownSockets(t, dir); len(sockets) != 0 {
		t.Errorf("sockets after the end = %q; want none", sockets)
	}
	if messages, _, _ := k.Count(kvm); messages != 1 {
		t.Errorf("%d messages; want one, and no empty list at the end", messages)
	}
}

func TestListAndWatchSendsOnlyChanges(t *testing.T) {
	dir := kubelettest.ShortDir(t)
	k, _ := kubelettest.Start(t, dir, "")
	board := device.NewBoard()
	board.Publish([]device.Resource{units("kvm", 5), units("tun", 3)})
	startPlugin(t, dir, uid1, board)
	kubelettest.Eventually(t, 30*time.Second, "registered", func() bool { return k.Healthy(kvm) == 5 && k.Healthy(tun) == 3 })

	for range 50 {
		board.Publish([]device.Resource{units("kvm", 5), units("tun", 3)})
	}
	more := units("kvm", 10)
	more.Units[9].Reason = "gone"
	board.Publish([]device.Resource{more, units("tun", 3)})
	kubelettest.Eventually(t, 30*time.Second, "the change arrived", func() bool { return k.Healthy(kvm) == 9 })

	messages, _, _ := k.Count(kvm)
	untouched, _, _ := k.Count(tun)
	// A kubelet that sees a new socket twice opens two streams, and each begins with a message.
	if messages < 2 || messages > 3 || untouched < 1 || untouched > 2 {
		t.Errorf("messages: kvm %d, tun %d; want 2 and 1, and at most one more of each", messages, untouched)
	}
}

func TestFlappingCostsOneMessageASecond(t *testing.T) {
	dir := kubelettest.ShortDir(t)
	k, _ := kubelettest.Start(t, dir, "")
	board := device.NewBoard()
	board.Publish([]device.Resource{units("kvm", 1)})
	startPlugin(t, dir, uid1, board)
	kubelettest.Eventually(t, 30*time.Second, "registered", func() bool { return k.Healthy(kvm) == 1 })
	for i := range 100 {
		flapping := units("kvm", 1)
		if i%2 == 0 {
			flapping.Units[0].Reason = "gone"
		}
		board.Publish([]device.Resource{flapping})
	}
	last := units("kvm", 2)
	board.Publish([]device.Resource{last})
	kubelettest.Eventually(t, 30*time.Second, "the last state arrived", func() bool { return k.Healthy(kvm) == 2 })
	if messages, _, _ := k.Count(kvm); messages > 3 {
		t.Errorf("%d messages for 100 changes; want at most 3", messages)
	}
}

func TestResourcesComeAndGo(t *testing.T) {
	dir := kubelettest.ShortDir(t)
	k, _ := kubelettest.Start(t, dir, "")
	board := device.NewBoard()
	board.Publish([]device.Resource{units("kvm", 1)})
	_, _, _ = startPlugin(t, dir, uid1, board)
	kubelettest.Eventually(t, 30*time.Second, "kvm", func() bool { return k.Healthy(kvm) == 1 })

	board.Publish([]device.Resource{units("kvm", 1), units("tun", 1)})
	kubelettest.Eventually(t, 30*time.Second, "tun", func() bool { return k.Healthy(tun) == 1 })
	board.Publish([]device.Resource{units("tun", 1)})
	kubelettest.Eventually(t, 30*time.Second, "kvm gone", func() bool { return k.Healthy(kvm) == 0 && len(ownSockets(t, dir)) == 1 })
	if messages, _, _ := k.Count(tun); messages != 1 {
		t.Errorf("%d messages for tun; want 1", messages)
	}
}

func TestKubeletRestartLosesNothing(t *testing.T) {
	dir := kubelettest.ShortDir(t)
	board := device.NewBoard()
	board.Publish([]device.Resource{units("kvm", 1000), units("tun", 1000)})
	m, r, _ := startPlugin(t, dir, uid1, board)
	for round := range 20 {
		k, stop := kubelettest.Start(t, dir, "")
		kubelettest.Eventually(t, 30*time.Second, fmt.Sprintf("capacity in round %d", round), func() bool {
			return k.Healthy(kvm) == 1000 && k.Healthy(tun) == 1000
		})
		answer, err := k.Allocate(t.Context(), kvm, "kvm-17")
		if err != nil || len(answer.CdiDevices) != 1 || answer.CdiDevices[0].Name != kvm+"=any" {
			t.Fatalf("round %d: Allocate = %v, %v", round, answer, err)
		}
		stop()
	}
	if got := r.of(kvm); got != "registered"+strings.Repeat(" again", 19) {
		t.Errorf("registrations = %q", got)
	}
	if missing := m.Unregistered(); len(missing) != 0 {
		t.Errorf("unregistered = %q", missing)
	}
}

func TestDeletedSocketsAreRemade(t *testing.T) {
	dir := kubelettest.ShortDir(t)
	k, _ := kubelettest.Start(t, dir, "")
	board := device.NewBoard()
	board.Publish([]device.Resource{units("kvm", 7), units("tun", 7)})
	_, r, _ := startPlugin(t, dir, uid1, board)
	kubelettest.Eventually(t, 30*time.Second, "registered", func() bool { return k.Healthy(kvm) == 7 && k.Healthy(tun) == 7 })
	for round := range 5 {
		for _, socket := range ownSockets(t, dir) {
			if err := os.Remove(socket); err != nil {
				t.Fatal(err)
			}
		}
		want := "registered" + strings.Repeat(" again", round+1)
		kubelettest.Eventually(t, 30*time.Second, "registered again", func() bool {
			return len(ownSockets(t, dir)) == 2 && r.of(kvm) == want && r.of(tun) == want && k.Healthy(kvm) == 7 && k.Healthy(tun) == 7
		})
	}
}

// The kubelet keeps several endpoints of one resource (since 1.37): the old Pod ends after the new one is registered.
func TestUpgradeNeverLowersTheCapacity(t *testing.T) {
	dir := kubelettest.ShortDir(t)
	k, _ := kubelettest.Start(t, dir, "")
	oldBoard, newBoard := device.NewBoard(), device.NewBoard()
	oldBoard.Publish([]device.Resource{units("kvm", 100)})
	_, _, stopOld := startPlugin(t, dir, uid1, oldBoard)
	kubelettest.Eventually(t, 30*time.Second, "the old one", func() bool { return k.Healthy(kvm) == 100 })

	next, _, _ := startPlugin(t, dir, uid2, newBoard) // it knows nothing of KVM yet and so it says nothing
	if missing := next.Unregistered(); len(missing) != 0 {
		t.Errorf("unregistered = %q; want nothing while nothing is on the board", missing)
	}
	newBoard.Publish([]device.Resource{units("kvm", 100)})
	kubelettest.Eventually(t, 30*time.Second, "two endpoints", func() bool {
		messages, _, endpoints := k.Count(kvm)
		return endpoints == 2 && messages == 2 && len(next.Unregistered()) == 0
	})
	stopOld()
	kubelettest.Eventually(t, 30*time.Second, "one endpoint", func() bool { _, _, endpoints := k.Count(kvm); return endpoints == 1 })
	if _, minimum, _ := k.Count(kvm); minimum != 100 {
		t.Errorf("lowest capacity seen = %d; want 100", minimum)
	}
}

func TestSocketsOfDeadPodsAreRemovedAndLivingOnesStay(t *testing.T) {
	dir := kubelettest.ShortDir(t)
	dead := filepath.Join(dir, "podvirt-00000000-dead.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	_ = listener.Close()
	living := filepath.Join(dir, "podvirt-00000000-living.sock")
	other, err := net.Listen("unix", living)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()

	startPlugin(t, dir, uid1, device.NewBoard())
	kubelettest.Eventually(t, 30*time.Second, "the dead socket is gone", func() bool {
		_, err := os.Lstat(dead)
		return errors.Is(err, fs.ErrNotExist)
	})
	if _, err := os.Lstat(living); err != nil {
		t.Errorf("the living socket: %v", err)
	}
}

func TestRefusedResourceIsSaidAndTriedAgain(t *testing.T) {
	dir := kubelettest.ShortDir(t)
	kubelettest.Start(t, dir, kvm)
	board := device.NewBoard()
	board.Publish([]device.Resource{units("kvm", 1), units("tun", 1)})
	m, r, _ := startPlugin(t, dir, uid1, board)
	kubelettest.Eventually(t, 30*time.Second, "refused twice", func() bool {
		return strings.HasPrefix(r.of(kvm), "refused refused") && cmp.Equal(m.Unregistered(), []string{kvm})
	})
}

func TestAllocate(t *testing.T) {
	dir := kubelettest.ShortDir(t)
	k, _ := kubelettest.Start(t, dir, "")
	vsock := device.Resource{Name: "podvirt.dev/vhost-vsock"}
	for _, id := range []string{"a", "b"} {
		vsock.Units = append(vsock.Units, device.Unit{ID: id, Grant: device.Grant{
			CDI: []string{"podvirt.dev/vhost-vsock=any"}, Env: map[string]string{"PODVIRT_VSOCK_CID": "cid-" + id},
		}})
	}
	vsock.Units = append(vsock.Units, device.Unit{ID: "c", Reason: "gone"})
	board := device.NewBoard()
	board.Publish([]device.Resource{vsock})
	_, r, _ := startPlugin(t, dir, uid1, board)
	kubelettest.Eventually(t, 30*time.Second, "registered", func() bool { return k.Healthy(vsock.Name) == 2 })

	for _, ids := range [][]string{{"a", "b"}, {"b", "a"}} {
		got, err := k.Allocate(t.Context(), vsock.Name, ids...)
		if err != nil {
			t.Fatal(err)
		}
		if got.Envs["PODVIRT_VSOCK_CID"] != "cid-a,cid-b" || len(got.CdiDevices) != 1 || len(got.Devices) != 0 || len(got.Mounts) != 0 {
			t.Errorf("Allocate(%v) = %v; want both CIDs, one CDI device and no bare node", ids, got)
		}
	}
	for id, want := range map[string]codes.Code{"z": codes.NotFound, "c": codes.FailedPrecondition} {
		if _, err := k.Allocate(t.Context(), vsock.Name, id); status.Code(err) != want || !strings.Contains(err.Error(), id) {
			t.Errorf("Allocate(%s) = %v; want %v with the id", id, err, want)
		}
	}
	if r.mu.Lock(); len(r.allocations) != 4 {
		t.Errorf("%d allocations observed; want 4", len(r.allocations))
	}
	r.mu.Unlock()
}

func TestAllocateIsFastWhenManyPodsStart(t *testing.T) {
	dir := kubelettest.ShortDir(t)
	k, _ := kubelettest.Start(t, dir, "")
	board := device.NewBoard()
	board.Publish([]device.Resource{units("kvm", 1000)})
	startPlugin(t, dir, uid1, board)
	kubelettest.Eventually(t, 30*time.Second, "registered", func() bool { return k.Healthy(kvm) == 1000 })
	var wg sync.WaitGroup
	errs := make(chan error, 100)
	start := time.Now()
	for i := range 100 {
		wg.Go(func() {
			_, err := k.Allocate(t.Context(), kvm, fmt.Sprintf("kvm-%d", i))
			errs <- err
		})
	}
	wg.Wait()
	took := time.Since(start)
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if took > 2*time.Second { // 20 ms each, one after the other
		t.Errorf("100 calls took %v", took)
	}
	t.Logf("100 parallel calls took %v", took)
}

func TestNewManagerChecks(t *testing.T) {
	for name, o := range map[string]Options{
		"no instance":      {Dir: "/r"},
		"a path":           {Dir: "/r", Instance: "../x"},
		"path is too long": {Dir: "/" + strings.Repeat("r", 80), Instance: uid1},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := NewManager(o); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func ownSockets(t *testing.T, dir string) []string {
	t.Helper()
	sockets, err := filepath.Glob(filepath.Join(dir, socketPrefix+"*"+socketSuffix))
	if err != nil {
		t.Fatal(err)
	}
	return sockets
}
