package virtualmachine

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	fwk "k8s.io/kube-scheduler/framework"

	"podvirt.dev/api"
	"podvirt.dev/internal/apitest"
)

// clientHandle is a handle with a real API server.
type clientHandle struct {
	*handle
	client kubernetes.Interface
}

func (h clientHandle) ClientSet() kubernetes.Interface { return h.client }

// TestBindInParallel binds a hundred VMs at once to one Node, on a real API server, while the next ones are still placed:
// as the scheduler does, whose cycles follow each other and whose Bindings run beside them. A third of the Bindings fail.
// What the Pods say in the end is never more than a cell has (SC-046).
func TestBindInParallel(t *testing.T) {
	server := apitest.Start(t)
	server.Make(t, "shop", "default")
	const vms, total = 100, 80
	w := newWorld(t, pool(total, total), pool(total, total))
	h := clientHandle{w.pl.handle.(*handle), server.Client}

	var mu sync.Mutex // of w.pods, as the scheduler's cache has one
	var binding sync.WaitGroup
	gate := make(chan struct{}) // lets the first half of the Bindings begin together
	open := sync.OnceFunc(func() { close(gate) })
	placed := 0
	for i := range vms {
		pod := created(t, server.Client, fmt.Sprintf("vm-%d", i), 1+int64(i%3))
		mu.Lock()
		cells := w.schedule(pod)
		mu.Unlock()
		if cells != "0" && cells != "1" {
			continue // full
		}
		placed++
		fails := i%3 == 0
		binding.Go(func() {
			<-gate
			if fails { // the Pod went in the meantime
				deleteNow(t, server.Client, pod)
			}
			status := (&Plugin{handle: h, ledger: w.pl.ledger}).Bind(t.Context(), nil, pod, w.node.Name)
			if status.IsSuccess() == fails {
				t.Errorf("%s: Bind = %v", pod.Name, status)
			}
			if !status.IsSuccess() {
				mu.Lock()
				defer mu.Unlock()
				w.pods = slices.DeleteFunc(slices.Clone(w.pods), func(p fwk.PodInfo) bool { return p.GetPod().UID == pod.UID })
				w.pl.Unreserve(t.Context(), nil, pod, w.node.Name)
			}
		})
		if placed == vms/2 {
			open() // from here on it is placed and bound side by side
		}
	}
	open()
	binding.Wait()
	if placed < vms/2 {
		t.Fatalf("%d VMs were placed", placed)
	}
	wantRoom(t, server.Client, total)
}

// created makes the Pod on the API server, which gives it its UID.
func created(t *testing.T, client kubernetes.Interface, name string, pages int64) *corev1.Pod {
	t.Helper()
	pod := pagesPod(name, pages, nil)
	pod.Name, pod.UID = name, types.UID("")
	for i := range pod.Spec.Containers {
		pod.Spec.Containers[i].Image, pod.Spec.Containers[i].VolumeMounts = "none", nil
	}
	pod, err := client.CoreV1().Pods("shop").Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

func deleteNow(t *testing.T, client kubernetes.Interface, pod *corev1.Pod) {
	t.Helper()
	if err := client.CoreV1().Pods(pod.Namespace).Delete(t.Context(), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Error(err)
	}
}

// wantRoom adds up what the bound Pods hold of each cell.
func wantRoom(t *testing.T, client kubernetes.Interface, total int64) {
	t.Helper()
	list, err := client.CoreV1().Pods("shop").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	held, bound := map[string]int64{}, 0
	for i := range list.Items {
		pod := &list.Items[i]
		if pod.Spec.NodeName == "" {
			continue
		}
		bound++
		_, pages := hugepagesOf(&pod.Spec.Containers[0])
		held[pod.Annotations[api.KeyNUMACell]] += pages
	}
	t.Logf("%d VMs are bound and hold %v of %d pages in each cell", bound, held, total)
	for cell, pages := range held {
		if cell != "0" && cell != "1" || pages > total {
			t.Errorf("cell %q: %d pages are held; it has %d", cell, pages, total)
		}
	}
	if bound == 0 {
		t.Error("no VM is bound")
	}
}
