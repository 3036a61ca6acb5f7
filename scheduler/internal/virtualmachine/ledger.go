package virtualmachine

import (
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	fwk "k8s.io/kube-scheduler/framework"

	"podvirt.dev/api"
)

// ledger knows the cells of Pods that are on their way to a Node. From the Binding on the Pod says it itself, in
// annotation podvirt.dev/numa-cell, and a scheduler that has just started knows as much as one that ran for a month.
type ledger struct {
	mu    sync.RWMutex
	cells map[types.UID][]int
}

func newLedger() *ledger { return &ledger{cells: map[types.UID][]int{}} }

func (l *ledger) take(pod types.UID, cells []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cells[pod] = cells
}

func (l *ledger) release(pod types.UID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.cells, pod)
}

func (l *ledger) of(pod types.UID) []int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.cells[pod]
}

// handler forgets Pods that are gone. What was taken for a bound Pod stays until then: the scheduler's snapshot may
// hold the Pod as it was before the Binding for longer than this informer does.
func (l *ledger) handler() cache.ResourceEventHandlerFuncs {
	return cache.ResourceEventHandlerFuncs{DeleteFunc: func(obj any) {
		if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = gone.Obj
		}
		if pod, ok := obj.(*corev1.Pod); ok {
			l.release(pod.UID)
		}
	}}
}

// holding is what one Pod has of the huge pages of a Node.
type holding struct {
	size    string
	pages   int64
	cells   []int // numbers of cells
	started time.Time
}

// holdingOf returns what a Pod holds; nothing for a Pod that has no cells.
func (l *ledger) holdingOf(pod *corev1.Pod) holding {
	if !isVM(pod) {
		return holding{}
	}
	cells := cellsOf(pod)
	if cells == nil {
		if cells = l.of(pod.UID); cells == nil {
			return holding{}
		}
	}
	h := holding{cells: cells}
	for i := range pod.Spec.Containers {
		if c := &pod.Spec.Containers[i]; c.Name == api.ContainerName {
			h.size, h.pages = hugepagesOf(c)
		}
	}
	for i := range pod.Status.ContainerStatuses {
		if s := &pod.Status.ContainerStatuses[i]; s.Name == api.ContainerName && s.State.Running != nil {
			h.started = s.State.Running.StartedAt.Time
		}
	}
	return h
}

// hugepagesOf returns the size and number of a container's huge pages.
func hugepagesOf(c *corev1.Container) (size string, pages int64) {
	for name, amount := range c.Resources.Limits {
		found, ok := strings.CutPrefix(string(name), api.HugepagesPrefix)
		if bytes := api.PageBytes(found); ok && bytes > 0 && amount.Value() > 0 {
			return found, amount.Value() / bytes
		}
	}
	return "", 0
}

// cellsOf reads the annotation that the Binding brought; nil: there is none.
func cellsOf(pod *corev1.Pod) []int {
	text, ok := pod.Annotations[api.KeyNUMACell]
	if !ok {
		return nil
	}
	var cells []int
	for word := range strings.SplitSeq(text, ",") {
		if id, err := strconv.Atoi(strings.TrimSpace(word)); err == nil {
			cells = append(cells, id)
		}
	}
	return cells
}

// formatCells writes the annotation.
func formatCells(cells []int) string {
	words := make([]string, len(cells))
	for i, id := range cells {
		words[i] = strconv.Itoa(id)
	}
	return strings.Join(words, ",")
}

// account is what is taken of the huge pages of one size on one Node, per cell in the order of its topology.
type account struct {
	held []int64 // by VM Pods
	seen []int64 // the part of it that the node's facts have seen taken: the VM started before they were observed
}

func (l *ledger) account(t *topology, size string, pods []fwk.PodInfo) account {
	a := account{held: make([]int64, len(t.cells)), seen: make([]int64, len(t.cells))}
	for _, info := range pods {
		h := l.holdingOf(info.GetPod())
		if h.size != size {
			continue
		}
		seen := !h.started.IsZero() && t.observed.After(h.started)
		for at, id := range h.cells {
			i := t.index(id)
			if i < 0 {
				continue
			}
			part := api.Portion(h.pages, len(h.cells), at)
			a.held[i] += part
			if seen {
				a.seen[i] += part
			}
		}
	}
	return a
}

// foreign is what others than VM Pods have taken of each cell, as far as the facts show (scheduling.md SC-046, SC-047).
func (a account) foreign(t *topology, size string) []int64 {
	taken := make([]int64, len(t.cells))
	for i, c := range t.cells {
		pool := c.pages[size]
		taken[i] = max(0, pool.Total-pool.Free-a.seen[i])
	}
	return taken
}

// freePages returns what VMs may still take of each cell: the pool less what others have, less what VM Pods hold. The
// Pods of the Node as it really is say what others have; the Pods to count may be fewer, when preemption tries who
// would have to go.
func (l *ledger) freePages(t *topology, size string, real, counted []fwk.PodInfo) []int64 {
	now := l.account(t, size, real)
	held := now.held
	if !samePods(real, counted) {
		held = l.account(t, size, counted).held
	}
	free := t.total(size)
	for i, others := range now.foreign(t, size) {
		free[i] = max(0, free[i]-others-held[i])
	}
	return free
}

func samePods(a, b []fwk.PodInfo) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0] || slices.Equal(a, b))
}
