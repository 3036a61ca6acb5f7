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

// holding is what one Pod has of a Node's cells: huge pages, and CPUs of its own.
type holding struct {
	size    string
	pages   int64
	cpus    int64
	cells   []int     // numbers of cells; nil: nobody has chosen any
	started time.Time // zero: it does not run
}

// holdingOf returns what a Pod holds. Of a Pod without cells it is known only how many CPUs the kubelet gives it.
func (l *ledger) holdingOf(pod *corev1.Pod) holding {
	if !isVM(pod) {
		return holding{cpus: exclusiveCPUs(pod)}
	}
	h := holding{cells: cellsOf(pod)}
	if h.cells == nil {
		h.cells = l.of(pod.UID)
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		if c.Name != api.ContainerName {
			continue
		}
		h.size, h.pages = hugepagesOf(c)
		if pod.Annotations[api.KeyCPUDedicated] == "true" {
			h.cpus = c.Resources.Limits.Cpu().Value()
		}
	}
	for i := range pod.Status.ContainerStatuses {
		if s := &pod.Status.ContainerStatuses[i]; s.Name == api.ContainerName && s.State.Running != nil {
			h.started = s.State.Running.StartedAt.Time
		}
	}
	return h
}

// exclusiveCPUs are those that a static CPU manager gives to the containers of a Pod (kubernetes
// pkg/kubelet/cm/cpumanager/policy_static.go, guaranteedCPUs).
func exclusiveCPUs(pod *corev1.Pod) int64 {
	if pod.Status.QOSClass != corev1.PodQOSGuaranteed {
		return 0
	}
	var sum int64
	for i := range pod.Spec.Containers {
		if cpu := pod.Spec.Containers[i].Resources.Requests.Cpu(); cpu.Value()*1000 == cpu.MilliValue() {
			sum += cpu.Value()
		}
	}
	return sum
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

// account is what is taken on one Node, per cell in the order of its topology: huge pages of one size, and CPUs.
type account struct {
	held    room  // by VM Pods with cells
	seen    room  // the part of it that the node's facts have seen taken: of pages, when the VM started before they were observed; of CPUs, when it runs
	unknown int64 // CPUs of Pods of which nobody knows where they are
}

func (l *ledger) account(t *topology, size string, pods []fwk.PodInfo) account {
	a := account{held: newRoom(t), seen: newRoom(t)}
	for _, info := range pods {
		h := l.holdingOf(info.GetPod())
		if h.size != size {
			h.pages = 0
		}
		if len(h.cells) == 0 {
			a.unknown += h.cpus
			continue
		}
		for at, id := range h.cells {
			i := t.index(id)
			if i < 0 {
				continue
			}
			pages, cpus := api.Portion(h.pages, len(h.cells), at), api.Portion(h.cpus, len(h.cells), at)
			a.held.add(i, pages, cpus)
			if h.started.IsZero() {
				continue
			}
			a.seen.cpus[i] += cpus
			if t.observed.After(h.started) {
				a.seen.pages[i] += pages
			}
		}
	}
	return a
}

// foreign is what others than VM Pods have taken of each cell, as far as the facts show (scheduling.md SC-046, SC-047).
// CPUs beyond those of all VMs are somebody's. Of the others it is not known whose they are while a VM's container is
// being made; they are somebody else's only where there is such a Pod.
func (a account) foreign(t *topology, size string) room {
	taken := newRoom(t)
	for i, c := range t.cells {
		pool := c.pages[size]
		taken.add(i, max(0, pool.Total-pool.Free-a.seen.pages[i]),
			max(0, c.exclusive-a.held.cpus[i], min(a.unknown, c.exclusive-a.seen.cpus[i])))
	}
	return taken
}

// room returns what VMs may still take of each cell: what is there less what others have, less what VM Pods hold. The
// Pods of the Node as it really is say what others have; the Pods to count may be fewer, when preemption tries who
// would have to go.
func (l *ledger) room(t *topology, size string, real, counted []fwk.PodInfo) room {
	now := l.account(t, size, real)
	held := now.held
	if !samePods(real, counted) {
		held = l.account(t, size, counted).held
	}
	free, foreign := t.empty(size), now.foreign(t, size)
	for i := range t.cells {
		free.pages[i] = max(0, free.pages[i]-foreign.pages[i]-held.pages[i])
		free.cpus[i] = t.usable(max(0, free.cpus[i]-foreign.cpus[i]-held.cpus[i]))
	}
	return free
}

func samePods(a, b []fwk.PodInfo) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0] || slices.Equal(a, b))
}
