package cluster

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/pool"
	"podvirt.dev/csi-hostpath/internal/poolconfig"
)

func config(pools string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: api.ConfigName, Namespace: api.SystemNamespace}, Data: map[string]string{poolconfig.Key: pools},
	}
}

func node(labels map[string]string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: labels}}
}

func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case value := <-from:
		return value
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came for 10 s")
		panic("unreachable")
	}
}

// TestFollowsTheConfiguration: pools follow podvirt-config and the node's labels; a mistake is an event, and the last
// good pools stay.
func TestFollowsTheConfiguration(t *testing.T) {
	kube := fake.NewClientset(config("[{name: a, path: /var/lib/podvirt/a}]"), node(nil))
	client := newClient(Options{Node: "n1", Root: "/var/lib/podvirt"}, kube)
	events := record.NewFakeRecorder(10)
	client.events = events
	ctx, cancel := context.WithCancel(t.Context())
	applied := make(chan []string, 10)
	done := make(chan error, 1)
	go func() {
		done <- client.Run(ctx, func(_ context.Context, pools []poolconfig.Pool) {
			names := []string{}
			for _, p := range pools {
				names = append(names, p.Name)
			}
			applied <- names
		})
	}()
	expect := func(want ...string) {
		t.Helper()
		for {
			got := receive(t, applied)
			if diff := cmp.Diff(want, got); diff == "" {
				return
			} else if len(applied) == 0 {
				t.Fatalf("pools (-want,+got):\n%s", diff)
			}
		}
	}
	expect("a")
	update := func(pools string) {
		t.Helper()
		if _, err := kube.CoreV1().ConfigMaps(api.SystemNamespace).Update(ctx, config(pools), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	drain(applied)
	update("[{name: a, path: /etc}]")
	if event := receive(t, events.Events); !strings.Contains(event, `ConfigRejected data.storage.pools: [0].path: "/etc" is not below /var/lib/podvirt`) {
		t.Errorf("event = %s", event)
	}
	update("[{name: a, path: /var/lib/podvirt/a}, {name: b, path: /var/lib/podvirt/b, nodeSelector: {disk: nvme}}]")
	if _, err := kube.CoreV1().Nodes().Update(ctx, node(map[string]string{"disk": "nvme"}), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("a", "b")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func drain[T any](from <-chan T) {
	for {
		select {
		case <-from:
		case <-time.After(200 * time.Millisecond):
			return
		}
	}
}

// TestPublishes: the Node tells what the pools are, and is written again only when that tells something new.
func TestPublishes(t *testing.T) {
	kube := fake.NewClientset(node(nil))
	client := newClient(Options{Node: "n1"}, kube)
	events := record.NewFakeRecorder(10)
	client.events = events
	watcher, err := kube.CoreV1().Nodes().Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Stop()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	report := pool.Report{Name: "a", ID: "0123456789abcdef", Path: "/p", Ready: true, FileSystem: "xfs", Reflink: true, SharesOS: true, Size: 1 << 30}
	go func() { done <- client.Publish(ctx, func() []pool.Report { return []pool.Report{report} }) }()

	event := receive(t, watcher.ResultChan())
	if event.Type == watch.Added { // the watch may begin with what is there
		event = receive(t, watcher.ResultChan())
	}
	written, ok := event.Object.(*corev1.Node)
	if event.Type != watch.Modified || !ok {
		t.Fatalf("event = %v", event)
	}
	var got NodePools
	if err := json.Unmarshal([]byte(written.Annotations[api.NodePools]), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]pool.Report{report}, got.Pools); diff != "" || got.BootID == "" || got.Time.IsZero() {
		t.Errorf("annotation = %+v (-want,+got):\n%s", got, diff)
	}
	if event := receive(t, events.Events); !strings.Contains(event, "PoolSharesOS pool a: /p is on the file system") {
		t.Errorf("event = %s", event)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNews(t *testing.T) {
	before := pool.Report{Name: "a", Ready: true, Size: 1000, Free: 500, Available: 400}
	for name, test := range map[string]struct {
		change func(*pool.Report)
		want   bool
	}{
		"nothing":          {func(*pool.Report) {}, false},
		"a little written": {func(r *pool.Report) { r.Free -= 5 }, false},
		"much written":     {func(r *pool.Report) { r.Free -= 50 }, true},
		"full":             {func(r *pool.Report) { r.Available = 0 }, true},
		"not ready":        {func(r *pool.Report) { r.Ready, r.Message = false, "gone" }, true},
	} {
		t.Run(name, func(t *testing.T) {
			after := before
			test.change(&after)
			if got := news([]pool.Report{before}, []pool.Report{after}); got != test.want {
				t.Errorf("news = %v; want %v", got, test.want)
			}
		})
	}
}

// TestWarnsOfRemovedPools: a pool with volumes that is taken out of the configuration is an event on the Node.
func TestWarnsOfRemovedPools(t *testing.T) {
	client := newClient(Options{Node: "n1"}, fake.NewClientset())
	events := record.NewFakeRecorder(10)
	client.events = events
	before := []pool.Report{{Name: "used", Path: "/p/used", Promised: 1 << 30}, {Name: "empty"}, {Name: "stays", Promised: 1}}
	client.warnOfRemoval(before, []pool.Report{{Name: "stays", Promised: 1}})
	if len(events.Events) != 1 {
		t.Fatalf("%d events; want one", len(events.Events))
	}
	if event := <-events.Events; !strings.Contains(event, "PoolRemoved pool used (/p/used) is not in storage.pools any more") {
		t.Errorf("event = %s", event)
	}
}
